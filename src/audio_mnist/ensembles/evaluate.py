"""How good an ensemble is: its scores, its gain, its calibration. Pure: nothing is read, printed or logged."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from audio_mnist.data.folds import Folds
from audio_mnist.ensembles.baselines import Baseline
from audio_mnist.ensembles.join import Joint
from audio_mnist.report.tables import ENSEMBLE
from audio_mnist.scoring import calibration, intervals
from audio_mnist.scoring.calibration import Reliability
from audio_mnist.scoring.intervals import Paired, Score


@dataclass(frozen=True)
class Evaluation:
    """The scores of an ensemble, of its members and of a baseline.

    Attributes:
        whole: label of the ensemble's row; of the only recipe where there is one.
        best: label of the best recipe.
        by_fold: label -> fold -> accuracy.
        folds: number of folds that the corpus was cut into.
        oof: label -> score out of fold.
        gain: the ensemble minus the best recipe; None where there is only one recipe.
        baseline: label of the baseline, and the ensemble minus the baseline; None where there is none.
        raw: calibration of the ensemble out of fold, before temperature scaling.
        calibrated: the same after it, cross-fitted.
        temperature: temperature of the ensemble, 1 for none.
        loss: mean log loss of the ensemble out of fold, nats.
        weights: label -> weight; empty where all are equal.
        test: label -> score on the test split; empty where it has no labels.
        test_clips: number of test clips.
        test_ece: calibration error on the test split; None where it has no labels.
        members: number of runs.
        optimistic: whether epochs were chosen on the scored folds.
        notes: what a reader of the scores must know.
    """

    whole: str
    best: str
    by_fold: dict[str, dict[int, float]]
    folds: int
    oof: dict[str, Score]
    gain: Paired | None
    baseline: tuple[str, Paired] | None
    raw: Reliability
    calibrated: Reliability
    temperature: float
    loss: float
    weights: dict[str, float]
    test: dict[str, Score]
    test_clips: int
    test_ece: float | None
    members: int
    optimistic: bool
    notes: tuple[str, ...]

    @property
    def total(self) -> Score:
        """The ensemble's score out of fold."""
        return self.oof[self.whole]


def evaluate(
    joint: Joint,
    labels: Mapping[str, str],
    targets: np.ndarray,
    folds: Folds,
    *,
    baseline: Baseline | None = None,
    optimistic: bool = False,
) -> Evaluation:
    """Score an ensemble.

    Args:
        joint: joined probabilities.
        labels: recipe -> label.
        targets: (clips,) class numbers, -1 where unknown.
        folds: folds of all clips.
        baseline: a classical classifier on the same folds.
        optimistic: whether epochs were chosen on the scored folds.
    """
    truth, several = targets[joint.rows], len(joint.oof_of) > 1
    groups = None if folds.groups is None else folds.groups[joint.rows]

    # right answers, in the order of the tables: baseline, recipes, ensemble
    right = {labels[recipe]: p.argmax(axis=1) == truth for recipe, p in joint.oof_of.items()}
    best = max(right, key=lambda label: right[label].mean())
    whole = ENSEMBLE if several else best
    right[whole] = joint.oof.argmax(axis=1) == truth
    if baseline is not None:
        right = {baseline.label: baseline.oof == truth} | right
    paired = None if baseline is None else intervals.compare(right[whole], right[baseline.label], groups)

    fold_of = folds.fold_of[joint.rows]
    scored = sorted(set(fold_of.tolist()))
    test, test_ece = _test_scores(joint, labels, targets, folds, whole, baseline)
    return Evaluation(
        whole=whole,
        best=best,
        by_fold={label: {f: float(answers[fold_of == f].mean()) for f in scored} for label, answers in right.items()},
        folds=folds.count,
        oof={label: intervals.score(answers, groups) for label, answers in right.items()},
        gain=intervals.compare(right[ENSEMBLE], right[best], groups) if several else None,
        baseline=None if baseline is None or paired is None else (baseline.label, paired),
        raw=calibration.reliability(joint.raw_oof, truth),
        calibrated=calibration.reliability(joint.oof, truth),
        temperature=joint.mixture.temperature,
        loss=float(calibration.log_loss(joint.oof, truth).mean()),
        weights=_weights(joint, labels),
        test=test,
        test_clips=len(joint.test_rows),
        test_ece=test_ece,
        members=len(joint.mixture.recipes),
        optimistic=optimistic,
        notes=_notes(joint, folds, optimistic),
    )


def _test_scores(
    joint: Joint,
    labels: Mapping[str, str],
    targets: np.ndarray,
    folds: Folds,
    whole: str,
    baseline: Baseline | None,
) -> tuple[dict[str, Score], float | None]:
    labelled = (targets[joint.test_rows] >= 0) & folds.scored[joint.test_rows]
    if not labelled.any():
        return {}, None
    rows = joint.test_rows[labelled]
    truth = targets[rows]
    groups = None if folds.groups is None else folds.groups[rows]  # of the test split too
    answers = {labels[recipe]: p[labelled].argmax(axis=1) for recipe, p in joint.test_of.items()}
    answers[whole] = joint.test[labelled].argmax(axis=1)
    if baseline is not None:
        answers = {baseline.label: baseline.test[labelled]} | answers
    scores = {label: intervals.score(answer == truth, groups) for label, answer in answers.items()}
    return scores, calibration.reliability(joint.test[labelled], truth).error


def _weights(joint: Joint, labels: Mapping[str, str]) -> dict[str, float]:
    if joint.mixture.combine != "stack" or len(joint.oof_of) < 2:
        return {}
    return {labels[recipe]: weight for recipe, weight in joint.mixture.weights.items()}


def _notes(joint: Joint, folds: Folds, optimistic: bool) -> tuple[str, ...]:
    notes = list(folds.notes)
    if joint.partial:
        notes.append(f"members cover different folds; they are compared on the {len(joint.rows)} clips that all scored")
    if optimistic:
        notes.append("optimistic: selection=fold chose epochs on the folds scored here")
    return tuple(notes)


def metrics_of(evaluation: Evaluation) -> dict[str, float]:
    """Return the `oof/*`, `test/*` and `weight/*` metrics of an evaluation."""
    total = evaluation.total
    metrics = {
        "oof/accuracy": total.accuracy,
        "oof/accuracy_low": total.low,
        "oof/accuracy_high": total.high,
        "oof/n": total.n,
        "oof/loss": evaluation.loss,
        "oof/ece_raw": evaluation.raw.error,
        "oof/ece": evaluation.calibrated.error,
    }
    if evaluation.baseline is not None:
        metrics["oof/baseline_accuracy"] = evaluation.oof[evaluation.baseline[0]].accuracy
    gain = evaluation.gain
    if gain is not None:
        metrics |= {"oof/gain": gain.difference, "oof/gain_low": gain.low, "oof/gain_high": gain.high}
        metrics["oof/gain_p"] = gain.p_value
    metrics |= {f"weight/{_metric_name(label)}": weight for label, weight in evaluation.weights.items()}
    if evaluation.test_ece is not None:
        test = evaluation.test[evaluation.whole]
        metrics |= {"test/accuracy": test.accuracy, "test/accuracy_low": test.low, "test/accuracy_high": test.high}
        metrics |= {"test/n": test.n, "test/ece": evaluation.test_ece}
    return metrics


def _metric_name(label: str) -> str:
    """Replace what MLflow does not allow in a metric's name."""
    return "".join(c if c.isalnum() or c in "._- " else "_" for c in label)
