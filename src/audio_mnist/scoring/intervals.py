"""Right and wrong answers -> accuracies, intervals and paired comparisons. Pure numpy and scipy."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, bootstrap, norm, permutation_test

RESAMPLES = 9999  # draws of a bootstrap or a permutation test


@dataclass(frozen=True)
class Score:
    """Accuracy with its 95% interval.

    Attributes:
        accuracy: share of right answers.
        low: lower end of the interval.
        high: upper end of the interval.
        n: number of clips.
        speakers: number of speakers that were resampled; 0 where clips count as independent.
    """

    accuracy: float
    low: float
    high: float
    n: int
    speakers: int = 0


def score(correct: np.ndarray, speakers: np.ndarray | None = None) -> Score:
    """Score (n,) booleans, n at least 1.

    The interval is Wilson's (1927), which takes clips as independent. Where
    there are at least two speakers, they are resampled instead (percentile
    bootstrap): the answers to one speaker's clips are alike, and the score
    should hold for other speakers. That interval is never narrower than
    Wilson's.

    Args:
        correct: right answers.
        speakers: (n,) names, None where clips are independent.

    >>> result = score(np.array([True] * 9 + [False]))
    >>> result.accuracy, round(result.low, 4), round(result.high, 4)
    (0.9, 0.5958, 0.9821)
    """
    right, n = int(np.sum(correct)), len(correct)
    interval = binomtest(right, n).proportion_ci(0.95, method="wilson")
    low, high = float(interval.low), float(interval.high)
    sums, sizes = _by_speaker(correct, speakers)
    if len(sizes) > 1:
        low, high = _widened(low, high, sums, sizes)
    return Score(right / n, low, high, n, len(sizes))


@dataclass(frozen=True)
class Paired:
    """Two classifiers on the same clips.

    Attributes:
        difference: accuracy of the first minus that of the second.
        low: lower end of its 95% interval.
        high: upper end of its 95% interval.
        p_value: two-sided.
        only_first: number of clips that only the first got right.
        only_second: number of clips that only the second got right.
        n: number of clips.
        speakers: number of speakers that were resampled; 0 where clips count as independent.
    """

    difference: float
    low: float
    high: float
    p_value: float
    only_first: int
    only_second: int
    n: int
    speakers: int = 0


def compare(first: np.ndarray, second: np.ndarray, speakers: np.ndarray | None = None) -> Paired:
    """Compare two (n,) boolean vectors of right answers, clip by clip.

    Without speakers: adjusted Wald interval (Agresti and Min, 2005) and exact
    McNemar test. With speakers: these are resampled (percentile bootstrap, never
    narrower than the former), and the test exchanges the two classifiers for
    whole speakers (permutation test).

    Args:
        first: right answers of the first classifier.
        second: right answers of the second classifier.
        speakers: (n,) names, None where clips are independent.

    >>> result = compare(np.array([True] * 8 + [False] * 2), np.array([True] * 4 + [False] * 6))
    >>> result.difference, result.only_first, result.p_value
    (0.4, 4, 0.125)
    """
    n = len(first)
    b, c = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    p_value = binomtest(b, b + c).pvalue if b + c else 1.0
    # Agresti and Min add half a clip to each of the four cells
    b_, c_, n_ = b + 0.5, c + 0.5, n + 2
    centre = (b_ - c_) / n_
    reach = norm.ppf(0.975) * np.sqrt((b_ + c_) - (b_ - c_) ** 2 / n_) / n_
    low, high = max(-1.0, centre - reach), min(1.0, centre + reach)
    sums, sizes = _by_speaker(first.astype(int) - second.astype(int), speakers)
    if len(sizes) > 1:
        low, high = _widened(low, high, sums, sizes)
        p_value = permutation_test(
            (sums, np.zeros_like(sums)),
            lambda x, y, axis: (x - y).sum(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=RESAMPLES,
            rng=np.random.default_rng(0),
        ).pvalue
    return Paired((b - c) / n, float(low), float(high), float(p_value), b, c, n, len(sizes))


def _by_speaker(values: np.ndarray, speakers: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return each speaker's sum of `values` and number of clips; empty for fewer than two speakers."""
    if speakers is None:
        return np.empty(0), np.empty(0)
    names, which = np.unique(speakers, return_inverse=True)
    if len(names) < 2:
        return np.empty(0), np.empty(0)
    return np.bincount(which, weights=values.astype(float)), np.bincount(which).astype(float)


def _widened(low: float, high: float, sums: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Widen an interval to include the bootstrap interval of `sums` over `sizes`, with speakers resampled."""
    resampled = bootstrap(
        (sums, sizes),
        lambda s, z, axis: s.sum(axis=axis) / z.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return min(low, float(resampled.low)), max(high, float(resampled.high))


def mean_difference(
    first: np.ndarray, second: np.ndarray, speakers: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Return the mean of `first` minus `second`, paired, with its 95% interval (percentile bootstrap).

    Args:
        first: (n,) values of the first, such as log losses.
        second: (n,) values of the second.
        speakers: (n,) names of the speakers to resample; None resamples clips.

    >>> mean_difference(np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    (1.0, 1.0, 1.0)
    """
    groups = np.arange(len(first)) if speakers is None else speakers
    sums, sizes = _by_speaker(first - second, groups)
    mean = float((first - second).mean())
    if len(sizes) < 2:
        return mean, mean, mean
    return mean, *_widened(mean, mean, sums, sizes)
