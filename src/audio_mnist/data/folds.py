"""Fold number of every clip of a manifest.

Pure: no file is read. The same manifest gives the same folds, whatever the
order of its rows, the run, the feature or the model.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from audio_mnist.data import fold_notes
from audio_mnist.data.corpora.base import sort_labels
from audio_mnist.data.dealing import check_classes, deal, other_groups
from audio_mnist.errors import ConfigError, DataError

TEST = -1  # a clip of the test split
EXCLUDED = -2  # a training copy of a test clip, or of a clip in another published fold: in no set
VALIDATION = -3  # a clip of the published validation split: it chooses the epoch, or trains; it is never scored
SOURCES = ("auto", "column", "deal")  # where folds come from


@dataclass(frozen=True)
class Folds:
    """Fold number of every clip.

    Attributes:
        fold_of: (clips,) int64; 0 to count-1, TEST, EXCLUDED or VALIDATION.
        count: number of folds.
        seed: random seed of the shuffle.
        groups: (clips,) names of the groups that were kept together, such as speakers; None where clips count as
            independent.
        unit: what a group is, the name of its column, such as "speaker".
        scored: (clips,) bool; false for a copy of a clip that is scored already.
        fingerprint: identifies the assignment, not the settings that led to it.
        notes: what a reader of the scores must know, one sentence each.
    """

    fold_of: np.ndarray
    count: int
    seed: int
    groups: np.ndarray | None
    unit: str
    scored: np.ndarray
    fingerprint: str
    notes: tuple[str, ...]


def cut_folds(manifest: pd.DataFrame, settings: dict[str, Any]) -> Folds:
    """Cut folds as the `folds` config says: `assign_folds`."""
    given = {key: settings[key] for key in ("count", "group", "seed")}
    return assign_folds(manifest, source=settings.get("from", "deal"), **given)  # runs of earlier versions lack it


def assign_folds(manifest: pd.DataFrame, *, count: int, group: str, seed: int, source: str = "auto") -> Folds:
    """Deal the training clips into stratified folds, or take the folds that the manifest names.

    Copies (equal `recording`) always share a fold, and one of them is scored.
    With a group column, such as `group="speaker"`, so do all clips of one group.
    A training clip that is a copy of a test clip is left out. Published folds
    stay as they are; of copies in several of them one is used.

    Args:
        manifest: columns clip_id, label, speaker ("" where unknown), split ("train", "val" or "test") and recording
            (clip_id of the first copy); optional fold, and further columns that `group` can name.
        count: number of folds, at least 2. The number of speakers makes it leave-one-speaker-out. Published folds have
            their own number.
        group: "none", a column, or "auto": "speaker" where the manifest names one for every clip.
        seed: random seed of the shuffle.
        source: "deal"; "column", the manifest's column fold; or "auto", the column where it names a fold.

    Raises:
        ConfigError: the settings do not fit the corpus.
        DataError: a class cannot be learnt on these folds.
    """
    if count < 2:
        raise ConfigError(f"folds.count={count}: at least 2 folds are needed")
    table = manifest.sort_values("clip_id", kind="stable")
    rows = table.index.to_numpy()
    unit = _group_column(table, group)
    notes = fold_notes.on_columns(table, unit)

    # what is scored once, at the end
    is_test, is_val = ((table["split"] == split).to_numpy() for split in ("test", "val"))
    if unit:
        notes += fold_notes.on_groups(table, is_test, unit)
    fold_of = np.full(len(manifest), TEST, dtype=np.int64)
    fold_of[rows[is_val]] = VALIDATION
    excluded = _copies(table, is_test, is_val, notes)

    # the folds
    dealt = table[~is_test & ~is_val & ~excluded]
    lost = set(table["label"][~is_test & ~is_val]) - set(dealt["label"])
    if lost:
        raise DataError(f"every training clip of class {min(lost)!r} is a copy of a test clip")
    if _is_published(dealt, source):
        dealt = _without_straddling_copies(dealt, notes)
        numbers, count = _published(dealt, notes, unit), dealt["fold"].nunique()
        excluded |= ~is_test & ~is_val & ~table.index.isin(dealt.index)
        remedy = "add clips of it to other folds, or set folds.from=deal"
    else:
        numbers = deal(dealt, count=count, unit=unit, seed=seed)
        remedy = other_groups(unit)
    fold_of[rows[excluded]] = EXCLUDED
    check_classes(dealt, numbers, count, remedy)
    fold_of[dealt.index.to_numpy()] = numbers
    scored = _scored(table[~excluded & ~is_val], len(manifest))
    if not unit:
        notes += fold_notes.on_speakers(table, dealt)
    notes += fold_notes.on_sizes(numbers[scored[dealt.index.to_numpy()]], count)

    digest = _fingerprint(table["clip_id"], fold_of[rows], scored[rows])
    groups = manifest[unit].to_numpy() if unit else None
    return Folds(fold_of, count, seed, groups, unit or "speaker", scored, digest, tuple(notes))


def _copies(table: pd.DataFrame, is_test: np.ndarray, is_val: np.ndarray, notes: list[str]) -> np.ndarray:
    """Mark training copies of test clips, and validation copies of test or training clips."""
    recordings = table["recording"]
    excluded = ~is_test & recordings.isin(set(recordings[is_test])).to_numpy()
    what = "training clips are copies of test clips"
    notes += fold_notes.on_copies(table[excluded], table[is_test], what=what)
    repeated = is_val & ~excluded & recordings.isin(set(recordings[~is_test & ~is_val])).to_numpy()
    if repeated.any():
        notes.append(f"{repeated.sum()} validation clips are copies of training clips and were left out")
    return excluded | repeated


def _fingerprint(clips: pd.Series, fold_of: np.ndarray, scored: np.ndarray) -> str:
    lines = zip(clips, fold_of, scored, strict=True)
    text = "\n".join(f"{clip}\t{fold}{'' if counts else ' copy'}" for clip, fold, counts in lines)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _scored(used: pd.DataFrame, clips: int) -> np.ndarray:
    """Mark (clips,) the first of several copies, one with a label where there is one."""
    scored = np.zeros(clips, dtype=bool)
    labelled_first = used.assign(unknown=used["label"] == "").sort_values("unknown", kind="stable")
    scored[labelled_first.index.to_numpy()] = ~labelled_first["recording"].duplicated().to_numpy()
    return scored


def _group_column(table: pd.DataFrame, group: str) -> str:
    """Return the column that names the groups, "" for none."""
    if group == "none":
        return ""
    column = "speaker" if group == "auto" else group
    choices = [str(name) for name in table if name == "speaker" or name not in fold_notes.COLUMNS]
    if column not in choices:
        named_ones = [name for name in choices if (table[name] != "").any()] or ["none"]
        taken = f" ({group} is a name that the framework uses; rename your column)" if group in table else ""
        known = ", ".join(named_ones)
        raise ConfigError(f"folds.group={group}: choose none, auto or a column; the corpus has {known}{taken}")
    named = int((table[column] != "").sum())
    if group == "auto":
        if 0 < named < len(table):
            raise ConfigError(
                f"speakers are named for {named} of {len(table)} clips: name the others too, or set folds.group=none "
                "(scores then hold for these speakers, not for new ones)"
            )
        return "speaker" if named == len(table) else ""
    if named < len(table):
        unknown = table.loc[table[column] == "", "clip_id"].iloc[0]
        raise ConfigError(
            f"folds.group={group}, but the corpus names no {column} for {unknown}; "
            f"set folds.group=none, or give every clip a {column}"
        )
    return column


def _is_published(dealt: pd.DataFrame, source: str) -> bool:
    """Tell whether the folds are those of the column."""
    if source not in SOURCES:
        raise ConfigError(f"folds.from={source}: choose {', '.join(SOURCES)}")
    named = (dealt["fold"] != "").sum() if "fold" in dealt else 0
    if source == "deal" or (source == "auto" and named == 0):
        return False
    if named < len(dealt):
        unknown = dealt["clip_id"].iloc[0] if named == 0 else dealt.loc[dealt["fold"] == "", "clip_id"].iloc[0]
        raise ConfigError(
            f"the column fold names no fold for {unknown}; name one for every training clip, or set folds.from=deal"
        )
    return True


def _published(dealt: pd.DataFrame, notes: list[str], unit: str) -> np.ndarray:
    """Return (rows,) fold numbers of the column's values, in their order."""
    names = sort_labels(dealt["fold"].unique())
    if len(names) < 2:
        raise ConfigError(f"the column fold has one value, {names[0]!r}; at least 2 folds are needed")
    notes += fold_notes.on_published(dealt, names, unit)
    numbers = {name: number for number, name in enumerate(names)}
    return dealt["fold"].map(numbers).to_numpy(dtype=np.int64)


def _without_straddling_copies(dealt: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Keep one fold's copies of each recording."""
    first = dealt.groupby("recording")["fold"].transform("first")
    elsewhere = dealt["fold"] != first
    what = "clips are copies of clips in another fold"
    notes += fold_notes.on_copies(dealt[elsewhere], dealt, what=what)
    return dealt[~elsewhere]
