"""The command line: one table of commands, messages, exit statuses. Nothing heavy is imported here."""

import contextlib
import difflib
import importlib
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

from hydra._internal import utils as hydra_utils
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, ConfigCompositionException, HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from audio_mnist import schema
from audio_mnist.errors import AudioMnistError, PrunedError
from audio_mnist.sweeps import callback, state, view, workers
from audio_mnist.system.imports import quick_imports
from audio_mnist.tracking.uri import without_password
from audio_mnist.training import progress


class Command(NamedTuple):
    """One entry point besides `train.py`.

    Attributes:
        validate: checks its config, before the imports that take seconds.
        function: where its work is done, "module:function".
        writes: whether the function takes the folder that the command writes into.
    """

    validate: Callable[[DictConfig], DictConfig]
    function: str
    writes: bool


COMMANDS = {
    "ensemble": Command(schema.validate_ensemble, "audio_mnist.ensembles.run:ensemble", writes=True),
    "predict": Command(schema.validate_predict, "audio_mnist.inference.predict:predict", writes=False),
    "demo": Command(schema.validate_demo, "audio_mnist.inference.demo:serve", writes=False),
    "explore": Command(schema.validate_explore, "audio_mnist.explore.run:explore", writes=True),
}


def run(main: Callable[[], Any]) -> int:
    """Run a Hydra application; report its sweep, if it was one, however it ended.

    Returns:
        The exit status.
    """
    problem = _password_in(sys.argv[1:])
    if not problem and not any("hydra." in a or a.startswith("--") for a in sys.argv[1:]):
        problem = unwritable(Path("mlruns"))
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    status = 1
    hydra_utils.run_and_report = _reporting(hydra_utils.run_and_report)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: finished runs are kept and reported
    try:
        main()
        status = 0
    except BrokenPipeError:  # such as --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
            unfinished = callback.finish()
        except AudioMnistError as error:
            print(f"error: {error}", file=sys.stderr)
            unfinished = 1
    return status or int(unfinished > 0)


def _reporting(hydras: Callable[[Any], Any]) -> Any:
    """Return Hydra's report of errors with other words about overrides that cannot be used."""

    def guarded(function: Callable[[], Any]) -> Any:
        try:
            return function()
        except (ConfigCompositionException, OverrideParseException) as error:
            sys.exit(f"error: {explained(error, Path(sys.argv[0]))}")

    return lambda function: hydras(lambda: guarded(function))


def explained(error: HydraException, command: Path) -> str:
    """Turn Hydra's error about an override into what is wrong and the remedy.

    Args:
        error: Hydra's error.
        command: the command's file, beside conf/.

    >>> explained(HydraException("Ambiguous value for argument 'fold=0,1'"), Path("train.py"))
    'fold=0,1: several values; add -m to train every combination'
    """
    text = str(error)
    if isinstance(error, OverrideParseException):
        key, equals, value = without_password(error.override).partition("=")
        if not equals:
            return f"{key}: expected KEY=VALUE; python {command.name} --help lists the keys"
        return f"{key}={value}: a character of the value has a special meaning; quote it twice, \"{key}='{value}'\""
    if unknown := re.match(r"Could not override '([^']+)'", text):
        return _unknown_key(unknown[1], command)
    if several := re.match(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        key, values = several.groups()
        train = command.name == "train.py"
        remedy = "add -m to train every combination" if train else f"give a list, '{key}=[{values}]'"
        return f"{key}={values}: several values; {remedy}"
    if missing := re.search(r"Could not find '(.+)/(.*)'\n\nAvailable options in .*:\n((?:\t.*\n?)+)", text):
        group, choice, options = missing.groups()
        return f"{group}={choice}: expected one of {', '.join(options.split())}"
    return text


def _unknown_key(key: str, command: Path) -> str:
    """Name the keys that resemble an unknown one, or the choices that have it."""
    name, conf = command.stem, command.parent / "conf"
    whole = _keys([path for path in (conf / f"{name}.yaml", conf / name / f"{name}.yaml") if path.exists()])
    groups = {one for default in whole.pop("defaults", []) if isinstance(default, dict) for one in default}
    group, _, leaf = key.rpartition(".")
    if group in groups:
        files = sorted((conf / group).glob("*.yaml"))
        if owners := [file.stem for file in files if leaf in _keys([file]) and not file.stem.startswith("_")]:
            return f"{key}: no such key with the chosen {group}; it belongs to {group}={', '.join(owners)}"
        known = {f"{group}.{one}" for one in _keys(files)}
    else:
        known = {*whole, *(one.removeprefix("override ") for one in groups)}
    similar = difflib.get_close_matches(key, sorted(known))
    remedy = f"did you mean {' or '.join(similar)}?" if similar else f"python {command.name} --help lists the keys"
    return f"unknown config key {key}; {remedy}"


def _keys(files: list[Path]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for file in files:
        merged |= cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(file)))
    return merged


