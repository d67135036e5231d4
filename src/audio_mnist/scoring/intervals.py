"""Right and wrong answers -> accuracies, intervals and paired comparisons. Pure numpy and scipy.

Interval and test are one procedure: the p-value of a difference is below 0.05 exactly where its
95% interval excludes 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm
from scipy.stats import t as student

from audio_mnist.scoring import speakers as by_speaker

LEVEL = 0.95
FEW = 20  # fewer speakers than this make intervals wide, and the text mentions it


@dataclass(frozen=True)
class Score:
    """A score, such as accuracy, with its 95% interval.

    Attributes:
        value: the score; of accuracy the share of right answers.
        low: lower end of the interval.
        high: upper end of the interval.
        n: number of recordings.
        speakers: number of speakers that the interval is about; 0 where recordings count as independent.
        seeds: the score of each seed, where this is their mean; the interval is then for a run of one seed.
    """

    value: float
    low: float
    high: float
    n: int
    speakers: int = 0
    seeds: tuple[float, ...] = ()


def average(scores: Sequence[Score]) -> Score:
    """Return the mean of the scores of several seeds on the same recordings; one score stays as it is.

    >>> average([Score(0.8, 0.7, 0.9, 10), Score(0.9, 0.8, 1.0, 10)]).seeds
    (0.8, 0.9)
    """
    if len(scores) == 1:
        return scores[0]
    value, low, high = (float(np.mean([getattr(one, key) for one in scores])) for key in ("value", "low", "high"))
    return Score(value, low, high, scores[0].n, scores[0].speakers, tuple(one.value for one in scores))


def score(correct: np.ndarray, speakers: np.ndarray | None = None) -> Score:
    """Score (n,) right answers, n at least 1: booleans, or shares such as the mean over seeds.

    Without speakers: Wilson's interval, 1927, which takes recordings as
    independent. With two speakers or more the interval is for other speakers. It
    also covers the one of `scoring.speakers` and Student's t interval of the
    jackknife over speakers.

    Args:
        correct: right answers.
        speakers: (n,) names, None where recordings are independent.

    >>> result = score(np.array([True] * 9 + [False]))
    >>> result.value, round(result.low, 4), round(result.high, 4)
    (0.9, 0.5958, 0.9821)
    """
    right, n = float(np.sum(correct)), len(correct)
    low, high = wilson(right, n, _quantile())
    sums, clips = _sums(correct, speakers)
    if len(clips) > 1:
        accuracies, likelihood = by_speaker.score_curve(sums[0], clips)
        ranges = (by_speaker.ends(accuracies, likelihood, len(clips), LEVEL), _of_jackknife(sums[0], clips)[:2])
        low = max(0.0, min(low, *(one[0] for one in ranges))) if right > 0 else 0.0
        high = min(1.0, max(high, *(one[1] for one in ranges))) if right < n else 1.0
    return Score(right / n, low, high, n, len(clips))


@dataclass(frozen=True)
class Paired:
    """Two classifiers on the same recordings.

    Attributes:
        difference: accuracy of the first minus that of the second.
        low: lower end of its 95% interval.
        high: upper end of its 95% interval.
        p_value: two-sided; below 0.05 exactly where the interval excludes 0.
        only_first: number of recordings that only the first got right.
        only_second: number of recordings that only the second got right.
        n: number of recordings.
        speakers: number of speakers that the interval is about; 0 where recordings count as independent.
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
    """Compare two (n,) boolean vectors of right answers, recording by recording.

    The interval covers those of several procedures, and the p-value is the
    largest of theirs. So it is below 0.05 exactly where the interval excludes 0.
    Without speakers: Newcombe's interval, 1998, and the exact McNemar test with
    the interval of the same binomial test. With two speakers or more also: the
    model of `scoring.speakers`, and Student's t of the jackknife over speakers.

    Args:
        first: right answers of the first classifier.
        second: right answers of the second classifier.
        speakers: (n,) names, None where recordings are independent.

    >>> result = compare(np.array([True] * 8 + [False] * 2), np.array([True] * 4 + [False] * 6))
    >>> result.difference, result.only_first, round(result.p_value, 3), result.low < 0 < result.high
    (0.4, 4, 0.125, True)
    """
    n = len(first)
    only_first, only_second = first & ~second, second & ~first
    b, c = int(only_first.sum()), int(only_second.sum())
    difference = (b - c) / n
    found = [(*joined(b, c, n, _quantile()), _joined_p(b, c, n)), _exact(b, c, n)]
    sums, clips = _sums(np.stack([only_first, only_second]), speakers)
    if len(clips) > 1:
        found.append(_of_model(sums, clips, difference))
        found.append(_of_jackknife(sums[0] - sums[1], clips))
    low, high = max(-1.0, min(one[0] for one in found)), min(1.0, max(one[1] for one in found))
    return Paired(difference, low, high, max(one[2] for one in found), b, c, n, len(clips))


