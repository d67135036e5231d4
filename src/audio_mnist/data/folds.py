"""Manifest + settings + seed -> disjoint train / selection / fold / test index sets.

Pure: no file is read. The same manifest gives the same folds, whatever the
order of its rows, the run, the feature or the model.
"""

import difflib
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from audio_mnist.data.corpora.base import sort_labels
from audio_mnist.errors import ConfigError, DataError

ALL = "all"  # the subset of all training clips
TEST = -1  # a clip of the test split
EXCLUDED = -2  # a training copy of a test clip, or of a clip in another published fold: in no set
VALIDATION = -3  # a clip of the published validation split: it chooses the epoch, or trains; it is never scored
SOURCES = ("auto", "column", "deal")  # where folds come from
_KNOWN = {"clip_id", "path", "label", "speaker", "split", "fold", "content", "duration_s", "recording"}
_OPTIONAL = ("speaker", "split", "fold", "label", "path")  # columns of a person's table that have a meaning
_SHOWN = 5  # most copies that a note names
_UNEQUAL = 3  # a note is due where the largest fold has this many times the clips of the smallest


@dataclass(frozen=True)
class Split:
    """Row numbers of the manifest, int64, disjoint.

    Attributes:
        train: clips that train.
        selection: clips that choose the epoch; empty unless selection=inner.
        fold: clips that are scored and never trained on; one of several copies.
        test: clips of the test split.
    """

    train: np.ndarray
    selection: np.ndarray
    fold: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Folds:
    """Fold number of every clip.

    Attributes:
        fold_of: (clips,) int64; 0 to count-1, TEST or EXCLUDED.
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
    notes = notes_on_columns(table, unit)

    # what is scored once, at the end
    is_test, is_val = ((table["split"] == split).to_numpy() for split in ("test", "val"))
    if unit:
        notes += _note_on_shared_groups(table, is_test, unit)
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
    else:
        numbers = _deal(dealt, count=count, unit=unit, seed=seed)
    fold_of[rows[excluded]] = EXCLUDED
    _check_classes(dealt, numbers, count)
    fold_of[dealt.index.to_numpy()] = numbers
    scored = _scored(table[~excluded & ~is_val], len(manifest))
    if not unit:
        notes += _notes_on_speakers(table, dealt)
    notes += _notes_on_sizes(numbers[scored[dealt.index.to_numpy()]], count)

    digest = _fingerprint(table["clip_id"], fold_of[rows], scored[rows])
    groups = manifest[unit].to_numpy() if unit else None
    return Folds(fold_of, count, seed, groups, unit or "speaker", scored, digest, tuple(notes))


def _copies(table: pd.DataFrame, is_test: np.ndarray, is_val: np.ndarray, notes: list[str]) -> np.ndarray:
    """Mark training copies of test clips, and validation copies of test or training clips."""
    recordings = table["recording"]
    excluded = ~is_test & recordings.isin(set(recordings[is_test])).to_numpy()
    if excluded.any():
        notes.append(_note_on_excluded(table[excluded], table[is_test]))
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
    choices = [str(name) for name in table if name == "speaker" or name not in _KNOWN]
    if column not in choices:
        named_ones = [name for name in choices if (table[name] != "").any()] or ["none"]
        raise ConfigError(f"folds.group={group}: choose none, auto or a column; the corpus has {', '.join(named_ones)}")
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


def notes_on_columns(table: pd.DataFrame, unit: str) -> list[str]:
    """Name columns that nothing uses, with the name that may have been meant.

    Args:
        table: a manifest.
        unit: the column that groups clips, "" for none.
    """
    unused = [str(name) for name in table if name not in _KNOWN and name != unit]
    if not unused:
        return []
    meant = {name: difflib.get_close_matches(name.lower(), _OPTIONAL, 1, 0.75) for name in unused}
    guesses = [f"{name}; did you mean {close[0]}?" for name, close in meant.items() if close]
    if guesses:
        return [f"unused column {guess}" for guess in guesses]
    shown = ", ".join(unused[:_SHOWN]) + (f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else "")
    return [f"unused columns: {shown}; folds.group=COLUMN keeps the clips of one value together"]


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
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    notes.append(f"folds 0 to {len(names) - 1} are the corpus's own: {shown} of the column fold")
    if unit:
        straddling = int((dealt.groupby(unit)["fold"].nunique() > 1).sum())
        if straddling:
            notes.append(f"{straddling} {unit}s are in several of these folds: scores do not hold for new {unit}s")
    numbers = {name: number for number, name in enumerate(names)}
    return dealt["fold"].map(numbers).to_numpy(dtype=np.int64)


def _without_straddling_copies(dealt: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Keep one fold's copies of each recording."""
    first = dealt.groupby("recording")["fold"].transform("first")
    elsewhere = dealt["fold"] != first
    if not elsewhere.any():
        return dealt
    original = dict(zip(dealt["recording"][::-1], dealt["clip_id"][::-1], strict=True))
    named = [f"{row.clip_id} (of {original[row.recording]})" for row in dealt[elsewhere].itertuples()]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    listed = f"{', '.join(named[:_SHOWN])}{more}"
    notes.append(f"{len(named)} clips are copies of clips in another fold and were left out: {listed}")
    return dealt[~elsewhere]


