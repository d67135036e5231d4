"""Heavy imports, made quicker."""

import contextlib
import gc
import sys
from collections.abc import Iterator

_HEAVY = 100  # modules


@contextlib.contextmanager
def quick_imports(*, first: bool = False) -> Iterator[None]:
    """Imports without the passes of Python's collector, each over all that is imported so far, which cost a fifth more.

    Args:
        first: nothing else was done before, so what is imported is left out of
            later passes too. Not where hardly anything was, as in a worker's
            second run: what the first left behind would be kept for ever.
    """
    before, collects = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            if first and len(sys.modules) - before > _HEAVY:
                gc.freeze()
            gc.enable()
