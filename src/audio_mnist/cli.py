"""The command line around the functions: messages, exit statuses, nothing heavy imported."""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from audio_mnist.config import without_password
from audio_mnist.errors import AudioMnistError
from audio_mnist.schema import validate_demo, validate_ensemble, validate_explore, validate_predict, validate_train
from audio_mnist.sweep import callback as sweep
from audio_mnist.sweep import workers
from audio_mnist.system.imports import quick_imports


def run(main: Callable[[], Any]) -> int:
    """Runs a Hydra application and, where it was a sweep, reports the sweep however it ended.

    Returns:
        The exit status.
    """
    problem = _told_password(sys.argv[1:])
    if not problem and not any("hydra." in a or a.startswith("--") for a in sys.argv[1:]):
        problem = _unwritable(Path("mlruns"))
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
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
    finally:
        try:
            unfinished = sweep.finish()
        except AudioMnistError as error:
            print(f"error: {error}", file=sys.stderr)
            unfinished = 1
    return status or int(unfinished > 0)


def _told_password(arguments: list[str]) -> str | None:
    """Why a password cannot be given on the command line, where one is."""
    for argument in arguments:
        shown = without_password(argument)
        if argument.lstrip("+").startswith("tracking.") and shown != argument:
            return (
                f"{shown}: a password on the command line stays in the folders of runs and in the shell's history; "
                "for an MLflow server set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, for a database put "
                "the address into a variable, NAME, and give 'tracking.uri=${oc.env:NAME}'"
            )
    return None


def _unwritable(folder: Path) -> str | None:
    """Why Hydra could not make its run folder below `folder`; it would say so in a traceback."""
    parent = folder if folder.exists() else folder.absolute().parent
    if not parent.is_dir():
        return f"{folder.absolute()}: expected a folder for runs and logs, found a file; move it away"
    if not os.access(parent, os.W_OK | os.X_OK):
        return f"{parent.absolute()}: cannot be written; mend its permissions or start the command in another folder"
    try:
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(bytes(2**16))  # as much as the config and the log of a run
    except OSError as error:
        return f"{parent.absolute()}: cannot be written ({error.strerror}); make room there"
    return None


def train(cfg: DictConfig) -> dict[str, float]:
    """One job of `train.py`."""
    hydra = HydraConfig.get()
    sweep_dir = Path(hydra.sweep.dir) if hydra.mode == RunMode.MULTIRUN else None
    if sweep_dir and sweep.taken_over(sweep_dir, hydra.job.num):
        return {}
    if sweep_dir and not sweep.is_here():
        workers.end_with_sweep()
    with workers.busy:
        return _train(cfg, sweep_dir)


def _train(cfg: DictConfig, sweep_dir: Path | None) -> dict[str, float]:
    hydra = HydraConfig.get()
    try:
        validate_train(cfg)  # before the imports below, which take seconds
        with quick_imports(first=True):
            from audio_mnist.training.run import train as train_one

        parent_id = sweep.parent_of(sweep_dir) if sweep_dir else None
        metrics = train_one(cfg, sweep_dir=sweep_dir, parent_id=parent_id)
        if sweep_dir and cfg.tracking.uri is None:
            (Path(hydra.runtime.output_dir) / sweep.RESULT_FILE).write_text(json.dumps(metrics))
        return metrics
    except AudioMnistError as error:
        if sweep_dir:  # the other runs of the sweep go on
            (Path(hydra.runtime.output_dir) / sweep.ERROR_FILE).write_text(str(error))
            raise CompactHydraException(f"error: {error}") from None
        sys.exit(f"error: {error}")


def ensemble(cfg: DictConfig) -> dict[str, float]:
    """`ensemble.py`."""
    try:
        validate_ensemble(cfg)
        with quick_imports(first=True):
            from audio_mnist.ensemble.run import ensemble as combine

        return combine(cfg, Path(HydraConfig.get().runtime.output_dir))
    except AudioMnistError as error:
        sys.exit(f"error: {error}")


def predict(cfg: DictConfig) -> None:
    """`predict.py`; status 2 where recordings could not be read."""
    try:
        validate_predict(cfg)
        with quick_imports(first=True):
            from audio_mnist.inference.recordings import predict as predict_all

        if predict_all(cfg):
            sys.exit(2)
    except AudioMnistError as error:
        sys.exit(f"error: {error}")


def demo(cfg: DictConfig) -> None:
    """`demo.py`."""
    try:
        validate_demo(cfg)
        with quick_imports(first=True):
            from audio_mnist.inference.demo import serve

        serve(cfg)
    except AudioMnistError as error:
        sys.exit(f"error: {error}")


def explore_arguments(arguments: list[str]) -> list[str]:
    """`feature=mel,mfcc`, which is a sweep elsewhere, as the list that `explore.py` takes."""
    return [f"features=[{a.removeprefix('feature=')}]" if a.startswith("feature=") else a for a in arguments]


def explore(cfg: DictConfig) -> None:
    """`explore.py`."""
    try:
        validate_explore(cfg)
        with quick_imports(first=True):
            from audio_mnist.explore.run import explore as explore_corpus

        explore_corpus(cfg, Path(HydraConfig.get().runtime.output_dir))
    except AudioMnistError as error:
        sys.exit(f"error: {error}")
