"""Combinations, intervals and paired comparisons against formulas and peers."""

import numpy as np
import pytest
from scipy.stats import binom

from audio_mnist import ensembling


def random_members(members: int = 3, clips: int = 50, classes: int = 4) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.ones(classes), (members, clips))


@pytest.mark.parametrize("how", ["mean", "logit_mean", "vote"])
def test_combine_gives_probabilities(how: str) -> None:
    """Rows sum to one, nothing is negative."""
    p = ensembling.combine(random_members(), how)
    assert p.shape == (50, 4) and (p >= 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1)


@pytest.mark.parametrize("how", ["mean", "logit_mean"])
def test_combine_of_equal_members_is_that_member(how: str) -> None:
    """Three copies of one member change nothing."""
    one = random_members(1)[0]
    np.testing.assert_allclose(ensembling.combine(np.stack([one] * 3), how), one)


def test_combine_by_hand() -> None:
    """Two members, two classes, worked on paper."""
    p = np.array([[[0.9, 0.1]], [[0.4, 0.6]]])
    np.testing.assert_allclose(ensembling.combine(p, "mean"), [[0.65, 0.35]])
    a, b = (0.9 * 0.4) ** 0.5, (0.1 * 0.6) ** 0.5
    np.testing.assert_allclose(ensembling.combine(p, "logit_mean"), [[a / (a + b), b / (a + b)]])


def test_combine_vote_counts_heads_and_breaks_ties_by_mean() -> None:
    """Two of three outvote a sure one; one against one is settled by the mean."""
    three = np.array([[[0.99, 0.01]], [[0.49, 0.51]], [[0.49, 0.51]]])
    assert ensembling.combine(three, "vote").argmax() == 1
    assert ensembling.combine(three, "mean").argmax() == 0
    assert ensembling.combine(three[:2], "vote").argmax() == 0


def test_combine_refuses_an_unknown_way() -> None:
    """The message lists the ways."""
    with pytest.raises(ValueError, match="expected mean, logit_mean or vote"):
        ensembling.combine(random_members(), "median")


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (391, 400), (1, 3)])
def test_score_is_wilsons_interval(right: int, n: int) -> None:
    """Against Wilson's formula, written out."""
    result = ensembling.score(np.arange(n) < right)
    z, p = 1.959963984540054, right / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert result.n == n and result.accuracy == p
    np.testing.assert_allclose([result.low, result.high], [max(0, centre - reach), min(1, centre + reach)], atol=1e-12)


def test_compare_is_the_exact_mcnemar_test() -> None:
    """p is twice the binomial tail of the clips on which the two differ."""
    first = np.array([True] * 12 + [False] * 3 + [True] * 85)
    second = np.array([False] * 12 + [True] * 3 + [True] * 85)
    result = ensembling.compare(first, second)
    assert (result.only_first, result.only_second, result.n) == (12, 3, 100)
    assert result.difference == pytest.approx(0.09)
    assert result.p_value == pytest.approx(2 * binom.cdf(3, 15, 0.5))
    assert result.low < 0.09 < result.high


def test_compare_of_a_classifier_with_itself() -> None:
    """No difference, and no evidence of one."""
    same = np.array([True, False, True])
    result = ensembling.compare(same, same)
    assert result.difference == 0 and result.p_value == 1 and result.low < 0 < result.high


def test_compare_interval_covers_the_truth() -> None:
    """The 95% interval holds the true difference in 92 to 98.5 of 100 drawn experiments."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        draw = rng.random(200)
        first, second = draw > 0.05, (draw > 0.15) | (draw < 0.02)  # true difference 0.08
        result = ensembling.compare(first, second)
        held += result.low <= 0.08 <= result.high
    assert 920 <= held <= 985
