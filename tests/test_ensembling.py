"""Combinations, intervals and paired comparisons against formulas and peers."""

import itertools

import numpy as np
import pytest
from scipy.special import softmax

from audio_mnist.scoring import mixture


def random_members(members: int = 3, clips: int = 50, classes: int = 4) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.ones(classes), (members, clips))


@pytest.mark.parametrize("how", ["mean", "logit_mean", "vote"])
def test_combine_gives_probabilities(how: str) -> None:
    """Rows sum to one, nothing is negative."""
    p = mixture.combine(random_members(), how)
    assert p.shape == (50, 4) and (p >= 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1)


@pytest.mark.parametrize("how", ["mean", "logit_mean"])
def test_combine_of_equal_members_is_that_member(how: str) -> None:
    """Three copies of one member change nothing."""
    one = random_members(1)[0]
    np.testing.assert_allclose(mixture.combine(np.stack([one] * 3), how), one)


def test_combine_by_hand() -> None:
    """Two members, two classes, worked on paper."""
    p = np.array([[[0.9, 0.1]], [[0.4, 0.6]]])
    np.testing.assert_allclose(mixture.combine(p, "mean"), [[0.65, 0.35]])
    a, b = (0.9 * 0.4) ** 0.5, (0.1 * 0.6) ** 0.5
    np.testing.assert_allclose(mixture.combine(p, "logit_mean"), [[a / (a + b), b / (a + b)]])


def test_combine_vote_counts_heads_and_breaks_ties_by_mean() -> None:
    """Two of three outvote a sure one; one against one is settled by the mean."""
    three = np.array([[[0.99, 0.01]], [[0.49, 0.51]], [[0.49, 0.51]]])
    assert mixture.combine(three, "vote").argmax() == 1
    assert mixture.combine(three, "mean").argmax() == 0
    assert mixture.combine(three[:2], "vote").argmax() == 0


def test_combine_refuses_an_unknown_way() -> None:
    """The message lists the ways."""
    with pytest.raises(ValueError, match="expected mean, logit_mean or vote"):
        mixture.combine(random_members(), "median")


def mixed_members(weights: list[float], n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Members whose weighted geometric mean is the distribution that the labels are drawn from."""
    rng = np.random.default_rng(0)
    p = softmax(2 * rng.standard_normal((len(weights), n, 4)), axis=2)
    truth = mixture.weighted(p, np.array(weights))
    targets = (truth.cumsum(axis=1) < rng.random(n)[:, None]).sum(axis=1)
    return p, targets


@pytest.mark.parametrize("weights", [[0.7, 0.3], [0.2, 0.5, 0.3], [1.0, 0.0]])
def test_fit_weights_finds_the_mixture(weights: list[float]) -> None:
    """Labels drawn from a weighted geometric mean give its weights back; none negative, sum 1."""
    found = mixture.fit_weights(*mixed_members(weights))
    np.testing.assert_allclose(found, weights, atol=0.04)
    assert (found >= 0).all() and found.sum() == pytest.approx(1)


def test_fit_weights_is_the_minimum() -> None:
    """No other weights and scale on a grid give less log loss with the penalty."""
    p, targets = mixed_members([0.6, 0.4], n=200)
    logs, losses = np.log(p), {}
    for first, second in itertools.product(np.linspace(0, 1.5, 151), repeat=2):
        q = softmax(first * logs[0] + second * logs[1], axis=1)[np.arange(200), targets]
        penalty = mixture.PRIOR * (first - second) ** 2 / 2
        penalty += mixture.SCALE_PRIOR * np.log(max(first + second, 1e-6)) ** 2
        losses[first, second] = -np.log(q).mean() + penalty / 200
    best = min(losses, key=lambda pair: losses[pair])
    assert mixture.fit_weights(p, targets)[0] == pytest.approx(best[0] / sum(best), abs=0.01)


def test_fit_weights_of_few_clips_stays_near_equal() -> None:
    """Six clips that one member happens to get right do not silence the other."""
    p, targets = mixed_members([1.0, 0.0], n=6)
    assert abs(mixture.fit_weights(p, targets)[0] - 0.5) < 0.3


def test_stack_is_nested() -> None:
    """A fold's weights come from the other folds: turning its own labels round changes nothing in it."""
    p, targets = mixed_members([0.7, 0.3], n=300)
    fold_of = np.arange(300) % 3
    turned = np.where(fold_of == 0, (targets + 1) % 4, targets)
    first, second = (mixture.stack(p, labels, fold_of) for labels in (targets, turned))
    np.testing.assert_array_equal(first[fold_of == 0], second[fold_of == 0])
    assert not np.allclose(first[fold_of == 1], second[fold_of == 1], atol=1e-4)


def test_stack_of_one_fold_weighs_alike() -> None:
    """There are no others to learn from."""
    p, targets = mixed_members([0.7, 0.3], n=50)
    np.testing.assert_array_equal(mixture.stack(p, targets, np.zeros(50)), mixture.combine(p, "logit_mean"))