def _note_on_shared_groups(table: pd.DataFrame, is_test: np.ndarray, unit: str) -> list[str]:
    """Say where groups of the test split also train; the split stays as the corpus names it."""
    shared = set(table[unit][is_test]) & set(table[unit][~is_test])
    if not shared:
        return []
    return [
        f"{len(shared)} {unit}s of the test split are training {unit}s too, so its score does not hold for new {unit}s"
    ]


def _note_on_excluded(excluded: pd.DataFrame, test: pd.DataFrame) -> str:
    original = dict(zip(test["recording"], test["clip_id"], strict=True))
    named = [f"{row.clip_id} (of {original[row.recording]})" for row in excluded.itertuples()]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    return f"{len(named)} training clips are copies of test clips and were left out: {', '.join(named[:_SHOWN])}{more}"


def _notes_on_sizes(numbers: np.ndarray, count: int) -> list[str]:
    sizes = np.bincount(numbers, minlength=count)
    if sizes.max() < _UNEQUAL * sizes.min():
        return []
    listed = ", ".join(map(str, sizes))
    return [f"the folds have very unequal numbers of clips ({listed}), so the score is mostly that of the largest"]


def _notes_on_speakers(table: pd.DataFrame, dealt: pd.DataFrame) -> list[str]:
    if not (table["speaker"] != "").all():
        return ["the speakers are not known: folds may share speakers, and scores hold for these speakers only"]
    if dealt["speaker"].nunique() > 1:
        return ["folds share speakers (folds.group=none): scores hold for these speakers, not for new ones"]
    return []


def split_clips(
    manifest: pd.DataFrame, folds: Folds, *, fold: int, selection: str, inner_folds: int = 6, subset: str = ALL
) -> Split:
    """Return the index sets of one run.

    Args:
        manifest: the one that the folds were dealt from.
        folds: folds of all clips.
        fold: the scored fold, 0 to count-1.
        selection: "last", "fold", or "inner": the published validation split chooses the epoch. Without one, one of
            `inner_folds` parts of the training clips does, cut as the folds were.
        inner_folds: number of parts; at most the number of training speakers where folds are by speaker.
        subset: training clips that are used: "all", "clips/N" (one of N of each class) or "speakers/N". The subset of a
            larger N is part of that of a smaller one.

    Raises:
        ConfigError: there is no such fold or selection, or the subset lacks speakers or a class.
    """
    if not 0 <= fold < folds.count:
        raise ConfigError(f"fold={fold} does not exist: folds.count={folds.count}, so fold is 0 to {folds.count - 1}")
    if selection not in ("last", "inner", "fold"):
        raise ConfigError(f"selection={selection}: choose last, inner or fold")
    named = _validation(folds, fold)
    train = np.flatnonzero((folds.fold_of >= 0) & (folds.fold_of != fold))
    if selection != "inner":
        train = np.sort(np.concatenate([train, named]))
    elif folds.groups is not None:
        train = train[~np.isin(folds.groups[train], folds.groups[named])]
    if subset != ALL:
        train = _subset(manifest.iloc[train], subset, folds.seed)
    chosen = np.empty(0, dtype=np.int64)
    if selection == "inner" and len(named):
        chosen = named
    elif selection == "inner":
        chosen = _inner_part(manifest.iloc[train], folds, fold, inner_folds)
        train = np.setdiff1d(train, chosen)
    scored = np.flatnonzero((folds.fold_of == fold) & folds.scored)
    return Split(train, chosen, scored, np.flatnonzero(folds.fold_of == TEST))


def _validation(folds: Folds, fold: int) -> np.ndarray:
    """Return the rows of the published validation split, without groups of the scored fold."""
    rows = np.flatnonzero(folds.fold_of == VALIDATION)
    if folds.groups is None or not len(rows):
        return rows
    others = rows[~np.isin(folds.groups[rows], folds.groups[folds.fold_of == fold])]
    if not len(others):
        raise ConfigError(
            f"fold={fold} holds every {folds.unit} of the validation split, so none of its clips can be used; "
            "give the split other clips, or leave it out"
        )
    return others


