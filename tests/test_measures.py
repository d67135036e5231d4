"""Balanced accuracy and macro F1 against scikit-learn; intervals that cover; classes that count alike in training."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from scipy.special import expit
from sklearn.metrics import balanced_accuracy_score, f1_score

from audio_mnist.config import to_plain
from audio_mnist.data.advice import advice
from audio_mnist.data.prepare import prepare
from audio_mnist.scoring import intervals, measures
from audio_mnist.training.batches import ShuffledBatches
from audio_mnist.training.fit import build
from audio_mnist.training.job import plan
from tests.conftest import write_tones


def answers(n: int = 120, seed: int = 0, accuracy: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Unequal classes; errors go to any class."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, n, p=(0.6, 0.3, 0.1))
    return truth, np.where(rng.random(n) < accuracy, truth, rng.integers(3, size=n))


def test_measures_equal_scikit_learn() -> None:
    for seed in range(5):
        truth, predicted = answers(seed=seed)
        assert measures.value("balanced_accuracy", truth, predicted, 3) == pytest.approx(
            balanced_accuracy_score(truth, predicted)
        )
        assert measures.value("macro_f1", truth, predicted, 3) == pytest.approx(
            f1_score(truth, predicted, average="macro")
        )
        assert measures.value("accuracy", truth, predicted, 3) == (truth == predicted).mean()


def test_accuracy_keeps_its_interval() -> None:
    truth, predicted = answers()
    assert measures.score("accuracy", truth, predicted, 3) == intervals.score(truth == predicted)


@pytest.mark.parametrize("measure", ["balanced_accuracy", "macro_f1"])
@pytest.mark.parametrize("speakers", [0, 15, 60])
def test_intervals_of_scores_cover_the_truth(measure: str, speakers: int) -> None:
    """Of 200 experiments, with the true value from a large one, at least 92% cover it; speakers differ in skill."""
    covered = []
    for skill in (1.0, 3.5):  # logits of the right answer
        exact = measures.value(measure, *spoken(400_000, 999, skill, 40_000 if speakers else 0)[:2], 3)
        for seed in range(100):
            truth, predicted, groups = spoken(150, seed, skill, speakers)
            found = measures.score(measure, truth, predicted, 3, groups if speakers else None)
            assert 0 <= found.low <= found.value <= found.high <= 1
            covered.append(found.low <= exact <= found.high)
    assert np.mean(covered) >= 0.92


def spoken(n: int, seed: int, skill: float, speakers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Answers whose accuracy differs from speaker to speaker, with a standard deviation of 1 in its logit."""
    rng = np.random.default_rng(seed)
    truth, who = rng.choice(3, n, p=(0.6, 0.3, 0.1)), rng.integers(max(1, speakers), size=n)
    right = rng.random(n) < expit(skill + (rng.normal(size=max(1, speakers)) if speakers else np.zeros(1)))[who]
    return truth, np.where(right, truth, (truth + rng.integers(1, 3, size=n)) % 3), who


@pytest.mark.parametrize("measure", ["balanced_accuracy", "macro_f1"])
def test_differences_cover_nothing_where_there_is_nothing(measure: str) -> None:
    """Two classifiers of equal skill: at most 7% of 200 intervals exclude 0, exactly where p is below 0.05."""
    excluded = 0
    for seed in range(200):
        truth, first = answers(150, seed=seed)
        rng = np.random.default_rng(1000 + seed)
        second = np.where(rng.random(150) < 0.8, truth, rng.integers(3, size=150))
        found = measures.compare(measure, truth, first, second, 3)
        assert (found.low > 0 or found.high < 0) == (found.p_value < 0.05)
        excluded += found.p_value < 0.05
    assert excluded <= 14


def test_equal_classifiers_have_no_difference() -> None:
    truth, predicted = answers()
    found = measures.compare("macro_f1", truth, predicted, predicted, 3)
    assert found.difference == 0 and found.p_value == 1.0


