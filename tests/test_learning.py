"""Suspect labels and learning curves: on drawn data, and on real recordings with changed labels."""

import csv
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from audio_mnist.data.folds import assign_folds
from audio_mnist.data.split import split_clips
from audio_mnist.errors import ConfigError
from audio_mnist.scoring import curve, intervals, label_errors
from audio_mnist.sweeps.ablation import Variant, groups_of
from tests.conftest import run_command, write_tones
from tests.test_folds import manifest


def test_suspects_follow_the_confident_joint_by_hand() -> None:
    """Thresholds 0.6 and 0.7; a clip above neither is not suspect, one above both goes to the likelier class."""
    p = np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.35, 0.65], [0.1, 0.9], [0.6, 0.4]])
    labels = np.array([0, 0, 1, 0, 1, 1])  # means: class 0 (0.8 + 0.4 + 0.35) / 3, class 1 (0.7 + 0.9 + 0.4) / 3
    np.testing.assert_array_equal(label_errors.suspects(p, labels), [False, False, False, False, False, True])
    np.testing.assert_allclose(label_errors.quality(p, labels), [0.8, 0.4, 0.7, 0.35, 0.9, 0.4])


def test_a_label_that_is_the_first_choice_is_not_suspect() -> None:
    """Class 1 has a low mean, so the nets seem confident of it; the first choice is the label all the same."""
    p = np.array([[0.97, 0.03], [0.96, 0.04], [0.6, 0.4], [0.65, 0.35], [0.75, 0.25]])
    assert label_errors.suspects(p, np.array([0, 0, 0, 1, 1])).tolist()[2] is False


def test_suspects_find_drawn_label_errors() -> None:
    """Of 2,000 labels 40 are changed; confident probabilities give most of them away and few others."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 2000)
    logits = rng.normal(0, 1, (2000, 5)) + 5 * np.eye(5)[truth]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = truth.copy()
    changed = rng.choice(2000, 40, replace=False)
    labels[changed] = (labels[changed] + rng.integers(1, 5, 40)) % 5
    ranked = np.argsort(label_errors.quality(p, labels))
    assert np.isin(ranked[:40], changed).mean() >= 0.9
    assert not (label_errors.suspects(p, labels) & (p.argmax(axis=1) == labels)).any()
    doubted = label_errors.suspects(p, labels)  # cautious: most that it names are wrong, and it names more than half
    assert np.isin(np.flatnonzero(doubted), changed).mean() >= 0.9 and doubted[changed].mean() >= 0.6


@pytest.mark.slow
def test_changed_labels_of_real_clips_lead_the_list(real_data: Path, tmp_path: Path) -> None:
    """Half of FSDD with 2% of its labels changed, few steps: most of the first 30 in the list were changed."""
    rng, paths = random.Random(1), sorted((real_data / "fsdd" / "recordings").glob("*.wav"))[::2]
    changed = {str(path) for path in rng.sample(paths, 30)}
    with open(tmp_path / "clips.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label"))
        for path in paths:
            digit = int(path.name[0])
            writer.writerow((path, (digit + rng.randint(1, 9)) % 10 if str(path) in changed else digit))
    given = ["data=csv", "data.manifest=clips.csv", "data.settings.allow_outside=true", "data.clip_s=1.0"]
    quick = ["folds.count=2", "fold=0,1", "trainer.max_steps=400", "trainer.min_epochs=1"]
    assert run_command(tmp_path, "train.py", *given, *quick, "-m").returncode == 0
    done = run_command(tmp_path, "ensemble.py", "run_ids=latest")
    assert done.returncode == 0, done.stderr
    listed = pd.read_csv(next(tmp_path.rglob("label_errors.csv")))
    assert listed["clip_id"].head(30).isin(changed).mean() >= 0.6


def test_subsets_are_nested_stratified_and_leave_the_fold_alone() -> None:
    """Each share is part of the larger ones; every class is there; the scored fold does not change."""
    table = manifest(clips=240, classes=3, speakers=8)
    folds = assign_folds(table, count=4, group="speaker", seed=0)
    whole = split_clips(table, folds, fold=0, selection="last")
    for unit in ("clips", "speakers"):
        before = set(whole.train)
        for parts in (2, 3):
            split = split_clips(table, folds, fold=0, selection="last", subset=f"{unit}/{parts}")
            assert set(split.train) < before and np.array_equal(split.fold, whole.fold)
            assert table["label"].iloc[split.train].nunique() == 3
            before = set(split.train)
    half = split_clips(table, folds, fold=0, selection="last", subset="speakers/2")
    assert table["speaker"].iloc[half.train].nunique() == 3  # of six that are not in the fold
    quarter = split_clips(table, folds, fold=0, selection="last", subset="clips/4")
    assert (table["label"].iloc[quarter.train].value_counts() == 15).all()


def test_subset_by_speaker_needs_speakers() -> None:
    """The message has the sweep that works without them."""
    table = manifest(speakers=0)
    folds = assign_folds(table, count=2, group="none", seed=0)
    with pytest.raises(ConfigError, match="subset=all,clips/2"):
        split_clips(table, folds, fold=0, selection="last", subset="speakers/2")


def test_curve_interval_of_the_gain_covers_the_truth() -> None:
    """Errors drawn from a power law: the 95% interval of the gain holds the true one in most of 200 experiments."""
    rng, sizes = np.random.default_rng(0), np.array([50.0, 100.0, 200.0, 400.0])
    rate, held = 2.0 * sizes**-0.5, 0
    truth = 2.0 * (400**-0.5 - 800**-0.5)
    for _ in range(200):
        wrong = (rng.random((400, 1)) < rate).astype(float)  # one draw for each clip: hard clips stay hard
        gain, low, high = curve.fit(sizes, wrong, np.ones(400)).gain(400)
        assert low <= gain <= high
        held += low <= truth <= high
    assert held >= 180


def test_curve_without_errors_is_finite() -> None:
    """A perfect score at every size promises little."""
    found = curve.fit(np.array([10.0, 20.0]), np.zeros((6, 2)), np.full(6, 20.0))
    assert np.isfinite(found.gain(20)).all() and abs(found.gain(20)[0]) < 0.01


def test_gain_stays_within_what_accuracy_can_gain() -> None:
    """Few clips and an early curve: never beyond 100 points."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        wrong = (rng.random((8, 2)) * 20).round()
        gain = curve.fit(np.array([200.0, 400.0]), wrong, np.full(8, 20.0)).gain(400)
        assert np.isfinite(gain).all() and max(map(abs, gain)) <= 1


