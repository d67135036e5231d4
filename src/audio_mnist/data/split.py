"""Clips of one run: which train, which choose the epoch, which are scored."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from audio_mnist.data.dealing import check_classes, deal, joined_groups, other_groups
from audio_mnist.data.folds import TEST, VALIDATION, Folds
from audio_mnist.errors import ConfigError, DataError

ALL = "all"  # the subset of all training clips


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
        ConfigError: there is no such fold or selection, or the training clips lack speakers or a class.
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
        train = _without_groups(manifest, train, named, folds)
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


def _without_groups(manifest: pd.DataFrame, train: np.ndarray, named: np.ndarray, folds: Folds) -> np.ndarray:
    """Return the training rows that share no group with the validation split."""
    assert folds.groups is not None
    kept = train[~np.isin(folds.groups[train], folds.groups[named])]
    lost = set(manifest["label"].iloc[train]) - set(manifest["label"].iloc[kept])
    if lost:
        raise ConfigError(
            f"selection=inner: every training clip of class {min(lost)!r} has a {folds.unit} that the validation split "
            f"has too. Set selection=last, or give that split {folds.unit}s that do not train"
        )
    return kept


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
        groups = joined_groups(table[unit].to_numpy(), table["recording"].to_numpy())
        parts = min(parts, len(np.unique(groups)))
        if parts < 2:
            raise ConfigError(
                f"selection=inner needs two training {unit}s: one to train on, one to choose the epoch. "
                f"fold={fold} leaves one; raise folds.count or set selection=last"
            )
    try:
        numbers = deal(table, count=parts, unit=unit, seed=folds.seed)
        check_classes(table, numbers, parts, other_groups(unit))
    except (ConfigError, DataError) as error:
        raise ConfigError(f"selection=inner cannot set apart 1/{parts} of the training clips: {error}") from None
    return np.sort(table.index.to_numpy()[numbers == 0])
