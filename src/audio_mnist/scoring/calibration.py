"""Whether probabilities match accuracies, and one number that corrects them. Pure numpy and scipy."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

BINS = 15  # bins of confidence, equal width, as Guo et al.
_LEAST = 1e-12  # least probability; keeps logarithms finite
PRIOR = 2.0  # clips' worth of belief in a temperature of 1; without it a few clips without an error would lead to 0


@dataclass(frozen=True)
class Reliability:
    """Clips, binned by the probability of the predicted class.

    Attributes:
        confidence: (bins,) mean probability, NaN in an empty bin.
        accuracy: (bins,) share of right answers, NaN in an empty bin.
        count: (bins,) number of clips.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of confidence and accuracy, weighted by clips."""
        filled = self.count > 0
        gaps = np.abs(self.confidence - self.accuracy)[filled]
        return float((gaps * self.count[filled]).sum() / self.count.sum())


def reliability(probabilities: np.ndarray, targets: np.ndarray) -> Reliability:
    """Bin (n, C) probabilities of clips with (n,) class numbers.

    Source: Guo et al., "On calibration of modern neural networks", 2017: 15 bins
    of equal width.

    >>> round(reliability(np.array([[0.9, 0.1], [0.7, 0.3]]), np.array([0, 1])).error, 3)
    0.4
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == targets
    which = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # a bin includes its upper edge
    count = np.bincount(which, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(which, weights=confidence, minlength=BINS) / count
        share = np.bincount(which, weights=right, minlength=BINS) / count
    return Reliability(mean, share, count)


def log_loss(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the (n,) negative logarithms of the true classes' probabilities, nats.

    >>> log_loss(np.array([[0.5, 0.5]]), np.array([0])).round(4)
    array([0.6931])
    """
    return -np.log(np.maximum(probabilities[np.arange(len(targets)), targets], _LEAST))


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logarithms of (n, C) probabilities by `temperature`; the order of classes stays.

    >>> tempered(np.array([[0.8, 0.2]]), 0.5).round(4)
    array([[0.9412, 0.0588]])
    """
    return softmax(np.log(np.maximum(probabilities, _LEAST)) / temperature, axis=1)


def fit_temperature(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Find the temperature of least log loss on (n, C) probabilities, 0.05 to 20.

    Source: Guo et al., 2017, on the logarithms of an ensemble's probabilities.
    Deviation: a penalty of `PRIOR` / n times the squared logarithm of the
    temperature. Where n clips have no error, any lower temperature would be better.

    >>> cautious = np.array([[0.6, 0.4]] * 4)
    >>> fit_temperature(cautious, np.array([0, 0, 0, 1])) < 1
    True
    """
    penalty = PRIOR / len(targets)
    found = minimize_scalar(
        lambda log_t: log_loss(tempered(probabilities, np.exp(log_t)), targets).mean() + penalty * log_t**2,
        bounds=(np.log(0.05), np.log(20)),
        method="bounded",
    )
    return float(np.exp(found.x))


def cross_fitted(probabilities: np.ndarray, targets: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """Scale each fold's (n, C) probabilities by the temperature that was fitted on the other folds.

    Where all clips are of one fold there are no others, and nothing changes.

    >>> cross_fitted(np.array([[0.6, 0.4]] * 4), np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])).shape
    (4, 2)
    """
    out = np.array(probabilities, dtype=np.float64)
    for fold in np.unique(fold_of):
        others = fold_of != fold
        if others.any():
            out[~others] = tempered(out[~others], fit_temperature(probabilities[others], targets[others]))
    return out
