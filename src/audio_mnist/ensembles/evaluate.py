"""How good an ensemble is: its scores, its gain, its calibration. Pure: nothing is read, printed or logged."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from audio_mnist.data.folds import Folds
from audio_mnist.ensembles.baselines import Baseline
from audio_mnist.ensembles.join import Joint
from audio_mnist.report.tables import ENSEMBLE, metric_name
from audio_mnist.scoring import calibration, intervals, measures
from audio_mnist.scoring.calibration import Reliability
from audio_mnist.scoring.intervals import Paired, Score


@dataclass(frozen=True)
class Part:
    """Contribution of one recipe, with all its seeds, to an ensemble.

    Attributes:
        weight: its weight.
        gain: the ensemble minus the ensemble without it, by the leading score.
        loss: the same difference of log loss, nats, and the ends of its 95% interval.
    """

    weight: float
    gain: Paired
    loss: tuple[float, float, float]

    @property
    def verdict(self) -> str:
        """Whether it helps or hurts, beyond chance, by log loss."""
        _, low, high = self.loss
        return "helps" if high < 0 else "hurts" if low > 0 else "no clear effect"


@dataclass(frozen=True)
class Evaluation:
    """The scores of an ensemble, of its members and of a baseline.

    Attributes:
        whole: label of the ensemble's row; of the only recipe where there is one.
        best: label of the best recipe.
        by_fold: label -> fold -> accuracy.
        folds: number of folds that the corpus was cut into.
        score: the leading measure.
        oof_by: measure -> label -> score out of fold; the leading measure first.
        gains: measure -> the ensemble minus the best recipe; empty where there is only one recipe.
        baseline: label of the baseline, and measure -> the ensemble minus the baseline; None where there is none.
        unit: what the groups of the folds are, such as "speaker".
        raw: calibration of the ensemble out of fold, before temperature scaling.
        calibrated: the same after it, cross-fitted.
        temperature: temperature of the ensemble, 1 for none.
        loss: mean log loss of the ensemble out of fold, nats.
        parts: family -> what its recipes add together; empty where there is one family.
        test_by: measure -> label -> score on the test split; empty where it has no labels.
        test_clips: number of test clips.
        test_ece: calibration error on the test split; None where it has no labels.
        members: number of runs.
        optimistic: whether epochs or settings were chosen on the scored folds.
        notes: what a reader of the scores must know.
    """

    whole: str
    best: str
    by_fold: dict[str, dict[int, float]]
    folds: int
    score: str
    oof_by: dict[str, dict[str, Score]]
    gains: dict[str, Paired]
    baseline: tuple[str, dict[str, Paired]] | None
    unit: str
    raw: Reliability
    calibrated: Reliability
    temperature: float
    loss: float
    parts: dict[str, Part]
    test_by: dict[str, dict[str, Score]]
    test_clips: int
    test_ece: float | None
    members: int
    optimistic: bool
    notes: tuple[str, ...]

    @property
    def oof(self) -> dict[str, Score]:
        """Label -> leading score out of fold."""
        return self.oof_by[self.score]

    @property
    def test(self) -> dict[str, Score]:
        """Label -> leading score on the test split; empty where it has no labels."""
        return self.test_by.get(self.score, {})

    @property
    def gain(self) -> Paired | None:
        """The ensemble minus the best recipe, by the leading score; None where there is only one recipe."""
        return self.gains.get(self.score)

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
    score: str = "accuracy",
    families: Mapping[str, str] | None = None,
) -> Evaluation:
    """Score an ensemble.

    Args:
        joint: joined probabilities.
        labels: recipe -> label.
        targets: (clips,) class numbers, -1 where unknown.
        folds: folds of all clips.
        baseline: a classifier on the same folds.
        optimistic: whether epochs or settings were chosen on the scored folds.
        score: the leading measure, one of `measures.MEASURES`.
        families: recipe -> label of its row, where recipes that differ in the seed share one; `labels` otherwise.
    """
    truth, several, classes = targets[joint.rows], len(joint.oof_of) > 1, joint.oof.shape[1]
    groups = None if folds.groups is None else folds.groups[joint.rows]

    # answers, in the order of the tables: baseline, recipes, ensemble
    single = {labels[recipe]: p.argmax(axis=1) for recipe, p in joint.oof_of.items()}
    best = max(single, key=lambda label: measures.value(score, truth, single[label], classes))
    whole = ENSEMBLE if several else best
    rows = _by_family(joint.oof_of, families or labels) | {whole: [joint.oof.argmax(axis=1)]}
    answers = ({} if baseline is None else {baseline.label: [baseline.oof]}) | rows
    ordered = [score, *(measure for measure in measures.MEASURES if measure != score)]

    def minus(other: np.ndarray) -> dict[str, Paired]:
        return {m: measures.compare(m, truth, answers[whole][0], other, classes, groups) for m in ordered}

    test, test_ece = _test_scores(joint, families or labels, targets, folds, whole, baseline, ordered)
    return Evaluation(
        whole=whole,
        best=best,
        by_fold=_by_fold(score, truth, answers, folds.fold_of[joint.rows], classes),
        folds=folds.count,
        score=score,
        oof_by=_scores(ordered, truth, answers, classes, groups),
        gains=minus(single[best]) if several else {},
        baseline=None if baseline is None else (baseline.label, minus(baseline.oof)),
        unit=folds.unit,
        raw=calibration.reliability(joint.raw_oof, truth),
        calibrated=calibration.reliability(joint.oof, truth),
        temperature=joint.mixture.temperature,
        loss=float(calibration.log_loss(joint.oof, truth).mean()),
        parts=_parts(joint, truth, groups, score),
        test_by=test,
        test_clips=len(joint.test_rows),
        test_ece=test_ece,
        members=len(joint.mixture.recipes),
        optimistic=optimistic,
        notes=_notes(joint, folds, optimistic, measures.note(np.bincount(truth, minlength=classes), score)),
    )


def _by_family(of_recipes: Mapping[str, np.ndarray], families: Mapping[str, str]) -> dict[str, list[np.ndarray]]:
    """Return label -> (n,) answers of each of its seeds."""
    answers: dict[str, list[np.ndarray]] = {}
    for recipe, p in of_recipes.items():
        answers.setdefault(families[recipe], []).append(p.argmax(axis=1))
    return answers


def _by_fold(
    measure: str, truth: np.ndarray, answers: Mapping[str, list[np.ndarray]], fold_of: np.ndarray, classes: int
) -> dict[str, dict[int, float]]:
    """Return label -> fold -> score, the mean over seeds."""
    parts = {fold: fold_of == fold for fold in sorted(set(fold_of.tolist()))}
    return {
        label: {
            fold: float(np.mean([measures.value(measure, truth[part], one[part], classes) for one in per_seed]))
            for fold, part in parts.items()
        }
        for label, per_seed in answers.items()
    }


def _scores(
    ordered: list[str],
    truth: np.ndarray,
    answers: Mapping[str, list[np.ndarray]],
    classes: int,
    groups: np.ndarray | None,
) -> dict[str, dict[str, Score]]:
    return {
        measure: {
            label: intervals.average([measures.score(measure, truth, one, classes, groups) for one in per_seed])
            for label, per_seed in answers.items()
        }
        for measure in ordered
    }


def _test_scores(
    joint: Joint,
    families: Mapping[str, str],
    targets: np.ndarray,
    folds: Folds,
    whole: str,
    baseline: Baseline | None,
    ordered: list[str],
) -> tuple[dict[str, dict[str, Score]], float | None]:
    labelled = (targets[joint.test_rows] >= 0) & folds.scored[joint.test_rows]
    if not labelled.any():
        return {}, None
    rows = joint.test_rows[labelled]
    truth = targets[rows]
    groups = None if folds.groups is None else folds.groups[rows]  # of the test split too
    answers = {} if baseline is None else {baseline.label: [baseline.test[labelled]]}
    answers |= _by_family({recipe: p[labelled] for recipe, p in joint.test_of.items()}, families)
    answers[whole] = [joint.test[labelled].argmax(axis=1)]
    scores = _scores(ordered, truth, answers, joint.oof.shape[1], groups)
    return scores, calibration.reliability(joint.test[labelled], truth).error


def _parts(joint: Joint, truth: np.ndarray, groups: np.ndarray | None, score: str) -> dict[str, Part]:
    parts, classes = {}, joint.oof.shape[1]
    whole, losses = joint.oof.argmax(axis=1), calibration.log_loss(joint.oof, truth)
    for family, p in joint.without.items():
        gain = measures.compare(score, truth, whole, p.argmax(axis=1), classes, groups)
        loss = intervals.mean_difference(losses, calibration.log_loss(p, truth), groups)
        parts[family] = Part(joint.weights[family], gain, loss)
    return parts


def _notes(joint: Joint, folds: Folds, optimistic: bool, unequal: str) -> tuple[str, ...]:
    notes = [*folds.notes, *([unequal] if unequal else [])]
    if joint.partial:
        notes.append(f"members cover different folds; they are compared on the {len(joint.rows)} clips that all scored")
    if optimistic:
        notes.append("optimistic: epochs or settings were chosen on the clips scored here")
    return tuple(notes)


def metrics_of(evaluation: Evaluation) -> dict[str, float]:
    """Return the `oof/*`, `test/*` and `weight/*` metrics of an evaluation."""
    metrics = {
        "oof/n": evaluation.total.n,
        "oof/loss": evaluation.loss,
        "oof/ece_raw": evaluation.raw.error,
        "oof/ece": evaluation.calibrated.error,
    }
    for split, by in (("oof", evaluation.oof_by), ("test", evaluation.test_by)):
        for measure, scores in by.items():
            metrics |= _with_ends(f"{split}/{measure}", scores[evaluation.whole])
    for measure, gain in evaluation.gains.items():
        name = "oof/gain" if measure == evaluation.score else f"oof/gain_{measure}"
        metrics |= {name: gain.difference, f"{name}_low": gain.low, f"{name}_high": gain.high}
        metrics[f"{name}_p"] = gain.p_value
    if evaluation.baseline is not None:
        metrics["oof/baseline_accuracy"] = evaluation.oof_by["accuracy"][evaluation.baseline[0]].value
    metrics |= {f"weight/{metric_name(label)}": part.weight for label, part in evaluation.parts.items()}
    if evaluation.test_ece is not None:
        metrics |= {"test/n": evaluation.test[evaluation.whole].n, "test/ece": evaluation.test_ece}
    return metrics


def _with_ends(name: str, score: Score) -> dict[str, float]:
    return {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
