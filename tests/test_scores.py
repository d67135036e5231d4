"""Accuracies, intervals and paired tests against formulas, and against simulated experiments."""

import numpy as np
import pytest
from scipy.stats import binom

from audio_mnist.scoring import intervals


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (391, 400), (1, 3)])
def test_score_is_wilsons_interval(right: int, n: int) -> None:
    """Against Wilson's formula, written out."""
    result = intervals.score(np.arange(n) < right)
    z, p = 1.959963984540054, right / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert result.n == n and result.accuracy == p
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
    """With clips of a speaker alike the interval is wider than Wilson's, and says how many were resampled."""
    right, _, who = grouped(np.random.default_rng(0))
    alone, by_speaker = intervals.score(right), intervals.score(right, who)
    assert by_speaker.low < alone.low and by_speaker.high > alone.high
    assert (by_speaker.accuracy, by_speaker.n, by_speaker.speakers, alone.speakers) == (alone.accuracy, 300, 30, 0)


def test_score_by_speaker_is_never_narrower_than_wilson() -> None:
    """All right, or one speaker: the interval is Wilson's."""
    right = np.ones(40, dtype=bool)
    wilson = intervals.score(right)
    for who in (np.arange(40) % 4, np.zeros(40)):
        result = intervals.score(right, who)
        assert (result.low, result.high) == (wilson.low, wilson.high)


def test_score_by_speaker_covers_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interval holds the mean over all speakers in at least 90 of 100 experiments, Wilson's in far fewer."""
    monkeypatch.setattr(intervals, "RESAMPLES", 999)
    rng = np.random.default_rng(1)
    levels = np.clip(rng.normal(0.7, 0.25, 100_000), 0, 1).mean()
    held = np.zeros(2)
    for _ in range(300):
        right, _, who = grouped(rng)
        held += [r.low <= levels <= r.high for r in (intervals.score(right, who), intervals.score(right))]
    assert held[0] >= 270 > held[1] + 30


def test_compare_by_speaker_exchanges_whole_speakers() -> None:
    """Six speakers, the first classifier better for each: the exact permutation p is 2 of 2^6."""
    who = np.repeat(np.arange(6), 4)
    first = np.ones(24, dtype=bool)
    second = np.tile([False, True, True, True], 6)
    result = intervals.compare(first, second, who)
    assert result.p_value == pytest.approx(2 / 64) and result.speakers == 6
    assert result.difference == pytest.approx(0.25) and result.low <= 0.25 <= result.high


def test_mean_difference_interval_covers_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paired values by speaker: the true mean of 0.2 lies within in about 95 of 100 experiments."""
    monkeypatch.setattr(intervals, "RESAMPLES", 999)
    rng, held = np.random.default_rng(2), 0
    who = np.repeat(np.arange(25), 8)
    for _ in range(300):
        first = rng.normal(0.2, 1, 200) + rng.normal(0, 1, 25)[who]
        mean, low, high = intervals.mean_difference(first, np.zeros(200), who)
        assert low <= mean <= high
        held += low <= 0.2 <= high
    assert 270 <= held <= 297
