"""Clips or groups of clips dealt into stratified folds of about equal size."""

import numpy as np
import pandas as pd

from audio_mnist.errors import ConfigError, DataError


def deal(table: pd.DataFrame, *, count: int, unit: str, seed: int) -> np.ndarray:
    """Deal clips, or groups of clips, into stratified folds; copies share a fold.

    Args:
        table: clips with columns label and recording, sorted by clip_id.
        count: number of folds.
        unit: the column of the groups that stay whole, "" for none.
        seed: random seed of the shuffle.

    Returns:
        (rows,) int64, 0 to count-1.

    Raises:
        ConfigError: the clips cannot fill the folds.
        DataError: there are fewer than two classes.
    """
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
    groups = joined_groups(table[unit].to_numpy(), table["recording"].to_numpy())
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


def joined_groups(speakers: np.ndarray, recordings: np.ndarray) -> np.ndarray:
    """Return (rows,) group numbers; speakers who share a recording are one group.

    Args:
        speakers: (rows,) names.
        recordings: (rows,) clip_id of each clip's first copy.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    speaker, recording = (np.unique(a, return_inverse=True)[1] for a in (speakers, recordings))
    nodes = speaker.max() + 1 + recording.max() + 1
    edges = coo_array((np.ones(len(speaker)), (speaker, speaker.max() + 1 + recording)), shape=(nodes, nodes))
    return connected_components(edges, directed=False)[1][speaker]


def other_groups(unit: str) -> str:
    """Say what helps where all clips of a class were dealt into one fold."""
    return f"add clips of other {unit}s, or set folds.group=none" if unit else "add clips"


def check_classes(table: pd.DataFrame, dealt: np.ndarray, count: int, remedy: str) -> None:
    """Check that no class lies in one fold.

    Args:
        table: clips with a column label.
        dealt: (rows,) fold numbers.
        count: number of folds.
        remedy: what a person can do.

    Raises:
        DataError: a class does.
    """
    for label, part in pd.Series(dealt).groupby(table["label"].to_numpy()):
        if part.nunique() == 1:
            raise DataError(
                f"every clip of class {label!r} falls in fold {part.iloc[0]} of {count}, so it cannot be learnt "
                f"when that fold is scored; {remedy}"
            )
