"""Pools of processes, and the process that they are forked from."""

import contextlib
import os
import signal
import warnings
from collections.abc import Iterator
from multiprocessing import forkserver
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from joblib.externals.loky import ProcessPoolExecutor


def kill(pool: "ProcessPoolExecutor") -> None:
    """End the processes of a pool at once."""
    warnings.filterwarnings("ignore", message="Failed to delete temporary folder")  # a killed process holds it
    warnings.filterwarnings("ignore", message="Failed to kill subprocesses")  # where pgrep is missing
    pool.shutdown(wait=True, kill_workers=True)


def fork_from(module: str) -> None:
    """Fork joblib's processes from one process that has imported a module: in a twentieth of a second, not in seconds.

    Linux only: elsewhere libraries do not survive a fork.
    """
    from joblib.externals.loky.backend import context

    context.set_start_method("forkserver", force=True)
    forkserver.set_forkserver_preload([module])
    forkserver.ensure_running()


def kill_fork_server() -> None:
    """End the process that others are forked from, while it still imports."""
    server: Any = forkserver._forkserver
    pid = server._forkserver_pid
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def release_fork_server() -> None:
    """Let the process that this one was forked from end with the first one: each fork keeps it alive."""
    server: Any = forkserver._forkserver
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for the length of the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
