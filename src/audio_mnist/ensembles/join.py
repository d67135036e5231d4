"""Members' probabilities -> the ensemble's, out of fold and on the test split. Pure."""

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
        without: recipe -> (n, C) the ensemble's, calibrated, of all other recipes; empty for one recipe.
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


def join(predictions: Predictions, targets: np.ndarray, fold_of: np.ndarray, *, combine: str, calibrate: str) -> Joint:
    """Join members.

    Args:
        predictions: probabilities of all members.
        targets: (clips,) class numbers.
        fold_of: (clips,) fold numbers.
        combine: "mean", "logit_mean", "vote" or "stack".
        calibrate: "temperature" or "none".

    Raises:
        RunError: the recipes have no fold in common.
    """
    covered = np.stack([~np.isnan(p[:, 0]) for p in predictions.oof.values()])  # (recipes, clips)
    rows = np.flatnonzero(covered.all(axis=0))
    if len(rows) == 0:
        raise RunError("the members have no fold in common, so nothing can be scored out of fold; add the missing runs")
    oof = np.stack([p[rows] for p in predictions.oof.values()])  # (recipes, n, C)
    truth, folds = targets[rows], fold_of[rows]

    # weights and temperature: fitted on all folds to keep, on the other folds to score
    weights = np.full(len(oof), 1 / len(oof))
    if combine == "stack":
        weights = mixture.fit_weights(oof, truth)
    raw, calibrated = _joined(oof, truth, folds, combine, calibrate)
    temperature = calibration.fit_temperature(raw, truth) if calibrate == "temperature" else 1.0
    without = {}
    if len(oof) > 1:
        for number, recipe in enumerate(predictions.oof):
            without[recipe] = _joined(np.delete(oof, number, axis=0), truth, folds, combine, calibrate)[1]

    shares = dict(zip(predictions.oof, weights.tolist(), strict=True))
    mixed = Mixture(predictions.recipes, combine, shares, temperature)
    recipe_of, how = np.array(predictions.recipes), "mean" if combine == "stack" else combine
    return Joint(
        rows=rows,
        oof_of=dict(zip(predictions.oof, oof, strict=True)),
        raw_oof=raw,
        oof=calibrated,
        without=without,
        test_rows=predictions.test_rows,
        test_of={r: mixture.combine(predictions.test[recipe_of == r], how) for r in predictions.oof},
        test=mixed(predictions.test),
        mixture=mixed,
        partial=bool((covered.sum(axis=1) > len(rows)).any()),
    )


def _joined(
    oof: np.ndarray, truth: np.ndarray, folds: np.ndarray, combine: str, calibrate: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, C) joined probabilities before and after calibration, both cross-fitted."""
    if combine != "stack":
        raw = mixture.combine(oof, combine)
        return raw, calibration.cross_fitted(raw, truth, folds) if calibrate == "temperature" else raw
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
