"""Members' probabilities -> the ensemble's, out of fold and on the test split. Pure."""

from collections.abc import Mapping
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
        without: family -> (n, C) the ensemble's, calibrated, without that family; empty for one family.
        weights: family -> its share in the ensemble.
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
    weights: dict[str, float]
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
    families: Mapping[str, str],
) -> Joint:
    """Join members. Recipes of one family, which differ in the seed alone, have one weight with "stack".

    Args:
        predictions: probabilities of all members.
        targets: (clips,) class numbers.
        fold_of: (clips,) fold numbers.
        combine: "mean", "logit_mean", "vote" or "stack".
        calibrate: "temperature" or "none".
        families: recipe -> label of its family.

    Raises:
        RunError: the recipes have no fold in common.
    """
    covered = np.stack([~np.isnan(p[:, 0]) for p in predictions.oof.values()])  # (recipes, clips)
    rows = np.flatnonzero(covered.all(axis=0))
    if len(rows) == 0:
        raise RunError("the members have no fold in common, so nothing can be scored out of fold; add the missing runs")
    oof = np.stack([p[rows] for p in predictions.oof.values()])  # (recipes, n, C)
    truth, folds = targets[rows], fold_of[rows]
    family_of = np.array([families[recipe] for recipe in predictions.oof])

    # weights and temperature: fitted on all folds to keep, on the other folds to score
    weights = np.full(len(oof), 1 / len(oof))
    if combine == "stack":
        weights = mixture.fit_weights(oof, truth, family_of)
    raw, calibrated = _joined(oof, family_of, truth, folds, combine, calibrate)
    temperature = calibration.fit_temperature(raw, truth) if calibrate == "temperature" else 1.0
    names = list(dict.fromkeys(family_of.tolist()))
    without = {}
    for family in names if len(names) > 1 else []:
        kept = family_of != family
        without[family] = _joined(oof[kept], family_of[kept], truth, folds, combine, calibrate)[1]

    shares = dict(zip(predictions.oof, weights.tolist(), strict=True))
    mixed = Mixture(predictions.recipes, combine, shares, temperature)
    recipe_of, how = np.array(predictions.recipes), "mean" if combine == "stack" else combine
    return Joint(
        rows=rows,
        oof_of=dict(zip(predictions.oof, oof, strict=True)),
        raw_oof=raw,
        oof=calibrated,
        without=without,
        weights={family: float(weights[family_of == family].sum()) for family in names},
        test_rows=predictions.test_rows,
        test_of={r: mixture.combine(predictions.test[recipe_of == r], how) for r in predictions.oof},
        test=mixed(predictions.test),
        mixture=mixed,
        partial=bool((covered.sum(axis=1) > len(rows)).any()),
    )


def _joined(
    oof: np.ndarray, family_of: np.ndarray, truth: np.ndarray, folds: np.ndarray, combine: str, calibrate: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, C) joined probabilities before and after calibration, both cross-fitted."""
    if combine != "stack":
        raw = mixture.combine(oof, combine)
        return raw, calibration.cross_fitted(raw, truth, folds) if calibrate == "temperature" else raw
    raw = mixture.stack(oof, truth, folds, family_of)
    return raw, _stacked(oof, raw, family_of, truth, folds) if calibrate == "temperature" else raw


def _stacked(
    oof: np.ndarray, raw: np.ndarray, family_of: np.ndarray, truth: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    """Calibrate stacked probabilities, cross-fitted.

    The other folds' stacked probabilities will not do to fit a temperature: their
    weights were fitted on the scored fold too. So weights and temperature are
    fitted together on the other folds.
    """
    calibrated = raw.copy()
    for fold in np.unique(folds):
        others = folds != fold
        if others.any():
            weights = mixture.fit_weights(oof[:, others], truth[others], family_of)
            temperature = calibration.fit_temperature(mixture.weighted(oof[:, others], weights), truth[others])
            calibrated[~others] = calibration.tempered(raw[~others], temperature)
    return calibrated
