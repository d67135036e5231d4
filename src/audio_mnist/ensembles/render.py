"""An evaluation as text. Pure."""

from audio_mnist.ensembles.evaluate import Evaluation
from audio_mnist.report import tables
from audio_mnist.report.tables import ENSEMBLE


def render(evaluation: Evaluation) -> str:
    """Describe an evaluation: folds, out of fold, test split, notes."""
    text = _fold_table(evaluation)
    text += tables.render("", "Out of fold: each clip scored by the runs that did not train on it")
    text += tables.render(tables.score_table(evaluation.oof)) + tables.speakers_line(evaluation.total.speakers)
    if evaluation.gain is not None:
        text += tables.paired_line(ENSEMBLE, f"best single ({evaluation.best})", evaluation.gain) + "\n"
    if evaluation.baseline is not None:
        label, paired = evaluation.baseline
        text += tables.paired_line(evaluation.whole, label, paired) + "\n"
    if evaluation.weights:
        given = ", ".join(f"{label} {weight:.3f}" for label, weight in evaluation.weights.items())
        text += f"weights, fitted on all clips out of fold (cross-fitted where a fold is scored): {given}\n"
    whole, raw, calibrated = evaluation.whole, evaluation.raw, evaluation.calibrated
    text += tables.calibration_line(whole, raw, calibrated, evaluation.temperature) + "\n"
    text += _test(evaluation)
    return text + "".join(f"note: {note}\n" for note in evaluation.notes)


def _fold_table(evaluation: Evaluation) -> str:
    folds = sorted({fold for cells in evaluation.by_fold.values() for fold in cells})
    caption = tables.fold_caption(evaluation.total.n, len(folds), evaluation.folds)
    return tables.render(tables.fold_table(evaluation.by_fold, folds), caption)


def _test(evaluation: Evaluation) -> str:
    if evaluation.test_ece is not None:
        title = f"Test split: all {evaluation.members} runs, none saw it"
        text = tables.render("", title, tables.score_table(evaluation.test))
        text += tables.speakers_line(evaluation.test[evaluation.whole].speakers)
        ece = f"{evaluation.test_ece:.4f}"
        return text + f"expected calibration error of {evaluation.whole} on the test split: {ece}\n"
    if evaluation.test_clips:
        return f"\nTest split: {evaluation.test_clips} clips predicted; they have no labels to score\n"
    return ""
