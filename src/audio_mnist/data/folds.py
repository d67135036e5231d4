"""Manifest + settings + seed -> disjoint train / selection / fold / test index sets.

Pure: no file is read. The same manifest gives the same folds, whatever the
order of its rows, the run, the feature or the model.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from audio_mnist.errors import ConfigError, DataError

ALL = "all"  # the subset of all training clips
TEST = -1  # a clip of the test split
EXCLUDED = -2  # a training copy of a test clip: in no set
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
        scored: (clips,) bool; false for a copy of a clip that is scored already.
        fingerprint: identifies the assignment, not the settings that led to it.
        notes: what a reader of the scores must know, one sentence each.
    """

    fold_of: np.ndarray
    count: int
    seed: int
    groups: np.ndarray | None
    scored: np.ndarray
    fingerprint: str
    notes: tuple[str, ...]


def assign_folds(manifest: pd.DataFrame, *, count: int, group: str, seed: int) -> Folds:
    """Deal the training clips into stratified folds.

    Copies (equal `recording`) always share a fold, and one of them is scored.
    With `group="speaker"` so do all clips of one speaker. A training clip that is
    a copy of a test clip is left out. Where grouping by speaker meets a test
    split that shares speakers with the training split, no test split is held
    back: its labelled clips join the folds.

    Args:
        manifest: columns clip_id, label, speaker ("" where unknown), split ("train" or "test") and recording (clip_id
            of the first copy).
        count: number of folds, at least 2. The number of speakers makes it leave-one-speaker-out.
        group: "none", "speaker", or "auto": "speaker" where the manifest names one for every clip.
        seed: random seed of the shuffle.

    Raises:
        ConfigError: the settings do not fit the corpus.
        DataError: a class cannot be learnt on these folds.
    """
    if count < 2:
        raise ConfigError(f"folds.count={count}: at least 2 folds are needed")
    table = manifest.sort_values("clip_id", kind="stable")
    rows = table.index.to_numpy()
    by_speaker = _is_by_speaker(table, group)
    notes: list[str] = []

    # what is scored once, at the end
    is_test = (table["split"] == "test").to_numpy()
    if by_speaker:
        is_test = _without_known_speakers(table, is_test, notes)
    fold_of = np.full(len(manifest), TEST, dtype=np.int64)
    excluded = ~is_test & table["recording"].isin(set(table["recording"][is_test])).to_numpy()
    if excluded.any():
        notes.append(_note_on_excluded(table[excluded], table[is_test]))
        fold_of[rows[excluded]] = EXCLUDED

    # the folds
    dealt = table[~is_test & ~excluded]
    lost = set(table["label"][~is_test]) - set(dealt["label"])
    if lost:
        raise DataError(f"every training clip of class {min(lost)!r} is a copy of a test clip")
    numbers = _deal(dealt, count=count, by_speaker=by_speaker, seed=seed)
    _check_classes(dealt, numbers, count)
    fold_of[dealt.index.to_numpy()] = numbers
    used, scored = table[~excluded], np.zeros(len(manifest), dtype=bool)
    labelled_first = used.assign(unknown=used["label"] == "").sort_values("unknown", kind="stable")
    scored[labelled_first.index.to_numpy()] = ~labelled_first["recording"].duplicated().to_numpy()
    if not by_speaker:
        notes += _notes_on_speakers(table, dealt)
    notes += _notes_on_sizes(numbers[scored[dealt.index.to_numpy()]], count)

    lines = zip(table["clip_id"], fold_of[rows], scored[rows], strict=True)
    text = "\n".join(f"{clip}\t{fold}{'' if counts else ' copy'}" for clip, fold, counts in lines)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    groups = manifest["speaker"].to_numpy() if by_speaker else None
    return Folds(fold_of, count, seed, groups, scored, digest, tuple(notes))


