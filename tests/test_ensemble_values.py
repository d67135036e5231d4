"""An ensemble's evaluation and its text, from arrays made by hand: no MLflow, no file, no net."""

from dataclasses import replace

import numpy as np
import pytest

from audio_mnist.data.folds import Folds
from audio_mnist.ensembles.baselines import Baseline
from audio_mnist.ensembles.evaluate import Evaluation, evaluate, metrics_of
from audio_mnist.ensembles.join import Joint, join
from audio_mnist.ensembles.predictions import Predictions
from audio_mnist.ensembles.render import render
from audio_mnist.errors import RunError
from audio_mnist.scoring import intervals

LABELS = {"m": "Mel", "c": "MFCC"}
# 8 clips in two folds, then 4 test clips of which the last has no label
TARGETS = np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, -1])
FOLD_OF = np.array([0, 0, 0, 0, 1, 1, 1, 1, -1, -1, -1, -1])
SPEAKERS = np.array(list("aabbccdd" + "eeff"))


def answers(wrong: list[int], n: int = 12) -> np.ndarray:
    """(n, 2) probabilities of 0.8 for the truth, except for the clips `wrong`."""
    p = np.full((n, 2), 0.2)
    right = np.maximum(TARGETS[:n], 0)
    right[wrong] = 1 - right[wrong]
    p[np.arange(n), right] = 0.8
    return p


def predictions(mel: np.ndarray, mfcc: np.ndarray) -> Predictions:
    oof = {name: np.where(FOLD_OF[:, None] >= 0, p, np.nan) for name, p in (("m", mel), ("c", mfcc))}
    return Predictions(oof, np.stack([mel[8:], mfcc[8:]]), np.arange(8, 12), ("m", "c"), ())


def folds(groups: np.ndarray | None = None) -> Folds:
    return Folds(FOLD_OF, 2, 0, groups, "speaker", np.ones(12, dtype=bool), "print", ("a note of the folds",))


def joint(mel_wrong: list[int], mfcc_wrong: list[int], **how: str) -> Joint:
    given = {"combine": "mean", "calibrate": "none"} | how
    return join(predictions(answers(mel_wrong), answers(mfcc_wrong)), TARGETS, FOLD_OF, **given, families=LABELS)


def evaluation(**options: object) -> Evaluation:
    return evaluate(joint([0, 8], [1, 2]), LABELS, TARGETS, folds(), **options)  # type: ignore[arg-type]


def test_evaluate_scores_members_ensemble_and_test() -> None:
    """Mel errs once out of fold, MFCC twice; their mean is a tie where one errs, which goes to class 0."""
    found = evaluation()
    assert (found.whole, found.best, found.members, found.folds) == ("Ensemble", "Mel", 2, 2)
    assert found.oof["Mel"].value == 7 / 8 and found.oof["MFCC"].value == 6 / 8
    assert found.by_fold["MFCC"] == {0: 0.5, 1: 1.0}
    assert found.oof["Mel"] == intervals.score(np.arange(8) != 0)
    assert found.gain is not None and found.gain.difference == found.total.value - 7 / 8
    assert found.test["Mel"].n == 3 and found.test["Mel"].value == 2 / 3 and found.test_clips == 4
    assert found.parts["Mel"].weight == 0.5 and found.notes == ("a note of the folds",)
    assert found.parts["Mel"].gain.difference == found.total.value - found.oof["MFCC"].value


def test_evaluate_is_by_group_where_folds_have_them() -> None:
    """Out of fold and on the test split; without groups clips are independent."""
    grouped = evaluate(joint([0], [1]), LABELS, TARGETS, folds(SPEAKERS))
    assert grouped.total.speakers == 4 and grouped.test["Ensemble"].speakers == 2
    assert grouped.gain is not None and grouped.gain.speakers == 4
    assert evaluation().total.speakers == 0


def test_evaluate_of_one_recipe_has_no_ensemble_row() -> None:
    """The only recipe stands for the whole; there is no gain."""
    both = predictions(answers([0]), answers([]))
    one = Predictions({"m": both.oof["m"]}, both.test[:1], both.test_rows, ("m",), ())
    found = evaluate(
        join(one, TARGETS, FOLD_OF, combine="mean", calibrate="temperature", families=LABELS),
        LABELS,
        TARGETS,
        folds(SPEAKERS),
    )
    assert found.whole == found.best == "Mel" and found.gain is None and list(found.oof) == ["Mel"]
    assert found.total.value == 7 / 8 and "Ensemble" not in render(found)


