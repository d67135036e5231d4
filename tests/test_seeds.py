"""Several seeds of one recipe: one row, no clip twice, differences within a seed."""

from dataclasses import replace
from typing import cast

import numpy as np
import pandas as pd
import pytest

from audio_mnist.report import tables
from audio_mnist.scoring import intervals
from audio_mnist.scoring.intervals import Score
from audio_mnist.sweeps import ablation, seeds
from audio_mnist.sweeps.ablation import Variant, average
from audio_mnist.sweeps.outcome import JobOutcome, Outcome
from audio_mnist.sweeps.summary import metrics_of, table_text
from audio_mnist.tracking.tracker import RunRecord, Tracker

RNG = np.random.default_rng(0)
TRACKER = cast(Tracker, None)


def variant(*of_seeds: float, n: int = 100) -> Variant:
    """A feature and an ensemble, of which each seed gets that share of n clips right."""
    found = []
    for share in of_seeds:
        right = np.arange(n) < round(share * n)
        truth = np.arange(n) % 2
        answers = np.stack([truth, np.where(right, truth, 1 - truth)])
        found.append(Variant({"Mel": right}, right, np.where(right, 0.1, 2.0), tuple(map(str, range(n))), answers, 2))
    return found[0] if len(found) == 1 else average(found)


def job(seed: int, fold: int, accuracy: float, name: str = "default") -> JobOutcome:
    run = RunRecord(f"{name}{seed}{fold}", "", "FINISHED", None, {}, {"best/accuracy": accuracy})
    return JobOutcome(f"fold={fold} seed={seed}", name, "Mel", "Mel", fold, run, seed=seed)


def test_a_clip_counts_once_whatever_the_number_of_seeds() -> None:
    """Three equal seeds have the interval of one seed, not that of three times the clips."""
    one, three = variant(0.9), variant(0.9, 0.9, 0.9)
    assert len(three.right) == len(one.right) == 100
    assert intervals.score(three.right) == intervals.score(one.right)


def test_row_has_mean_interval_and_range_over_seeds() -> None:
    """Shares of 0.8, 0.9 and 1.0: mean 0.9, range 0.8 to 1.0, Wilson's interval of 90 in 100."""
    text = tables.render(seeds.table(variant(0.8, 0.9, 1.0), None))
    low, high = intervals.wilson(90, 100, 1.959964)
    assert f"│ Mel │   0.9000 │ {low:.4f} to {high:.4f} │ 0.8000 to 1.0000 │" in text


def test_sentence_is_students_quantile_of_a_difference() -> None:
    """Two seeds, 2 points apart: sd 1.41 points; t of one degree of freedom is 12.7, times sqrt(2) is 25.4 points."""
    said = ablation.seed_sentence(variant(0.90, 0.92))
    assert "differ by 1.41 points (sd over seeds)" in said and "may differ by 25.4 points" in said


def test_difference_is_paired_within_a_seed() -> None:
    """The same seeds, 2 points better each: the seeds' own spread of 10 points does not widen it."""
    base, better = variant(0.80, 0.90), variant(0.82, 0.92)
    difference, by_seed = ablation._difference(better, base, None)
    mean, low, high = intervals.mean_difference(better.right, base.right)
    assert difference == f"+2.00 ({100 * low:+.2f} to {100 * high:+.2f})" and mean == pytest.approx(0.02)
    assert by_seed == "+2.0, +2.0"
    table = ablation.table({"default": base, "better": better}, None)
    assert "by seed" in [str(column.header) for column in table.columns]


def test_read_joins_each_seed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 0 gets clip a right, seed 1 clip b: each counts half; a seed that lacks a fold is refused."""
    right = {"default00": True, "default01": False, "default10": False, "default11": True}

    def logged(_tracker: Tracker, run_id: str) -> pd.DataFrame:
        p = 0.9 if right[run_id] else 0.2
        clip = "a" if run_id.endswith("0") else "b"
        return pd.DataFrame([{"clip_id": clip, "label": "x", "predicted": "x", "p:x": p, "p:y": 1 - p}])

    monkeypatch.setattr(ablation, "logged_predictions", logged)
    jobs = [job(seed, fold, 1.0) for seed in (0, 1) for fold in (0, 1)]
    found = ablation.read(TRACKER, jobs)
    assert found is not None and found.clips == ("a", "b") and len(found.by_seed) == 2
    np.testing.assert_array_equal(found.right, [0.5, 0.5])
    assert [one.answers.tolist() for one in found.by_seed] == [[[0, 0], [0, 1]], [[0, 0], [1, 0]]]
    np.testing.assert_allclose(found.loss, -np.log([0.9 * 0.2, 0.9 * 0.2]) / 2)
    assert ablation.read(TRACKER, jobs[:3]) is None
    text = seeds.render(TRACKER, [replace(job, score="macro_f1") for job in jobs], None)
    assert "│ Mel │   0.3333 │" in text  # macro F1: 2/3 for x, 0 for y, of each seed
    assert "means of 2 seeds; n = 2 recordings, each counted once" in text
    assert seeds.render(TRACKER, jobs[:2], None) == ""  # one seed
    assert seeds.render(TRACKER, [*jobs[:3], replace(jobs[3], run=None)], None) == ""


def test_sweep_table_has_one_row_with_means_over_seeds() -> None:
    """Three seeds of two folds: cells are means; a fold with an unfinished seed shows its word; metrics follow."""
    jobs = [job(seed, fold, 0.8 + 0.1 * seed) for seed in (0, 1, 2) for fold in (0, 1)]
    outcome = Outcome(tuple(jobs), "accuracy", clips=60)
    text = table_text(outcome)
    assert text.count("Mel") == 1 and "│ Mel │ 0.9000 │ 0.9000 │" in text
    assert "each cell is the mean of 3 seeds" in text
    assert metrics_of(outcome) == {
        **{"sweep/runs": 6, "sweep/finished": 6, "sweep/n": 60},
        "sweep/accuracy/Mel": pytest.approx(0.9),
    }
    compared = [replace(one, variant=name) for name in ("default", "pitch") for one in jobs]
    assert metrics_of(Outcome(tuple(compared), "accuracy", comparison="table")).keys() >= {
        *("sweep/accuracy/Mel", "sweep/accuracy/Mel pitch")
    }
    broken = Outcome((*jobs[:5], replace(jobs[5], run=None)), "accuracy", clips=60)
    assert "│ Mel │ 0.9000 │ not run │" in table_text(broken)
    assert "sweep/accuracy/Mel" not in metrics_of(broken) and metrics_of(broken)["sweep/finished"] == 5


def test_labels_without_seeds_are_shared() -> None:
    """Recipes that differ in the seed alone have one name; a further difference is still named."""
    recipes = {
        f"{seed}{depth}": {
            "feature": {"name": "mel"},
            "model": {"depth": depth},
            "seed": seed,
            "data": {},
            "trainer": {},
        }
        for seed in (0, 1)
        for depth in (1, 2)
    }
    named = tables.member_labels(recipes, seeds=True)
    assert named == {
        "01": "Mel model.depth=1",
        "11": "Mel model.depth=1",
        "02": "Mel model.depth=2",
        "12": "Mel model.depth=2",
    }


def test_average_of_scores_keeps_each_seeds_value() -> None:
    """Ends are averaged; one score stays as it is."""
    first, second = Score(0.8, 0.7, 0.9, 10), Score(0.9, 0.85, 1.0, 10)
    assert intervals.average([first]) is first
    mean = intervals.average([first, second])
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.85, 0.775, 0.95)) and mean.seeds == (0.8, 0.9)