def _is_by_speaker(table: pd.DataFrame, group: str) -> bool:
    if group not in ("none", "speaker", "auto"):
        raise ConfigError(f"folds.group={group}: choose none, speaker or auto")
    named = int((table["speaker"] != "").sum())
    if group == "auto":
        if 0 < named < len(table):
            raise ConfigError(
                f"speakers are named for {named} of {len(table)} clips: name the others too, or set folds.group=none "
                "(scores then hold for these speakers, not for new ones)"
            )
        return named == len(table)
    if group == "speaker" and named < len(table):
        unknown = table.loc[table["speaker"] == "", "clip_id"].iloc[0]
        raise ConfigError(
            f"folds.group=speaker, but the corpus names no speaker for {unknown}; "
            "set folds.group=none, or give every clip a speaker"
        )
    return group == "speaker"


def _without_known_speakers(table: pd.DataFrame, is_test: np.ndarray, notes: list[str]) -> np.ndarray:
    """Return the test clips, none with a label where one of their speakers also trains."""
    shared = set(table["speaker"][is_test]) & set(table["speaker"][~is_test])
    if not shared:
        return is_test
    notes.append(
        f"no test split is held back: {len(shared)} of its speakers are training speakers, "
        "so its labelled clips joined the folds (folds.group=speaker)"
    )
    return is_test & ~(table["label"] != "").to_numpy()


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
        selection: "last", "fold", or "inner": one of `inner_folds` parts of the training clips, cut as the folds were,
            chooses the epoch.
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
    train = np.flatnonzero((folds.fold_of >= 0) & (folds.fold_of != fold))
    if subset != ALL:
        train = _subset(manifest.iloc[train], subset, folds.seed)
    chosen = np.empty(0, dtype=np.int64)
    if selection == "inner":
        chosen = _inner_part(manifest.iloc[train], folds, fold, inner_folds)
        train = np.setdiff1d(train, chosen)
    scored = np.flatnonzero((folds.fold_of == fold) & folds.scored)
    return Split(train, chosen, scored, np.flatnonzero(folds.fold_of == TEST))


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
    by_speaker = folds.groups is not None
    if by_speaker:  # a whole speaker where there are few
        groups = _joined_groups(table["speaker"].to_numpy(), table["recording"].to_numpy())
        parts = min(parts, len(np.unique(groups)))
        if parts < 2:
            raise ConfigError(
                "selection=inner needs two training speakers: one to train on, one to choose the epoch. "
                f"fold={fold} leaves one; raise folds.count or set selection=last"
            )
    try:
        numbers = _deal(table, count=parts, by_speaker=by_speaker, seed=folds.seed)
        _check_classes(table, numbers, parts)
    except (ConfigError, DataError) as error:
        raise ConfigError(f"selection=inner cannot set apart 1/{parts} of the training clips: {error}") from None
    return np.sort(table.index.to_numpy()[numbers == 0])


def _deal(table: pd.DataFrame, *, count: int, by_speaker: bool, seed: int) -> np.ndarray:
    """Return (rows,) fold numbers; `table` is sorted by clip_id."""
    classes = table["label"].nunique()
    if classes < 2:
        raise DataError(f"the corpus has {classes} class: at least 2 are needed to train a classifier")
    return _deal_groups(table, count, seed) if by_speaker else _deal_clips(table, count, seed)


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


def _deal_groups(table: pd.DataFrame, count: int, seed: int) -> np.ndarray:
    from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold

    labels = table["label"].to_numpy()
    groups = _joined_groups(table["speaker"].to_numpy(), table["recording"].to_numpy())
    number_of_groups = len(np.unique(groups))
    if number_of_groups < count:
        raise ConfigError(
            f"folds.count={count} is more than the corpus has training speakers ({number_of_groups}); "
            f"set folds.count={number_of_groups} for leave-one-speaker-out"
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
            f"folds.count={count}: the clips of {number_of_groups} speakers cannot fill fold {empty[0]}; "
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