def _password_in(arguments: list[str]) -> str | None:
    """Say why a password cannot be given on the command line, where one is."""
    for argument in arguments:
        shown = without_password(argument)
        if argument.lstrip("+").startswith(("tracking.", "search.storage")) and shown != argument:
            key = argument.lstrip("+").partition("=")[0]
            return (
                f"{shown}: a password on the command line stays in the folders of runs and in the shell's history. "
                "For an MLflow server set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. For a database put "
                f"the address into a variable, NAME, and give '{key}=${{oc.env:NAME}}'"
            )
    return None


def unwritable(folder: Path) -> str | None:
    """Say why Hydra could not make its run folder below `folder`; Hydra would end in a traceback."""
    parent = folder if folder.exists() else folder.absolute().parent
    if not parent.is_dir():
        return f"{folder.absolute()}: expected a folder for runs and logs, found a file; move it away"
    if not os.access(parent, os.W_OK | os.X_OK):
        return f"{parent.absolute()}: cannot be written; correct its permissions or start the command elsewhere"
    try:
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(bytes(2**16))  # as much as the config and the log of a run
    except OSError as error:
        return f"{parent.absolute()}: cannot be written ({error.strerror}); make room there"
    return None


def train(cfg: DictConfig) -> dict[str, float]:
    """Run one job of `train.py`."""
    hydra = HydraConfig.get()
    sweep_dir = Path(hydra.sweep.dir) if hydra.mode == RunMode.MULTIRUN else None
    if sweep_dir and state.is_taken_over(sweep_dir, hydra.job.num):
        return {}
    if sweep_dir and not callback.is_here():
        workers.end_with_sweep()
        if os.environ.get(view.VARIABLE):
            view.leave_terminal()
    with workers.busy:
        return _train(cfg, sweep_dir)


def _train(cfg: DictConfig, sweep_dir: Path | None) -> dict[str, float]:
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        schema.validate_train(cfg)  # before the imports below, which take seconds
        with quick_imports(first=True):
            from audio_mnist.training.run import train as train_one

        parent_id = state.parent_of(sweep_dir) if sweep_dir else None
        callbacks = _watching(sweep_dir, folder, cfg) if sweep_dir else []
        trained = train_one(cfg, sweep_dir=sweep_dir, parent_id=parent_id, callbacks=callbacks)
        metrics = trained.metrics
        if sweep_dir:
            progress.write(folder, state="finished", score=metrics.get(f"best/{cfg.score}"))
        if sweep_dir and cfg.tracking.uri is None:
            (folder / state.RESULT_FILE).write_text(json.dumps(metrics))
        return metrics
    except BaseException as error:
        if sweep_dir:
            with contextlib.suppress(OSError):
                reason = str(error) or type(error).__name__
                state_now = "pruned" if isinstance(error, PrunedError) else "failed"
                progress.write(folder, state=state_now, reason=reason.splitlines()[0])
        if not isinstance(error, AudioMnistError):
            raise
        if sweep_dir:  # the other runs of the sweep continue
            (folder / state.ERROR_FILE).write_text(str(error))
            raise CompactHydraException(f"error: {error}") from None
        sys.exit(f"error: {error}")


def _watching(sweep_dir: Path, folder: Path, cfg: DictConfig) -> list[Any]:
    """Return the callbacks of a sweep's run: it tells how far it is; a trial asks whether to finish."""
    from audio_mnist.training.callbacks import Progress

    callbacks: list[Any] = [Progress(folder, cfg.score)]
    trial = state.trial_of(sweep_dir, HydraConfig.get().job.num)
    if trial:
        from audio_mnist.sweeps.pruning import Pruning

        callbacks.append(Pruning(**trial | {"storage": trial["storage"] or cfg.search.storage}))
    return callbacks


def execute(name: str, cfg: DictConfig) -> Any:
    """Run a command of `COMMANDS`; `predict` exits with 2 where recordings could not be read."""
    command = COMMANDS[name]
    try:
        command.validate(cfg)
        module, _, function = command.function.partition(":")
        with quick_imports(first=True):
            work = getattr(importlib.import_module(module), function)
        result = work(cfg, Path(HydraConfig.get().runtime.output_dir)) if command.writes else work(cfg)
    except AudioMnistError as error:
        sys.exit(f"error: {error}")
    if name == "predict" and result:
        sys.exit(2)
    return result


def explore_arguments(arguments: list[str]) -> list[str]:
    """Turn `feature=mel,mfcc`, elsewhere a sweep, into the list that `explore.py` takes.

    >>> explore_arguments(["data=fsdd", "feature=mel,mfcc"])
    ['data=fsdd', 'features=[mel,mfcc]']
    """
    return [f"features=[{a.removeprefix('feature=')}]" if a.startswith("feature=") else a for a in arguments]
