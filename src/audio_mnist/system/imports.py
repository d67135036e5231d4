"""Heavy imports, made quicker."""

import contextlib
import gc
import sys
from collections.abc import Iterator

_HEAVY = 100  # modules


@contextlib.contextmanager
def quick_imports(*, first: bool = False) -> Iterator[None]:
    """Switch Python's garbage collector off while modules are imported.

    Each of its passes looks at all that is imported so far. Together they cost
    a fifth of the import time.

    Args:
        first: whether the process did nothing before. Later passes then skip what is imported here. A worker's second
            run must not set it: memory that the first run no longer uses would never be freed.
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
