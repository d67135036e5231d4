"""What happens inside the processes that the runs of a sweep train in."""

import importlib
import os
import signal
import threading
import time
from typing import NamedTuple

from audio_mnist.system import processes
from audio_mnist.system.imports import quick_imports

KIND = "AUDIO_MNIST_TRACKING_KIND"  # environment variable: how the tracking store's address begins, "" without one
_WATCH_S = 2.0
busy = threading.Lock()  # held while this process trains
_parent: int | None = None  # process id of the sweep, or of the process that it forks workers from


class Sweep(NamedTuple):
    """Values that a worker takes over from its sweep.

    Attributes:
        environment: the sweep's environment variables.
        folder: the sweep's working directory.
        tracking_uri: where the runs are tracked, None where they are not.
    """

    environment: dict[str, str]
    folder: str
    tracking_uri: str | None


def import_all(tracking_uri: str | None) -> None:
    """Import what a training needs."""
    with quick_imports(first=True):
        importlib.import_module("audio_mnist.training.run")
        if tracking_uri is not None:
            from audio_mnist.tracking import backend

            backend.import_client(tracking_uri)


def get_ready(sweep: Sweep) -> None:
    """Prepare a worker for the runs of a sweep."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C during an import would print a traceback
    try:
        os.environ.clear()
        os.environ.update(sweep.environment)
        os.chdir(sweep.folder)
        end_with_sweep()
        import_all(sweep.tracking_uri)
    finally:
        signal.signal(signal.SIGINT, before)


def end_with_sweep() -> None:
    """Let this worker end when its sweep was killed; else it would wait for the next job for ever.

    A run that it trains is finished first. The process that workers are forked
    from ends with the sweep too.
    """
    global _parent
    processes.release_fork_server()

    def watch() -> None:
        while True:
            time.sleep(_WATCH_S)
            if os.getppid() != _parent and busy.acquire(blocking=False):
                os._exit(1)

    if _parent is None:
        _parent = os.getppid()
        threading.Thread(target=watch, daemon=True).start()
    elif os.getppid() != _parent:
        os._exit(1)  # a job that was handed out before the kill; the next sweep trains it
