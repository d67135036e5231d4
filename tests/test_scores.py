"""Accuracies, intervals and paired tests against formulas, and against simulated experiments."""

import numpy as np
import pytest
from scipy.stats import binom

from audio_mnist.scoring import intervals
from tests.benchmarks.coverage import Cell, coverage


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (391, 400), (1, 3)])
def test_score_is_wilsons_interval(right: int, n: int) -> None:
    """Against Wilson's formula, written out."""
    result = intervals.score(np.arange(n) < right)
    z, p = 1.959963984540054, right / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert result.n == n and result.value == p
    np.testing.assert_allclose([result.low, result.high], [max(0, centre - reach), min(1, centre + reach)], atol=1e-12)


def test_compare_is_the_exact_mcnemar_test() -> None:
    """p is twice the binomial tail of the clips on which the two differ."""
    first = np.array([True] * 12 + [False] * 3 + [True] * 85)
    second = np.array([False] * 12 + [True] * 3 + [True] * 85)
    result = intervals.compare(first, second)
    assert (result.only_first, result.only_second, result.n) == (12, 3, 100)
    assert result.difference == pytest.approx(0.09)
    assert result.p_value == pytest.approx(2 * binom.cdf(3, 15, 0.5))
    assert result.low < 0.09 < result.high


def test_compare_of_a_classifier_with_itself() -> None:
    """No difference, and no evidence of one."""
    same = np.array([True, False, True])
    result = intervals.compare(same, same)
    assert result.difference == 0 and result.p_value == 1 and result.low < 0 < result.high


def test_compare_interval_covers_the_truth() -> None:
    """The 95% interval holds the true difference in 92 to 98.5 of 100 drawn experiments."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        draw = rng.random(200)
        first, second = draw > 0.05, (draw > 0.15) | (draw < 0.02)  # true difference 0.08
        result = intervals.compare(first, second)
        held += result.low <= 0.08 <= result.high
    assert 920 <= held <= 985


def grouped(rng: np.random.Generator, speakers: int = 30, clips: int = 10, spread: float = 0.25) -> tuple:
    """Right answers of two classifiers, clips of one speaker alike; the true accuracy is 0.7, the difference 0.1."""
    level = np.clip(rng.normal(0.7, spread, speakers), 0, 1)
    who = np.repeat(np.arange(speakers), clips)
    shift = 0.1 * rng.integers(0, 3, speakers)[who]
    draw = rng.random(len(who))
    return draw < level[who], draw < level[who] - shift, who


def test_score_by_speaker_is_wider() -> None:
    """With clips of a speaker alike the interval is wider than Wilson's, and says how many speakers there are."""
    right, _, who = grouped(np.random.default_rng(0))
    alone, by_speaker = intervals.score(right), intervals.score(right, who)
    assert by_speaker.low < alone.low and by_speaker.high > alone.high
    assert (by_speaker.value, by_speaker.n, by_speaker.speakers, alone.speakers) == (alone.value, 300, 30, 0)


def test_one_speaker_is_scored_like_independent_clips() -> None:
    """There is nothing to learn about other speakers: the interval is Wilson's."""
    right = np.ones(40, dtype=bool)
    wilson, result = intervals.score(right), intervals.score(right, np.zeros(40))
    assert (result.low, result.high, result.speakers) == (wilson.low, wilson.high, 0)


@pytest.mark.parametrize(
    "cell",
    [
        Cell(6, 500, False, 1.0, 0.97),
        Cell(6, 50, False, 1.0, 0.9),
        Cell(20, 10, True, 1.5, 0.9),
        Cell(137, 10, True, 0.0, 0.9),
        Cell(6, 500, True, 1.0, 0.97, 0.97, 0.8),
        Cell(10, 50, False, 1.0, 0.97, 0.9, 0.8),
        Cell(20, 10, True, 1.5, 0.9, 0.7, 0.0),
    ],
)
def test_intervals_by_speaker_cover_the_truth(cell: Cell) -> None:
    """A short form of the benchmark: in 300 experiments 0.93 are covered, less three standard errors."""
    result = coverage(cell, 300)
    assert result["coverage"] >= 0.93 - 3 * np.sqrt(0.93 * 0.07 / 300)
    assert result["disagree"] == 0
    assert result["width"] < 0.75


def test_interval_and_test_of_a_difference_agree() -> None:
    """Over drawn experiments with and without speakers, p is below 0.05 exactly where the interval excludes 0."""
    rng = np.random.default_rng(3)
    excluded = 0
    for _ in range(300):
        n, shift = int(rng.integers(12, 400)), rng.uniform(0, 0.3)
        first, second = rng.random((2, n)) < np.array([[0.9], [0.9 - shift]])
        who = rng.integers(0, rng.integers(2, 12), n) if rng.random() < 0.5 else None
        result = intervals.compare(first, second, who)
        assert (result.p_value < 0.05) == (not result.low <= 0 <= result.high)
        excluded += result.p_value < 0.05
    assert 50 < excluded < 250  # both cases are tried


def test_few_speakers_make_the_interval_wide() -> None:
    """Ten times the clips of the same six speakers, who differ, leave almost the same interval."""
    shares = np.array([0.8, 0.9, 0.95, 0.97, 0.99, 1.0])
    widths = []
    for clips in (100, 1000):
        right = np.concatenate([np.arange(clips) < round(share * clips) for share in shares])
        result = intervals.score(right, np.repeat(np.arange(6), clips))
        widths.append(result.high - result.low)
    assert widths[1] > 0.85 * widths[0]


def test_difference_over_six_speakers_against_hand() -> None:
    """Every speaker better by one clip of four: each test rejects, and p is that of the exact McNemar test."""
    who = np.repeat(np.arange(6), 4)
    result = intervals.compare(np.ones(24, dtype=bool), np.tile([False, True, True, True], 6), who)
    assert result.p_value == pytest.approx(2 / 64) and result.speakers == 6
    assert result.difference == pytest.approx(0.25) and 0 < result.low <= 0.25 <= result.high


def test_mean_difference_interval_covers_the_truth() -> None:
    """Paired values by speaker: the true mean of 0.2 lies within in about 95 of 100 experiments."""
    rng, held = np.random.default_rng(2), 0
    who = np.repeat(np.arange(25), 8)
    for _ in range(300):
        first = rng.normal(0.2, 1, 200) + rng.normal(0, 1, 25)[who]
        mean, low, high = intervals.mean_difference(first, np.zeros(200), who)
        assert low <= mean <= high
        held += low <= 0.2 <= high
    assert 270 <= held <= 297
