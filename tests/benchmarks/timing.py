"""Two things timed in turn, and their ratio."""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from audio_mnist.schema import validate_train

PROJECT = Path(__file__).parents[2]
PAIRS = 5  # of a ratio, unless it says otherwise
figures: list[tuple[str, str]] = []  # what was measured in this process, and its result


def ratio(
    title: str,
    first: tuple[str, Callable[[], float | None]],
    second: tuple[str, Callable[[], float | None]],
    *,
    repeats: int | None = None,
) -> float:
    """Times both in turn and prints the median of the ratios first / second, and their range.

    Args:
        title: of the figure.
        first: what it is called, and a call of it; it may return its own seconds, else the call is timed.
        second: that it is compared with.
        repeats: pairs; `PAIRS` without it.

    Returns:
        The median ratio.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    repeats = repeats or PAIRS
    for _ in range(repeats):
        for taken, (_, call) in zip(seconds, (first, second), strict=True):
            began = time.perf_counter()
            own = call()
            taken.append(time.perf_counter() - began if own is None else own)
    ratios = sorted(a / b for a, b in zip(*seconds, strict=True))
    result = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}, {repeats} pairs)"
    figures.append((title.strip(), result))
    print(f"{title}: {result}")
    for (name, _), taken in zip((first, second), seconds, strict=True):
        print(f"  {name}: median {statistics.median(taken):.4g} s ({min(taken):.4g} to {max(taken):.4g})", flush=True)
    return statistics.median(ratios)


def machine() -> str:
    """The processor and the versions that the figures hold for."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{(names or [platform.processor()])[0]}, {os.cpu_count()} cores, {versions}"


def real(*overrides: str) -> list[str]:
    """Overrides of FSDD-400, from `AUDIO_MNIST_DATA` where that is set, else downloaded."""
    data = os.environ.get("AUDIO_MNIST_DATA")
    return ["data=fsdd400", *([f"data.root={data}/fsdd"] if data else []), "trainer.accelerator=cpu", *overrides]


def composed(*overrides: str) -> DictConfig:
    """The checked config of `train.py` with these overrides."""
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        return validate_train(compose("train", list(overrides)))


def command(folder: Path, *arguments: str, cores: set[int] | None = None, status: int = 0) -> float:
    """Seconds of `python ARGUMENTS` in `folder`, on these cores alone where named; another exit status ends all."""
    began = time.perf_counter()
    arguments = (sys.executable, str(PROJECT / arguments[0]), *arguments[1:])
    pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, preexec_fn=pin)
    seconds = time.perf_counter() - began
    if done.returncode != status:
        sys.exit(done.stdout + done.stderr)
    return seconds


def in_folder(main: Callable[[Path], None]) -> None:
    """Calls `main` with the folder of the command line, which is kept, or with one that is removed after it."""
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).resolve())
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
