"""The command line around the functions: messages, exit statuses, nothing heavy imported."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from audio_mnist import sweep
from audio_mnist.config import validate_ensemble, validate_train
from audio_mnist.errors import AudioMnistError


def run(main: Callable[[], Any]) -> int:
    """Runs a Hydra application and, where it was a sweep, reports the sweep however it ended.

    Returns:
        The exit status.
    """
    status = 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: what is finished is kept and reported
    try:
        main()
        status = 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        else:
            status = stop.code or 0
    try:
        unfinished = sweep.finish()
    except AudioMnistError as error:
        print(f"error: {error}", file=sys.stderr)
        unfinished = 1
    return status or int(unfinished > 0)


def train(cfg: DictConfig) -> dict[str, float]:
    """One job of `train.py`."""
    hydra = HydraConfig.get()
    sweep_dir = Path(hydra.sweep.dir) if hydra.mode == RunMode.MULTIRUN else None
    try:
        validate_train(cfg)  # before the imports below, which take seconds
        from audio_mnist.training import train as train_one

        parent_id = sweep.parent_of(sweep_dir) if sweep_dir else None
        return train_one(cfg, sweep_dir=sweep_dir, parent_id=parent_id)
    except AudioMnistError as error:
        if sweep_dir:  # the other runs of the sweep go on
            raise CompactHydraException(f"error: {error}") from None
        sys.exit(f"error: {error}")


def ensemble(cfg: DictConfig) -> dict[str, float]:
    """`ensemble.py`."""
    try:
        validate_ensemble(cfg)
        from audio_mnist.combining import ensemble as combine

        return combine(cfg, Path(HydraConfig.get().runtime.output_dir))
    except AudioMnistError as error:
        sys.exit(f"error: {error}")