def test_one_scored_speaker_has_intervals_of_independent_recordings() -> None:
    """A sweep of one fold of leave-one-speaker-out: no interval of width zero, none that is not a number."""
    variant = Variant({}, np.ones(4, dtype=bool), np.zeros(4), tuple("abcd"), np.zeros((2, 4), dtype=int), 2)
    assert groups_of(variant, dict.fromkeys("abcd", "anna")) is None
    assert groups_of(variant, {"a": "x", "b": "x", "c": "y", "d": "y"}) is not None
    mean, low, high = intervals.mean_difference(np.arange(4.0), np.zeros(4), np.zeros(4))
    assert low < mean < high


def test_learning_curve_command(tmp_path: Path) -> None:
    """The experiment on tones: one table, a sentence for clips and one for speakers, and one picture."""
    root = write_tones(tmp_path / "tones", clips=16, speakers=8)
    done = run_command(
        tmp_path,
        *("train.py", "experiment=learning_curve", "data=folder", f"data.root={root}"),
        *("data.settings.speaker_pattern='(?P<speaker>s.)_'", "feature=mel", "fold=0,1", "folds.count=2"),
        *("subset=all,clips/2,speakers/2", "trainer.max_epochs=2", "trainer.batch_size=4"),
        *("score=macro_f1", "-m"),
    )
    assert done.returncode == 0, done.stderr
    assert "trained on" in done.stdout and "n = 48 recordings, the same for all" in done.stdout
    assert "Ensembles by scores that count classes alike" in done.stdout
    assert done.stdout.count("Twice the clips would bring about") == 1
    assert done.stdout.count("Twice the speakers would bring about") == 1
    assert next(tmp_path.rglob("learning_curve.png")).stat().st_size > 10_000
