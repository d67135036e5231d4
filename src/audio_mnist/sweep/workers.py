"""The processes that the runs of a sweep train in: started while the sweep is checked, ended with it."""

import contextlib
import importlib
import os
import signal
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from audio_mnist.system.imports import quick_imports

if TYPE_CHECKING:
    from joblib.externals.loky import ProcessPoolExecutor

_WATCH_S = 2.0
busy = threading.Lock()  # held in a worker while it trains
_sweep: int | None = None  # in a worker: the process of its sweep
_starting: threading.Thread | None = None  # in a sweep
_END_S = 10.0


def start(launcher: DictConfig, tracking_uri: str | None, jobs: int) -> threading.Thread | None:
    """Starts the processes of a launcher, which import what a training needs while this one goes on.

    joblib keeps processes from one call to the next, so Hydra's launcher then
    finds these.

    Args:
        launcher: settings of Hydra's launcher.
        tracking_uri: of the runs, None where they are not tracked.
        jobs: number of runs; further processes would wait for nothing.

    Returns:
        The thread that waits for them; None where the launcher starts none.
    """
    settings = OmegaConf.to_container(launcher, resolve=True)
    assert isinstance(settings, dict)
    if not str(settings.pop("_target_")).endswith(".JoblibLauncher") or settings["n_jobs"] == 1:
        return None
    from hydra_plugins.hydra_joblib_launcher._core import process_joblib_cfg

    options = {str(key): value for key, value in settings.items()} | {"backend": "loky"}
    process_joblib_cfg(options)
    global _starting
    _starting = threading.Thread(target=_start, args=(options, tracking_uri, jobs), daemon=True)
    _starting.start()
    return _starting


def stop() -> None:
    """Ends the processes at once, with whatever they do."""
    from joblib.externals.loky import reusable_executor

    # joblib tidies up after them in that thread, and once more at this process's end: the two must not meet
    deadline = time.monotonic() + _END_S
    while True:
        if reusable_executor._executor is not None:
            kill(reusable_executor._executor)
        if _starting is None or not _starting.is_alive() or time.monotonic() > deadline:
            return
        _starting.join(0.1)


def kill(pool: "ProcessPoolExecutor") -> None:
    """Ends the processes of a pool at once."""
    warnings.filterwarnings("ignore", message="Failed to delete temporary folder")  # which a killed one holds
    warnings.filterwarnings("ignore", message="Failed to kill subprocesses")  # of theirs, without pgrep
    pool.shutdown(wait=True, kill_workers=True)


def _start(options: dict[str, Any], tracking_uri: str | None, jobs: int) -> None:
    from joblib import Parallel, cpu_count, delayed

    count = options["n_jobs"] if options["n_jobs"] > 0 else cpu_count()
    with contextlib.suppress(Exception):  # the launcher starts others, and says what is wrong
        Parallel(**options)(delayed(_import)(os.getpid(), tracking_uri) for _ in range(min(count, jobs)))


def _import(sweep: int, tracking_uri: str | None) -> None:
    """In a worker."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # it would end in a traceback of some import
    try:
        end_with_sweep(sweep)
        with quick_imports(first=True):
            importlib.import_module("audio_mnist.training.run")
            if tracking_uri is not None:
                from audio_mnist.tracking import backend as database

                database.import_client(tracking_uri)
    finally:
        signal.signal(signal.SIGINT, before)


def end_with_sweep(sweep: int | None = None) -> None:
    """Has this worker end when its sweep was killed; it would wait for the next one for ever.

    A run that it trains is finished first.

    Args:
        sweep: process of the sweep; None for this one's parent.
    """
    global _sweep

    def watch() -> None:
        while True:
            time.sleep(_WATCH_S)
            if os.getppid() != _sweep and busy.acquire(blocking=False):
                os._exit(1)

    if _sweep is None:
        _sweep = sweep or os.getppid()
        threading.Thread(target=watch, daemon=True).start()
    elif os.getppid() != _sweep:
        os._exit(1)  # a job that was handed out before; the next sweep has it
