"""Heavy imports, made quicker."""

import contextlib
import gc
import sys
from collections.abc import Iterator

_HEAVY = 100  # modules


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Imports without the passes of Python's collector, each over all that is imported so far: a fifth of the time.

    What was imported is left out of later passes too. Where hardly anything was, as in a worker's second run,
    nothing is: it would keep what the first one left behind.
    """
    before, collects = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            if len(sys.modules) - before > _HEAVY:
                gc.freeze()
            gc.enable()
