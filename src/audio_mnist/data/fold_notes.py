"""What a reader of scores must know about the folds, one sentence each."""

import difflib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from audio_mnist.errors import listed

COLUMNS = {"clip_id", "path", "label", "speaker", "split", "fold", "content", "duration_s", "recording"}  # all used
_OPTIONAL = ("speaker", "split", "fold", "label", "path")  # those of a person's table
_SHOWN = 5  # most names that a note lists
_UNEQUAL = 3  # a note is due where the largest fold has this many times the clips of the smallest


def on_columns(table: pd.DataFrame, unit: str) -> list[str]:
    """Name columns that nothing uses, with the name that may have been meant.

    Args:
        table: a manifest.
        unit: the column that groups clips, "" for none.
    """
    unused = [str(name) for name in table if name not in COLUMNS and name != unit]
    if not unused:
        return []
    meant = {name: difflib.get_close_matches(name.lower(), _OPTIONAL, 1, 0.75) for name in unused}
    notes = [f"unused column {name}; did you mean {close[0]}?" for name, close in meant.items() if close]
    others = [name for name, close in meant.items() if not close]
    if others:
        notes.append(f"unused columns: {listed(others)}; folds.group=COLUMN keeps the clips of one value together")
    return notes


def on_groups(table: pd.DataFrame, is_test: np.ndarray, unit: str) -> list[str]:
    """Say where groups of the test split also train; the split stays as the corpus names it.

    Args:
        table: a manifest.
        is_test: (rows,) bool.
        unit: the column that groups clips.
    """
    shared = set(table[unit][is_test]) & set(table[unit][~is_test])
    if not shared:
        return []
    return [
        f"{len(shared)} {unit}s of the test split are training {unit}s too, so its score does not hold for new {unit}s"
    ]


def on_published(dealt: pd.DataFrame, names: Sequence[str], unit: str) -> list[str]:
    """Say which published folds are used, and whether they share groups.

    Args:
        dealt: training clips, with a column fold.
        names: published names of folds 0, 1, ...
        unit: the column that groups clips, "" for none.
    """
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    notes = [f"folds 0 to {len(names) - 1} are the corpus's own: {shown} of the column fold"]
    straddling = int((dealt.groupby(unit)["fold"].nunique() > 1).sum()) if unit else 0
    if straddling:
        notes.append(f"{straddling} {unit}s are in several of these folds: scores do not hold for new {unit}s")
    return notes


def on_copies(copies: pd.DataFrame, originals: pd.DataFrame, *, what: str) -> list[str]:
    """Name copies that were left out, each with its original.

    Args:
        copies: clips that were left out, with columns clip_id and recording.
        originals: clips that they are copies of.
        what: what the copies are and what they are copies of, such as "clips are copies of test clips".
    """
    if not len(copies):
        return []
    firsts = originals.drop_duplicates("recording")
    first = dict(zip(firsts["recording"], firsts["clip_id"], strict=True))
    named = [f"{row.clip_id} (of {first[row.recording]})" for row in copies.itertuples()]
    return [f"{len(named)} {what} and were left out: {listed(named)}"]


def on_sizes(numbers: np.ndarray, count: int) -> list[str]:
    """Say where folds are very unequal.

    Args:
        numbers: (clips,) fold numbers of scored clips.
        count: number of folds.
    """
    sizes = np.bincount(numbers, minlength=count)
    if sizes.max() < _UNEQUAL * sizes.min():
        return []
    sizes_text = ", ".join(map(str, sizes))
    return [f"the folds have very unequal numbers of clips ({sizes_text}), so the score is mostly that of the largest"]


def on_speakers(table: pd.DataFrame, dealt: pd.DataFrame) -> list[str]:
    """Say whom scores hold for, where folds are not by speaker.

    Args:
        table: a manifest.
        dealt: its training clips.
    """
    if not (table["speaker"] != "").all():
        return ["the speakers are not known: folds may share speakers, and scores hold for these speakers only"]
    if dealt["speaker"].nunique() > 1:
        return ["folds share speakers (folds.group=none): scores hold for these speakers, not for new ones"]
    return []
