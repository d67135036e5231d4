"""Shares of right answers that vary from speaker to speaker. Pure numpy and scipy.

Answers to one speaker's clips are alike. So n clips of few speakers say less than n clips of n
speakers, and the missing information is about speakers. The model here gives each speaker a share
of its own: its logit is normally distributed, with a standard deviation that the data decide.
Intervals are inverted likelihood-ratio tests of that model.
"""

from functools import cache

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm
from scipy.stats import t as student

SPREADS = np.r_[0.0, np.geomspace(0.15, 3.0, 14)]  # standard deviations of speakers' logits that are considered
_NODES = np.linspace(-6, 6, 121)
_WEIGHTS = norm.pdf(_NODES) / norm.pdf(_NODES).sum()


def score_curve(right: np.ndarray, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return accuracies and the profile log-likelihood of each.

    Args:
        right: (S,) right answers of each speaker.
        clips: (S,) clips of each speaker.

    Returns:
        (P,) accuracies, ascending, and (P,) log-likelihoods, each at its best standard deviation.

    >>> accuracies, likelihood = score_curve(np.array([9, 8, 10]), np.array([10, 10, 10]))
    >>> bool(0.85 < accuracies[likelihood.argmax()] < 0.95)
    True
    """
    logits = _logits_around(right, clips)
    return expit(logits), _profile(_likelihood(right, clips, logits))


def difference_curve(first: np.ndarray, second: np.ndarray, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return differences of two accuracies and the profile log-likelihood of each.

    The two shares of clips that only one classifier got right have means of
    their own and one standard deviation.

    Args:
        first: (S,) clips of each speaker that only the first classifier got right.
        second: (S,) clips that only the second got right.
        clips: (S,) clips of each speaker.

    Returns:
        (D,) differences, ascending, and (D,) log-likelihoods.
    """
    centre = (first.sum() - second.sum()) / clips.sum()
    step = max(jackknife_error(first - second, clips), 0.5 * np.sqrt(first.sum() + second.sum() + 2) / clips.sum())
    differences = centre + step * np.r_[-16, -12, -9, -7.5, np.linspace(-6, 6, 61), 7.5, 9, 12, 16]
    differences = differences[np.abs(differences) < 1]
    grids = [_logits_around(counts, clips) for counts in (first, second)]
    tables = [_likelihood(counts, clips, grid) for counts, grid in zip((first, second), grids, strict=True)]

    # each difference in all its ways: a dense set of either share, the other follows
    table = np.full((len(differences), len(SPREADS)), -np.inf)
    for number in (0, 1):
        dense = expit(np.linspace(grids[number][0], grids[number][-1], 90))
        other = dense - differences[:, None] if number == 0 else dense + differences[:, None]
        possible = (other > 0) & (other < 1)
        at = logit(np.where(possible, other, 0.5))
        possible &= (at >= grids[1 - number][0]) & (at <= grids[1 - number][-1])
        for spread in range(len(SPREADS)):
            value = np.interp(logit(dense), grids[number], tables[number][:, spread])
            value = value + np.interp(at, grids[1 - number], tables[1 - number][:, spread])
            table[:, spread] = np.maximum(table[:, spread], np.where(possible, value, -np.inf).max(axis=1))
    found = np.isfinite(table).all(axis=1)
    return differences[found], _profile(table[found])


def ends(values: np.ndarray, likelihood: np.ndarray, speakers: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of values that a likelihood-ratio test does not reject.

    The limit of the test makes it exact for normal data: there it is Student's
    t interval with `speakers` - 1 degrees of freedom.

    Args:
        values: (P,) ascending.
        likelihood: (P,) their profile log-likelihood.
        speakers: number of speakers.
        level: the interval's level.

    >>> x = np.linspace(-3, 3, 601)
    >>> low, high = ends(x, -5 * np.log1p(x**2), 10)  # the mean of ten normal values, mean 0 and sd 1
    >>> round(high, 2), round(float(student.ppf(0.975, 9) / 3), 2)
    (0.75, 0.75)
    """
    quantile = student.ppf(0.5 + level / 2, speakers - 1)
    limit = np.sqrt(speakers * np.log1p(quantile**2 / (speakers - 1)))
    best, root = likelihood.argmax(), _root(likelihood)
    low = np.interp(limit, root[: best + 1][::-1], values[: best + 1][::-1])
    return float(low), float(np.interp(limit, root[best:], values[best:]))


def p_value(values: np.ndarray, likelihood: np.ndarray, speakers: int, at: float = 0.0) -> float:
    """Return the two-sided p-value of a value: 0.05 at the ends of the 95% interval of `ends`."""
    root = np.interp(at, values, _root(likelihood))
    quantile = np.sqrt((speakers - 1) * np.expm1(root**2 / speakers))
    return float(2 * student.sf(quantile, speakers - 1))


def jackknife_error(sums: np.ndarray, clips: np.ndarray) -> float:
    """Return the standard error of sum(sums) / sum(clips) over speakers.

    Source: the jackknife, or CV3, of cluster-robust inference; MacKinnon, Nielsen
    and Webb, "Cluster-robust inference: a guide to empirical practice", 2023.

    >>> round(jackknife_error(np.array([9.0, 8.0, 10.0]), np.array([10.0, 10.0, 10.0])), 4)
    0.0577
    """
    speakers, total, n = len(clips), sums.sum(), clips.sum()
    without = (total - sums) / (n - clips)
    return float(np.sqrt((speakers - 1) / speakers * ((without - total / n) ** 2).sum()))


def _profile(table: np.ndarray) -> np.ndarray:
    """Return the (P,) highest values of a (P, SPREADS) table, between its columns too: parabolas in the logarithm."""
    best = table.argmax(axis=1)
    rows, middle = np.arange(len(table)), np.clip(best, 2, len(SPREADS) - 2)
    left, centre, right = (table[rows, middle + shift] for shift in (-1, 0, 1))
    curvature = left - 2 * centre + right
    with np.errstate(divide="ignore", invalid="ignore"):
        top = centre - (left - right) ** 2 / (8 * curvature)
    return np.where((best == middle) & (curvature < 0), top, table[rows, best])


def _root(likelihood: np.ndarray) -> np.ndarray:
    """Return the root of the likelihood-ratio statistic, made monotone on both sides of its minimum."""
    root = np.sqrt(2 * (likelihood.max() - likelihood))
    best = likelihood.argmax()
    root[best:] = np.maximum.accumulate(root[best:])
    root[: best + 1] = np.maximum.accumulate(root[: best + 1][::-1])[::-1]
    return root


def _logits_around(counts: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """Return (P,) logits of shares, dense around the observed one."""
    total, n = counts.sum(), clips.sum()
    share = (total + 0.5) / (n + 1)
    independent = n * share * (1 - share)
    variance = max(((counts - clips * share) ** 2).sum() * len(clips) / (len(clips) - 1), independent)
    error = np.sqrt(variance) / independent
    far = max(1.0, error) * np.array([-5, -4, -3, -2, -1.5, 1.5, 2, 3, 4, 5])
    return logit(share) + np.unique(np.r_[error * np.linspace(-5, 5, 41), far])


def _likelihood(counts: np.ndarray, clips: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return (P, SPREADS) log-likelihoods of mean shares, given as logits, without the binomial constants."""
    (x, n), times = np.unique(np.stack([counts, clips]), axis=1, return_counts=True)
    table = np.empty((len(logits), len(SPREADS)))
    table[:, 0] = -(x * times).sum() * np.logaddexp(0, -logits) - ((n - x) * times).sum() * np.logaddexp(0, logits)

    # the others: each speaker's likelihood, averaged over the normal distribution of its logit
    step = np.clip(1.5 / np.sqrt(n.max()), 0.01, 0.07)
    theta = np.arange(-14, 14, step)
    log_likelihood = -x[:, None] * np.logaddexp(0, -theta) - (n - x)[:, None] * np.logaddexp(0, theta)
    highest = log_likelihood.max(axis=1, keepdims=True)
    likelihood = np.exp(log_likelihood - highest)
    for number in range(1, len(SPREADS)):
        means, shares = _means(number)
        density = np.exp(-0.5 * ((theta[:, None] - np.interp(logits, shares, means)) / SPREADS[number]) ** 2)
        averaged = likelihood @ (density / density.sum(axis=0))  # (speakers, P)
        table[:, number] = times @ (np.log(np.maximum(averaged, 1e-300)) + highest)
    return table


@cache
def _means(spread: int) -> tuple[np.ndarray, np.ndarray]:
    """Return means of the normal distribution, and the logits of the mean shares that they give."""
    means = np.linspace(-30, 30, 1201)
    shares = expit(means[:, None] + SPREADS[spread] * _NODES) @ _WEIGHTS
    return means, logit(np.clip(shares, 1e-16, 1 - 1e-16))