def test_evaluate_with_a_baseline_puts_it_first_and_pairs_it() -> None:
    """A row of its own in each table, never the best recipe, and one more comparison."""
    baseline = Baseline("SVM", np.zeros(8, dtype=int), np.zeros(4, dtype=int))
    found = evaluation(baseline=baseline)
    assert list(found.oof) == ["SVM", "Mel", "MFCC", "Ensemble"] and found.best == "Mel"
    assert found.baseline is not None and found.baseline[1]["accuracy"].difference == found.total.value - 0.5
    assert metrics_of(found)["oof/baseline_accuracy"] == 0.5


def test_evaluate_leaves_a_test_split_without_labels_unscored() -> None:
    """Its clips are counted, and the text says so."""
    hidden = np.where(FOLD_OF >= 0, TARGETS, -1)
    found = evaluate(joint([0], [1]), LABELS, hidden, folds())
    assert (
        found.test_by == {} and found.test == {} and found.test_ece is None and "test/accuracy" not in metrics_of(found)
    )
    assert "Test split: 4 clips predicted; they have no labels to score" in render(found)


def test_join_compares_on_common_clips_only() -> None:
    """A recipe without one fold: the others are cut to it; without a common fold it is an error."""
    whole = predictions(answers([]), answers([]))
    half = {"m": whole.oof["m"], "c": np.where(FOLD_OF[:, None] == 1, whole.oof["c"], np.nan)}
    partial = join(replace(whole, oof=half), TARGETS, FOLD_OF, combine="mean", calibrate="none", families=LABELS)
    assert partial.rows.tolist() == [4, 5, 6, 7] and partial.partial
    assert "compared on the 4 clips that all scored" in render(evaluate(partial, LABELS, TARGETS, folds()))
    apart = {"m": np.where(FOLD_OF[:, None] == 0, whole.oof["m"], np.nan), "c": half["c"]}
    with pytest.raises(RunError, match="no fold in common"):
        join(replace(whole, oof=apart), TARGETS, FOLD_OF, combine="mean", calibrate="none", families=LABELS)


@pytest.mark.parametrize(
    ("combine", "calibrate"), [("stack", "none"), ("mean", "temperature"), ("stack", "temperature")]
)
def test_join_fits_nothing_on_the_fold_that_it_scores(combine: str, calibrate: str) -> None:
    """Other labels in fold 1 leave fold 1's own probabilities as they are; fold 0's change."""
    given = predictions(answers([0]), answers([5]))
    changed = np.where(FOLD_OF == 1, 1 - TARGETS, TARGETS)
    first, second = (
        join(given, targets, FOLD_OF, combine=combine, calibrate=calibrate, families=LABELS)
        for targets in (TARGETS, changed)
    )
    np.testing.assert_array_equal(first.oof[4:], second.oof[4:])
    assert not np.allclose(first.oof[:4], second.oof[:4])


