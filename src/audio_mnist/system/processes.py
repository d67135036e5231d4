"""Pools of processes."""

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from joblib.externals.loky import ProcessPoolExecutor


def kill(pool: "ProcessPoolExecutor") -> None:
    """End the processes of a pool at once."""
    warnings.filterwarnings("ignore", message="Failed to delete temporary folder")  # a killed process holds it
    warnings.filterwarnings("ignore", message="Failed to kill subprocesses")  # where pgrep is missing
    pool.shutdown(wait=True, kill_workers=True)
