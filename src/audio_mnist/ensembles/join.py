"""Members' probabilities -> the ensemble's, out of fold and on the test split. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from audio_mnist.ensembles.predictions import Predictions
from audio_mnist.errors import RunError
from audio_mnist.scoring import calibration, mixture
from audio_mnist.scoring.mixture import Mixture


@dataclass(frozen=True)
class Joint:
    """Joined probabilities.

    Attributes:
        rows: (n,) manifest rows of the clips that all recipes scored out of fold; of several copies one.
        oof_of: recipe -> (n, C).
        raw_oof: (n, C) the ensemble's before calibration.
        oof: (n, C) the ensemble's, calibrated; each fold by the other folds.
        without: family -> (n, C) the ensemble's, calibrated, of all other families; empty for one family. A family is
            named by its first recipe.
        test_rows: manifest rows of the test clips.
        test_of: recipe -> (test clips, C), the mean of its runs.
        test: (test clips, C) the ensemble's, calibrated by all clips out of fold.
        mixture: what made `test` of the members' probabilities.
        partial: whether recipes cover different folds.
    """

    rows: np.ndarray
    oof_of: dict[str, np.ndarray]
    raw_oof: np.ndarray
    oof: np.ndarray
    without: dict[str, np.ndarray]
    test_rows: np.ndarray
    test_of: dict[str, np.ndarray]
    test: np.ndarray
    mixture: Mixture
    partial: bool


def join(
    predictions: Predictions,
    targets: np.ndarray,
    fold_of: np.ndarray,
    *,
    combine: str,
    calibrate: str,
    families: Mapping[str, str] | None = None,
) -> Joint:
    """Join members.

    Recipes that differ in the seed alone are one family. With "stack" a family has
    one weight: its seeds differ by chance, so weights of their own would be chance too.

    Args:
        predictions: probabilities of all members.
        targets: (clips,) class numbers.
        fold_of: (clips,) fold numbers.
        combine: "mean", "logit_mean", "vote" or "stack".
        calibrate: "temperature" or "none".
        families: recipe -> label of its family; each recipe is its own without it.

    Raises:
        RunError: the recipes have no fold in common.
    """
    covered = np.stack([~np.isnan(p[:, 0]) for p in predictions.oof.values()])  # (recipes, clips)
    rows = np.flatnonzero(covered.all(axis=0))
    if len(rows) == 0:
        raise RunError("the members have no fold in common, so nothing can be scored out of fold; add the missing runs")
    oof = np.stack([p[rows] for p in predictions.oof.values()])  # (recipes, n, C)
    truth, folds = targets[rows], fold_of[rows]

    # recipes by family
    firsts = _firsts(predictions.oof, families or {})
    own = {first: oof[[firsts[recipe] == first for recipe in predictions.oof]] for first in firsts.values()}

    # weights and temperature: fitted on all folds to keep, on the other folds to score
    parts = list(own.values())  # of each family (seeds, n, C)
    weights = np.array([len(seeds) for seeds in parts]) / len(oof)
    if combine == "stack":
        weights = mixture.fit_weights(_means(parts), truth)
    raw, calibrated = _joined(parts, truth, folds, combine, calibrate)
    temperature = calibration.fit_temperature(raw, truth) if calibrate == "temperature" else 1.0
    others = {first: [seeds for name, seeds in own.items() if name != first] for first in own if len(own) > 1}

    shares = dict(zip(own, weights.tolist(), strict=True))
    mixed = Mixture(tuple(firsts[recipe] for recipe in predictions.recipes), combine, shares, temperature)
    recipe_of, how = np.array(predictions.recipes), "mean" if combine == "stack" else combine
    return Joint(
        rows=rows,
        oof_of=dict(zip(predictions.oof, oof, strict=True)),
        raw_oof=raw,
        oof=calibrated,
        without={first: _joined(rest, truth, folds, combine, calibrate)[1] for first, rest in others.items()},
        test_rows=predictions.test_rows,
        test_of={r: mixture.combine(predictions.test[recipe_of == r], how) for r in predictions.oof},
        test=mixed(predictions.test),
        mixture=mixed,
        partial=bool((covered.sum(axis=1) > len(rows)).any()),
    )


def _firsts(recipes: Iterable[str], families: Mapping[str, str]) -> dict[str, str]:
    """Return recipe -> first recipe of its family."""
    first_of: dict[str, str] = {}
    return {recipe: first_of.setdefault(families.get(recipe, recipe), recipe) for recipe in recipes}


def _means(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return (families, n, C) means over seeds."""
    return np.stack([seeds.mean(axis=0) for seeds in parts])


def _joined(
    parts: Sequence[np.ndarray], truth: np.ndarray, folds: np.ndarray, combine: str, calibrate: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, C) joined probabilities before and after calibration, both cross-fitted."""
    if combine != "stack":
        raw = mixture.combine(np.concatenate(parts), combine)
        return raw, calibration.cross_fitted(raw, truth, folds) if calibrate == "temperature" else raw
    oof = _means(parts)
    raw = mixture.stack(oof, truth, folds)
    return raw, _stacked(oof, raw, truth, folds) if calibrate == "temperature" else raw


def _stacked(oof: np.ndarray, raw: np.ndarray, truth: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Calibrate stacked probabilities, cross-fitted.

    The other folds' stacked probabilities will not do to fit a temperature: their
    weights were fitted on the scored fold too. So weights and temperature are
    fitted together on the other folds.
    """
    calibrated = raw.copy()
    for fold in np.unique(folds):
        others = folds != fold
        if others.any():
            weights = mixture.fit_weights(oof[:, others], truth[others])
            temperature = calibration.fit_temperature(mixture.weighted(oof[:, others], weights), truth[others])
            calibrated[~others] = calibration.tempered(raw[~others], temperature)
    return calibrated
