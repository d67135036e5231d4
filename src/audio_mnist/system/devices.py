"""What the machine has: the device that trains, its fast arithmetic, free GPUs, optional packages."""

import contextlib
import ctypes
import hashlib
import itertools
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import joblib
import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from audio_mnist.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_KEPT_BYTES = 2**30
NATIVE_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")  # names in torch.cpu.get_capabilities


def kind(accelerator: str) -> str:
    """Return the device type that a training uses: "cuda", "mps", "cpu", or Lightning's name of another.

    Args:
        accelerator: "auto", "cpu", "gpu" or another of Lightning's names.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu" if accelerator == "auto" else accelerator


def precision(asked: str, accelerator: str) -> str:
    """Return Lightning's name of the arithmetic that a training uses.

    Args:
        asked: one of Lightning's names, or "auto": bfloat16 autocast where the device computes it natively, else
            float32.
        accelerator: "auto", "cpu", "gpu" or another of Lightning's names.

    Returns:
        `asked`, or "bf16-mixed" or "32-true".
    """
    if asked != "auto":
        return asked
    device = kind(accelerator)
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # on a Mac bfloat16 was never tried
        capable = any(torch.cpu.get_capabilities().get(name) for name in NATIVE_BFLOAT16)
        native = device == "cpu" and capable and not torch.backends.mps.is_available()
    return "bf16-mixed" if native else "32-true"


def set_up_cpu(threads: int) -> None:
    """Set torch's threads, and keep freed memory for the next batch.

    glibc returns large blocks to the system at once and gets them back page by
    page. That took up to half the time of a feature's computation. Peak memory
    stays the same.

    Args:
        threads: threads of each operation.
    """
    torch.set_num_threads(threads)
    # `use_deterministic_algorithms` fills new tensors with NaN. Nothing reads the fill, so it is off: a twentieth of
    # a step. The attribute is a property of the module.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        # older versions refuse more than 32 MiB here
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES) or library.mallopt(_M_MMAP_THRESHOLD, 2**25)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def put(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device; a GPU's work continues meanwhile."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextlib.contextmanager
def exact_convolutions() -> Iterator[None]:
    """Let a GPU convolve in full float32, not in TF32, and always alike."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def side_by_side() -> int:
    """Return how many Python threads fill the cores, where each uses torch's own threads."""
    return max(1, joblib.cpu_count() // torch.get_num_threads())


def check_compiler() -> None:
    """Raise a `ConfigError` where torch.compile would find no C++ compiler."""
    names = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    if not any(name and shutil.which(name) for name in names):
        raise ConfigError("trainer.compile=true: no C++ compiler found (g++, clang++ or the one in CXX); install one")


@contextlib.contextmanager
def free_gpu(sweep: str, runs_per_gpu: int) -> Iterator[int]:
    """Hold a place on a GPU of this machine, and wait for one; GPUs without a run come first.

    The locks lie on this machine, and name a GPU by its UUID: jobs on two nodes,
    and two jobs of one node that each see one GPU, all call theirs 0.

    Args:
        sweep: what the runs of a sweep share, such as its folder.
        runs_per_gpu: places on each GPU.

    Yields:
        The number of the GPU.
    """
    locks = Path(tempfile.gettempdir()) / f"audio-mnist-{getattr(os, 'getuid', lambda: 0)()}"
    locks.mkdir(exist_ok=True)
    while True:
        for place, number in itertools.product(range(runs_per_gpu), range(torch.cuda.device_count())):
            name = f"{sweep}\0{torch.cuda.get_device_properties(number).uuid}\0{place}"
            lock = FileLock(locks / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield number
                return
            finally:
                lock.release()
        time.sleep(0.5)


def require_packages(extra: str, *packages: str) -> None:
    """Check that optional packages are installed, without importing them.

    Args:
        extra: this package's extra that installs them.
        packages: names of the packages.

    Raises:
        ConfigError: names the missing ones and the command that installs them.
    """
    missing = [package for package in packages if not _is_installed(package)]
    if missing:
        raise ConfigError(f"not installed: {', '.join(missing)}; pip install -e '.[{extra}]'")


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it is a part of
        return False
