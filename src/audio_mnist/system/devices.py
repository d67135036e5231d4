"""What the machine has: which arithmetic is fast on it, which GPU is free, which optional packages are installed."""

import contextlib
import ctypes
import os
import platform
import shutil
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import joblib
import torch
from filelock import FileLock, Timeout

from audio_mnist.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_KEPT_BYTES = 2**30
NATIVE_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")  # names of torch.cpu.get_capabilities


def precision(asked: str, accelerator: str) -> str:
    """Lightning's name of the arithmetic that a training uses.

    Args:
        asked: a name of Lightning's, or "auto": bfloat16 autocast where the device
            computes it natively, float32 elsewhere.
        accelerator: "auto", "cpu", "gpu" or another of Lightning's.

    Returns:
        `asked`, or "bf16-mixed" or "32-true".
    """
    if asked != "auto":
        return asked
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator in ("auto", "cpu") and not torch.backends.mps.is_available():
        native = any(torch.cpu.get_capabilities().get(name) for name in NATIVE_BFLOAT16)
    else:
        native = False
    return "bf16-mixed" if native else "32-true"


def set_up_cpu(threads: int) -> None:
    """Threads of torch, and memory that is freed after one batch kept for the next.

    glibc gives large blocks back to the system at once, which hands them out
    anew page by page: up to half the time of a feature's computation. What is
    resident at most stays the same.

    Args:
        threads: of each operation.
    """
    torch.set_num_threads(threads)
    # deterministic algorithms otherwise fill every new tensor before it is written: a twentieth of a step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # a property of the module
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        # older ones refuse more than 32 MiB here
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES) or library.mallopt(_M_MMAP_THRESHOLD, 2**25)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def at_once() -> int:
    """Threads of Python that fill the CPU's cores where each has torch's own threads."""
    return max(1, joblib.cpu_count() // torch.get_num_threads())


def check_compiler() -> None:
    """Raises a `ConfigError` where torch.compile would find no C++ compiler."""
    names = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    if not any(name and shutil.which(name) for name in names):
        raise ConfigError("trainer.compile=true: no C++ compiler found (g++, clang++ or what CXX names); install one")


@contextlib.contextmanager
def gpu_of_its_own(trainer_options: dict[str, Any], sweep_dir: Path | None) -> Iterator[None]:
    """In a sweep on CUDA, holds the first GPU that no other run of the sweep holds."""
    wants_gpu = trainer_options["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if sweep_dir is None or not wants_gpu or trainer_options["devices"] != 1:
        yield
        return
    while True:
        for number in range(torch.cuda.device_count()):
            lock = FileLock(sweep_dir / f"gpu{number}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                trainer_options["devices"] = [number]
                yield
                return
            finally:
                lock.release()
        time.sleep(0.5)


def require_packages(extra: str, *packages: str) -> None:
    """Checks that optional packages are installed, without importing them.

    Args:
        extra: of this package, that brings them.
        packages: their names.

    Raises:
        ConfigError: names those that are not, and how to get them.
    """
    lacking = [package for package in packages if find_spec(package) is None]
    if lacking:
        raise ConfigError(f"not installed: {', '.join(lacking)}; pip install -e '.[{extra}]'")