def _subset(train: pd.DataFrame, subset: str, seed: int) -> np.ndarray:
    """Return the sorted rows of a share of the training clips; the order of clips and speakers is drawn once."""
    unit, _, parts = subset.partition("/")
    labels = train["label"].unique()
    if unit == "clips":
        units, by = train["recording"], train["label"]
    elif (train["speaker"] == "").any():
        raise ConfigError(
            f"subset={subset}: the corpus does not name every speaker; "
            "sweep over clips alone, subset=all,clips/2,clips/4,clips/8"
        )
    else:
        units, by = train["speaker"], pd.Series("", index=train.index)
    kept = np.zeros(len(train), dtype=bool)
    for value in by.unique():
        names = units[by == value].unique().tolist()
        names.sort(key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
        first = set(names[: max(1, round(len(names) / int(parts)))])
        kept |= (units.isin(first) & (by == value)).to_numpy()
    lost = set(labels) - set(train["label"][kept])
    if lost:
        raise ConfigError(f"subset={subset} has no clip of class {min(lost)!r}; take a larger share")
    return np.sort(train.index.to_numpy()[kept])


def _inner_part(train: pd.DataFrame, folds: Folds, fold: int, parts: int) -> np.ndarray:
    """Return the rows of one part of the training clips, cut as the folds were."""
    table = train.sort_values("clip_id", kind="stable")
    unit = folds.unit if folds.groups is not None else ""
    if unit:  # a whole group where there are few
        groups = _joined_groups(table[unit].to_numpy(), table["recording"].to_numpy())
        parts = min(parts, len(np.unique(groups)))
        if parts < 2:
            raise ConfigError(
                f"selection=inner needs two training {unit}s: one to train on, one to choose the epoch. "
                f"fold={fold} leaves one; raise folds.count or set selection=last"
            )
    try:
        numbers = _deal(table, count=parts, unit=unit, seed=folds.seed)
        _check_classes(table, numbers, parts)
    except (ConfigError, DataError) as error:
        raise ConfigError(f"selection=inner cannot set apart 1/{parts} of the training clips: {error}") from None
    return np.sort(table.index.to_numpy()[numbers == 0])


def _deal(table: pd.DataFrame, *, count: int, unit: str, seed: int) -> np.ndarray:
    """Return (rows,) fold numbers; `table` is sorted by clip_id."""
    classes = table["label"].nunique()
    if classes < 2:
        raise DataError(f"the corpus has {classes} class: at least 2 are needed to train a classifier")
    return _deal_groups(table, count, unit, seed) if unit else _deal_clips(table, count, seed)


def _deal_clips(table: pd.DataFrame, count: int, seed: int) -> np.ndarray:
    from sklearn.model_selection import StratifiedKFold

    labels = table["label"].to_numpy()
    first = (~table["recording"].duplicated()).to_numpy()  # one clip stands for all its copies
    smallest = table["label"][first].value_counts()
    if smallest.iloc[-1] < count:
        raise ConfigError(
            f"folds.count={count} is more than class {smallest.index[-1]!r} has "
            f"different clips ({smallest.iloc[-1]}); lower folds.count or add clips"
        )
    dealt = np.full(len(table), -1, dtype=np.int64)
    kept = np.flatnonzero(first)
    cutter = StratifiedKFold(count, shuffle=True, random_state=seed)
    for number, (_, part) in enumerate(cutter.split(kept, labels[kept])):
        dealt[kept[part]] = number
    fold_by_recording = dict(zip(table["recording"].to_numpy()[kept], dealt[kept], strict=True))
    return table["recording"].map(fold_by_recording).to_numpy(dtype=np.int64)


def _deal_groups(table: pd.DataFrame, count: int, unit: str, seed: int) -> np.ndarray:
    from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold

    labels = table["label"].to_numpy()
    groups = _joined_groups(table[unit].to_numpy(), table["recording"].to_numpy())
    number_of_groups = len(np.unique(groups))
    if number_of_groups < count:
        raise ConfigError(
            f"folds.count={count} is more than the corpus has training {unit}s ({number_of_groups}); "
            f"set folds.count={number_of_groups} for leave-one-{unit}-out"
        )
    cutter: LeaveOneGroupOut | StratifiedGroupKFold
    if number_of_groups == count:
        cutter = LeaveOneGroupOut()
    else:
        cutter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    dealt = np.full(len(table), -1, dtype=np.int64)
    for number, (_, part) in enumerate(cutter.split(labels, labels, groups)):
        dealt[part] = number
    empty = np.setdiff1d(np.arange(count), dealt)
    if len(empty):
        raise ConfigError(
            f"folds.count={count}: the clips of {number_of_groups} {unit}s cannot fill fold {empty[0]}; "
            "lower folds.count or choose another folds.seed"
        )
    return dealt


def _joined_groups(speakers: np.ndarray, recordings: np.ndarray) -> np.ndarray:
    """Return (rows,) group numbers; speakers who share a recording are one group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    speaker, recording = (np.unique(a, return_inverse=True)[1] for a in (speakers, recordings))
    nodes = speaker.max() + 1 + recording.max() + 1
    edges = coo_array((np.ones(len(speaker)), (speaker, speaker.max() + 1 + recording)), shape=(nodes, nodes))
    return connected_components(edges, directed=False)[1][speaker]


def _check_classes(table: pd.DataFrame, dealt: np.ndarray, count: int) -> None:
    for label, part in pd.Series(dealt).groupby(table["label"].to_numpy()):
        if part.nunique() == 1:
            raise DataError(
                f"every clip of class {label!r} falls in fold {part.iloc[0]} of {count}, so it cannot be learnt "
                "when that fold is scored; add clips of other speakers, or set folds.group=none"
            )