def mean_difference(
    first: np.ndarray, second: np.ndarray, speakers: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Return the mean of `first` minus `second`, paired, with Student's 95% interval of the jackknife.

    Args:
        first: (n,) values of the first, such as log losses.
        second: (n,) values of the second.
        speakers: (n,) names of the speakers that the interval is about; None where recordings are independent.

    >>> mean_difference(np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    (1.0, 1.0, 1.0)
    """
    values = first - second
    sums, clips = _sums(values, speakers)
    if len(clips) < 2:  # nothing to learn about other speakers
        sums, clips = _sums(values, np.arange(len(values)))
    mean = float(values.mean())
    if len(clips) < 2:
        return mean, mean, mean
    low, high, _ = _of_jackknife(sums[0], clips)
    return mean, low, high


def wilson(right: float, n: int, z: float) -> tuple[float, float]:
    """Return Wilson's interval of `right` of `n`, `z` standard deviations to each side.

    scipy takes a level instead, which rounds to 1 above 8 standard deviations.

    >>> low, high = wilson(9, 10, 1.96)
    >>> round(low, 4), round(high, 4)
    (0.5958, 0.9821)
    """
    share, spread = right / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    reach = np.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return (float(centre - reach) if right > 0 else 0.0), (float(centre + reach) if right < n else 1.0)


def joined(b: int, c: int, n: int, z: float) -> tuple[float, float]:
    """Return the interval of (b - c) / n of two shares of the same n recordings, `z` standard deviations wide.

    Source: Newcombe, "Improved confidence intervals for the difference between
    binomial proportions based on paired data", 1998; Zou and Donner, 2008. The
    two shares exclude each other, which gives their correlation.

    >>> low, high = joined(8, 2, 100, 1.96)
    >>> round(low, 3), round(high, 3)
    (-0.005, 0.132)
    """
    first, second = b / n, c / n
    (low_1, high_1), (low_2, high_2) = wilson(b, n, z), wilson(c, n, z)
    inner = (1 - first) * (1 - second)
    correlation = -np.sqrt(first * second / inner) if inner > 0 else 0.0

    def reach(one: float, other: float) -> float:
        return float(np.sqrt(one**2 + other**2 - 2 * correlation * one * other))

    below = reach(first - low_1, high_2 - second)
    return first - second - below, first - second + reach(high_1 - first, second - low_2)


def _joined_p(b: int, c: int, n: int) -> float:
    """Return the p-value at which the interval of `joined` reaches 0."""
    b, c = max(b, c), min(b, c)
    if b == c:
        return 1.0
    z = brentq(lambda z: joined(b, c, n, z)[0], 1e-6, 1e3)
    return float(2 * norm.sf(z))


def _exact(b: int, c: int, n: int) -> tuple[float, float, float]:
    """Return the interval and the p-value of McNemar's exact test, for the observed number of discordant clips."""
    if b + c == 0:
        return 0.0, 0.0, 1.0
    test = binomtest(b, b + c)
    share = test.proportion_ci(LEVEL, method="exact")
    return (2 * share.low - 1) * (b + c) / n, (2 * share.high - 1) * (b + c) / n, float(test.pvalue)


def _of_model(sums: np.ndarray, clips: np.ndarray, difference: float) -> tuple[float, float, float]:
    """Return interval and p-value of the model of `scoring.speakers`; p is 1 where it has another sign."""
    differences, likelihood = by_speaker.difference_curve(sums[0], sums[1], clips)
    low, high = by_speaker.ends(differences, likelihood, len(clips), LEVEL)
    if differences[likelihood.argmax()] * difference <= 0:
        return low, high, 1.0
    return low, high, by_speaker.p_value(differences, likelihood, len(clips))


def _of_jackknife(sums: np.ndarray, clips: np.ndarray) -> tuple[float, float, float]:
    """Return Student's interval and p-value of sum(sums) / sum(clips) over speakers."""
    mean, error = float(sums.sum() / clips.sum()), by_speaker.jackknife_error(sums, clips)
    reach = float(student.ppf(0.5 + LEVEL / 2, len(clips) - 1)) * error
    p = float(2 * student.sf(abs(mean) / error, len(clips) - 1)) if error > 0 else float(mean == 0)
    return mean - reach, mean + reach, p


def _quantile() -> float:
    return float(norm.ppf(0.5 + LEVEL / 2))


def _sums(values: np.ndarray, speakers: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, S) sums of each speaker's values and (S,) numbers of clips; empty for fewer than two speakers."""
    rows = np.atleast_2d(values).astype(float)
    if speakers is None:
        return np.empty((len(rows), 0)), np.empty(0)
    names, which = np.unique(speakers, return_inverse=True)
    if len(names) < 2:
        return np.empty((len(rows), 0)), np.empty(0)
    return np.stack([np.bincount(which, weights=row) for row in rows]), np.bincount(which).astype(float)
