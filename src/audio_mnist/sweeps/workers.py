"""What happens inside the processes that the runs of a sweep train in."""

import importlib
import os
import signal
import threading
import time

from audio_mnist.system.imports import quick_imports

_WATCH_S = 2.0
busy = threading.Lock()  # held while this process trains
_sweep: int | None = None  # process id of the sweep


def get_ready(sweep: int, tracking_uri: str | None) -> None:
    """Import what a training needs.

    Args:
        sweep: process id of the sweep.
        tracking_uri: where the runs are tracked, None where they are not.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C during an import would print a traceback
    try:
        end_with_sweep(sweep)
        with quick_imports(first=True):
            importlib.import_module("audio_mnist.training.run")
            if tracking_uri is not None:
                from audio_mnist.tracking import backend

                backend.import_client(tracking_uri)
    finally:
        signal.signal(signal.SIGINT, before)


def end_with_sweep(sweep: int | None = None) -> None:
    """Let this worker end when its sweep was killed; else it would wait for the next job for ever.

    A run that it trains is finished first.

    Args:
        sweep: process id of the sweep; None for this process's parent.
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
        os._exit(1)  # a job that was handed out before the kill; the next sweep trains it
