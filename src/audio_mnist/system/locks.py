"""Locks between processes. A lock ends with its process, however that ends."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextlib.contextmanager
def held(folder: Path, key: str, why: str) -> Iterator[None]:
    """Hold the lock of `key` for the length of the block, after waiting for it.

    Args:
        folder: where locks are kept.
        key: what is locked.
        why: message for the case that another process holds it.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{key}.lock")
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        log.info("%s: waiting for it", why)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path, key: str) -> bool:
    """Tell whether a living process holds the lock of `key`."""
    path = folder / f"{key}.lock"
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
