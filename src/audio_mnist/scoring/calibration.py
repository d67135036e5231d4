"""How far probabilities can be taken at their word, and one number that mends them. Pure numpy."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

BINS = 15  # of confidence, equal width, as Guo et al.
_LEAST = 1e-12  # probability; keeps logarithms finite


@dataclass(frozen=True)
class Reliability:
    """Clips binned by the probability of the predicted class.

    Attributes:
        confidence: (bins,) mean of that probability, NaN in an empty bin.
        accuracy: (bins,) share of right answers, NaN in an empty bin.
        count: (bins,) clips.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of the two, weighted by clips."""
        filled = self.count > 0
        gaps = np.abs(self.confidence - self.accuracy)[filled]
        return float((gaps * self.count[filled]).sum() / self.count.sum())


def reliability(probabilities: np.ndarray, targets: np.ndarray) -> Reliability:
    """Bins (n, C) probabilities of (n,) class numbers.

    Source: Guo et al., "On calibration of modern neural networks", 2017: 15 bins
    of equal width.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == targets
    which = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # a bin holds its upper edge
    count = np.bincount(which, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(which, weights=confidence, minlength=BINS) / count
        share = np.bincount(which, weights=right, minlength=BINS) / count
    return Reliability(mean, share, count)


def log_loss(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(n,) negative logarithm of the true class' probability, nats."""
    return -np.log(np.maximum(probabilities[np.arange(len(targets)), targets], _LEAST))


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """(n, C) probabilities whose logarithms are divided by `temperature`; the order of classes stays."""
    return softmax(np.log(np.maximum(probabilities, _LEAST)) / temperature, axis=1)


def fit_temperature(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """The temperature of least log loss on (n, C) probabilities, 0.05 to 20.

    Source: Guo et al., 2017, on the logarithms of an ensemble's probabilities.
    """
    found = minimize_scalar(
        lambda log_t: log_loss(tempered(probabilities, np.exp(log_t)), targets).mean(),
        bounds=(np.log(0.05), np.log(20)),
        method="bounded",
    )
    return float(np.exp(found.x))


def cross_fitted(probabilities: np.ndarray, targets: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """(n, C) probabilities, those of each fold at the temperature that the other folds' clips give.

    With clips of one fold alone there are no others, and they stay as they are.
    """
    out = np.array(probabilities, dtype=np.float64)
    for fold in np.unique(fold_of):
        others = fold_of != fold
        if others.any():
            out[~others] = tempered(out[~others], fit_temperature(probabilities[others], targets[others]))
    return out