@pytest.mark.parametrize("combine", ["mean", "logit_mean", "vote", "stack"])
def test_seeds_of_one_recipe_share_a_weight(combine: str) -> None:
    """Two seeds of Mel have equal weights, and what a member adds is about both of them."""
    rng = np.random.default_rng(0)
    first, second, mfcc = rng.dirichlet(np.ones(2), size=(3, 12))
    oof = {name: np.where(FOLD_OF[:, None] >= 0, p, np.nan) for name, p in (("m", first), ("c", mfcc), ("n", second))}
    given = Predictions(oof, np.stack([first, mfcc, second])[:, 8:], np.arange(8, 12), ("m", "c", "n"), ())
    families = {"m": "Mel", "n": "Mel", "c": "MFCC"}
    found = join(given, TARGETS, FOLD_OF, combine=combine, calibrate="none", families=families)
    weights = found.mixture.weights
    assert weights["m"] == weights["n"] and sum(weights.values()) == pytest.approx(1)
    assert found.weights == pytest.approx({"Mel": 2 * weights["m"], "MFCC": weights["c"]})
    assert (weights["m"] == weights["c"]) == (combine != "stack")
    np.testing.assert_allclose(found.without["Mel"].argmax(axis=1), mfcc[:8].argmax(axis=1))
    labels = {"m": "Mel seed=0", "n": "Mel seed=1", "c": "MFCC"}
    parts = evaluate(found, labels, TARGETS, folds(), families=families).parts
    assert {label: part.weight for label, part in parts.items()} == found.weights
    if combine == "stack":  # as one member, the geometric mean of both seeds
        logs = np.log(first) / 2 + np.log(second) / 2
        one = np.exp(logs) / np.exp(logs).sum(axis=1, keepdims=True)
        same = join(predictions(one, mfcc), TARGETS, FOLD_OF, combine=combine, calibrate="none", families=LABELS)
        assert same.mixture.weights == pytest.approx({"m": 2 * weights["m"], "c": weights["c"]}, abs=1e-6)
        for key in ("oof", "test"):
            np.testing.assert_allclose(getattr(found, key), getattr(same, key), rtol=1e-5)


def test_seeds_of_one_recipe_are_no_parts() -> None:
    """Two seeds of the only recipe weigh alike; nothing is left without them."""
    found = join(
        predictions(answers([0]), answers([1])),
        *(TARGETS, FOLD_OF),
        combine="stack",
        calibrate="temperature",
        families=dict.fromkeys(LABELS, "Mel"),
    )
    assert found.mixture.weights == {"m": 0.5, "c": 0.5}
    assert found.without == {} and evaluate(found, LABELS, TARGETS, folds()).parts == {}


def test_render_has_everything_in_its_place() -> None:
    """Tables, comparison, calibration, test split, notes, in this order."""
    text = render(evaluation(optimistic=True))
    places = [
        "fold 0",
        "Accuracy on each scored fold; n = 8 clips in 2 folds",
        "Out of fold: each clip scored by the runs that did not train on it",
        "Ensemble minus best single (Mel), paired on 8 recordings",
        "What each member adds: the ensemble minus the ensemble without it",
        "expected calibration error of Ensemble, out of fold",
        "Test split: all 2 runs, none saw it",
        "expected calibration error of Ensemble on the test split",
        "note: a note of the folds",
        "note: optimistic: epochs or settings were chosen on the clips scored here",
    ]
    found = [text.find(place) for place in places]
    assert -1 not in found and found == sorted(found)


def test_metrics_of_names_weights_as_mlflow_takes_them() -> None:
    """A label with characters that MLflow refuses."""
    whole = evaluation()
    found = replace(whole, parts={"Mel model.depth=2": replace(whole.parts["Mel"], weight=0.75)})
    assert metrics_of(found)["weight/Mel model.depth_2"] == 0.75


def test_render_is_text_in_a_notebook_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """There rich would display the tables, out of order, and leave the tracked text without them."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "│ Mel" in render(evaluation())


def test_a_member_that_hurts_is_named() -> None:
    """A member whose answers are chance, in a mean: its row says that it hurts. In a stack it gets little weight."""
    rng = np.random.default_rng(0)
    truth, fold_of = np.arange(400) % 2, np.arange(400) // 2 % 2
    good = np.where(np.eye(2)[truth] > 0, 0.9, 0.1)
    bad = rng.dirichlet(np.ones(2) * 0.2, size=400)
    given = Predictions({"m": good, "c": bad}, np.zeros((2, 0, 2)), np.zeros(0, dtype=int), ("m", "c"), ())
    whole = Folds(fold_of, 2, 0, None, "speaker", np.ones(400, dtype=bool), "print", ())
    for combine, least, most in (("mean", 0.5, 0.5), ("stack", 0.0, 0.1)):
        joined = join(given, truth, fold_of, combine=combine, calibrate="temperature", families=LABELS)
        found = evaluate(joined, LABELS, truth, whole)
        assert least <= found.parts["MFCC"].weight <= most
        assert found.parts["Mel"].verdict == "helps"
        if combine == "mean":
            assert found.parts["MFCC"].verdict == "hurts" and "hurts" in render(found)
