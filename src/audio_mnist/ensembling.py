"""Member probabilities -> combined probabilities, scores and intervals. Pure numpy."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm


def combine(probabilities: np.ndarray, how: str) -> np.ndarray:
    """Joins members' class probabilities.

    Args:
        probabilities: (M, n, C), M members, rows sum to 1.
        how: "mean" of probabilities; "logit_mean", the normalised geometric
            mean; "vote", the share of members whose first choice a class is,
            ties broken by the mean probability.

    Returns:
        (n, C) float64, rows sum to 1.

    Raises:
        ValueError: `how` is none of these.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    mean = probabilities.mean(axis=0)
    if how == "mean":
        return mean
    if how == "logit_mean":
        logs = np.log(np.maximum(probabilities, 1e-12)).mean(axis=0)
        powers = np.exp(logs - logs.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)
    if how == "vote":
        classes = probabilities.shape[2]
        votes = np.eye(classes)[probabilities.argmax(axis=2)].mean(axis=0)
        # less than half a vote in all, so that it only decides between equals
        broken = votes + mean / (2 * len(probabilities))
        return broken / broken.sum(axis=1, keepdims=True)
    raise ValueError(f"combine={how}: expected mean, logit_mean or vote")


@dataclass(frozen=True)
class Score:
    """Accuracy with its 95% interval (Wilson, 1927); clips count as independent."""

    accuracy: float
    low: float
    high: float
    n: int


def score(correct: np.ndarray) -> Score:
    """Accuracy of (n,) booleans, n at least 1."""
    right, n = int(np.sum(correct)), len(correct)
    interval = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return Score(right / n, float(interval.low), float(interval.high), n)


@dataclass(frozen=True)
class Paired:
    """Two classifiers on the same clips.

    Attributes:
        difference: accuracy of the first less that of the second.
        low: lower end of its 95% interval (adjusted Wald: Agresti and Min, 2005).
        high: upper end.
        p_value: exact McNemar test, two-sided.
        only_first: clips that the first alone got right.
        only_second: clips that the second alone got right.
        n: clips.
    """

    difference: float
    low: float
    high: float
    p_value: float
    only_first: int
    only_second: int
    n: int


def compare(first: np.ndarray, second: np.ndarray) -> Paired:
    """Paired comparison of two (n,) boolean vectors of right answers."""
    n = len(first)
    b, c = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    p = binomtest(b, b + c).pvalue if b + c else 1.0
    # Agresti and Min: half a clip is added to each of the four cells
    b_, c_, n_ = b + 0.5, c + 0.5, n + 2
    centre = (b_ - c_) / n_
    reach = norm.ppf(0.975) * np.sqrt((b_ + c_) - (b_ - c_) ** 2 / n_) / n_
    return Paired((b - c) / n, float(max(-1, centre - reach)), float(min(1, centre + reach)), float(p), b, c, n)
