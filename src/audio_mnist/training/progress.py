"""How far a run is: a small file that the run writes and its sweep reads. Nothing heavy is imported here."""

import json
import os
from pathlib import Path
from typing import Any

FILE = "progress.json"  # in the run's folder


def write(folder: Path, **values: Any) -> None:
    """Replace what is known of a run; a reader never sees half of it.

    Args:
        folder: the run's folder.
        values: epoch, epochs, begun (epochs before this start) and score of a run that trains; state and score, or
            reason, of one that ended.
    """
    partial = folder / f"{FILE}.partial"
    partial.write_text(json.dumps(values))
    os.replace(partial, folder / FILE)


def read(folder: Path) -> dict[str, Any]:
    """Return what the run wrote last; nothing where it has not begun.

    >>> read(Path("/nowhere"))
    {}
    """
    try:
        values: dict[str, Any] = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return values