def test_the_note_names_unequal_classes_only_where_accuracy_leads() -> None:
    assert "classes are unequal (10 to 90 clips)" in measures.note(np.array([90, 10]), "accuracy")
    assert measures.note(np.array([90, 10]), "balanced_accuracy") == ""
    assert measures.note(np.array([90, 60]), "accuracy") == ""


def test_balanced_sampling_draws_classes_alike() -> None:
    classes = np.array([0] * 90 + [1] * 10)
    sampler = ShuffledBatches(np.arange(100), 10, seed=0, classes=classes)
    drawn = np.zeros(2)
    for epoch in range(30):
        sampler.set_epoch(epoch)
        for rows in sampler:
            drawn += np.bincount(classes[rows.clips], minlength=2)
    assert 0.45 < drawn[1] / drawn.sum() < 0.55
    sampler.set_epoch(3)
    first, again = [rows.clips.tolist() for rows in sampler], [rows.clips.tolist() for rows in sampler]
    assert first == again


def test_class_weights_count_classes_alike(tone_config: Callable[..., DictConfig], tones: Path) -> None:
    """Weights are inverse to the clips of a class; their mean over the training clips is 1."""
    for path in sorted((tones / "low").glob("*.wav"))[4:]:
        path.unlink()
    job = plan(tone_config("class_weights=balanced"))
    weights = build(job, alone=True).classifier._weights
    assert weights is not None
    counts = np.bincount(job.corpus.targets()[job.split.train])
    np.testing.assert_allclose(weights.numpy() * counts, (weights.numpy() * counts)[0], rtol=1e-6)
    assert float((weights * torch.from_numpy(counts)).sum() / counts.sum()) == pytest.approx(1)
    assert build(plan(tone_config()), alone=True).classifier._weights is None


@pytest.mark.parametrize("given", ["class_weights=balanced", "sampling=balanced"])
def test_a_net_that_learns_in_one_pass_counts_classes_alike(given: str, tone_config: Callable[..., DictConfig]) -> None:
    """Both settings reach the support vector machine."""
    asked: list[bool] = []
    parts = build(plan(tone_config("model=svm", given)), alone=True)
    parts.classifier.net.fit = lambda *_, weighted: asked.append(weighted)  # type: ignore[method-assign]
    parts.classifier.trainer = SimpleNamespace(datamodule=parts.data)  # type: ignore[assignment]
    parts.classifier.on_train_start()
    assert asked == [True]


def test_the_leading_score_is_no_part_of_a_recipe(tone_config: Callable[..., DictConfig]) -> None:
    assert plan(tone_config("score=macro_f1")).config_fingerprint == plan(tone_config()).config_fingerprint
    assert plan(tone_config("sampling=balanced")).config_fingerprint != plan(tone_config()).config_fingerprint


def test_advice_names_what_a_person_needs_to_know(tone_config: Callable[..., DictConfig], tmp_path: Path) -> None:
    root = write_tones(tmp_path / "high_rate", rate_hz=44_100, speakers=3)
    kept = sorted((root / "low").glob("*.wav"))
    for path in kept[2:]:
        path.unlink()
    (root / "mid" / "s0_copy.wav").write_bytes((root / "mid" / "s0_0.wav").read_bytes())
    data = to_plain(tone_config(f"data.root={root}", r"data.settings.speaker_pattern='^(?P<speaker>s\d)'"))["data"]
    text = "\n".join(advice(prepare(data | {"clip_s": 2.0})))
    assert "clips are used at 44100 Hz" in text and "data.sample_rate_hz=16000" in text
    assert "of the windows is silence" in text
    assert "'low' has 2 clips, 'mid' 9" in text and "class_weights=balanced" in text
    assert "3 speakers" in text and "speakers are not known" not in text
    assert "copies of other clips, scored once: mid/s0_copy.wav (of mid/s0_0.wav)" in text
    unnamed = data | {"clip_s": 0.2, "settings": {"speaker_pattern": None}}
    short = "\n".join(advice(prepare(unnamed)))
    assert "the speakers are not known" in short and "data.settings.speaker_pattern" in short
    assert "clips are longer than the window of 0.20 s" in short
