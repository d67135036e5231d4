"""An evaluation as text. Pure."""

from rich.table import Table
from rich.text import Text

from audio_mnist.ensembles.evaluate import Evaluation
from audio_mnist.report import tables
from audio_mnist.report.tables import ENSEMBLE


def render(evaluation: Evaluation) -> str:
    """Describe an evaluation: folds, out of fold, test split, notes."""
    text, unit = _fold_table(evaluation), evaluation.unit
    text += tables.render("", "Out of fold: each clip scored by the runs that did not train on it")
    text += tables.render(tables.score_table(evaluation.oof_by, unit))
    text += tables.speakers_line(evaluation.total.speakers, unit)
    if evaluation.gains:
        text += tables.paired_line(ENSEMBLE, f"best single ({evaluation.best})", evaluation.gains, unit) + "\n"
    if evaluation.baseline is not None:
        label, paired = evaluation.baseline
        text += tables.paired_line(evaluation.whole, label, paired, unit) + "\n"
    if evaluation.parts:
        text += tables.render(
            "", "What each member adds: the ensemble minus the ensemble without it", _parts(evaluation)
        )
    whole, raw, calibrated = evaluation.whole, evaluation.raw, evaluation.calibrated
    if any(part.verdict == "hurts" for part in evaluation.parts.values()):
        text += "A member hurts where log loss is higher with it. It can be left out: give run_ids without its runs.\n"
    text += tables.calibration_line(whole, raw, calibrated, evaluation.temperature) + "\n"
    text += _test(evaluation)
    return text + "".join(f"note: {note}\n" for note in evaluation.notes)


def _parts(evaluation: Evaluation) -> Table:
    drawn = Table()
    for name in ("", "weight", "points", "log loss", ""):
        drawn.add_column(name, justify="left" if name == "" else "right")
    for label, part in evaluation.parts.items():
        gain, (loss, low, high) = part.gain, part.loss
        points = f"{100 * gain.difference:+.2f} ({100 * gain.low:+.2f} to {100 * gain.high:+.2f})"
        cells = (f"{part.weight:.3f}", points, f"{loss:+.4f} ({low:+.4f} to {high:+.4f})", part.verdict)
        drawn.add_row(Text(label), *cells)
    return drawn


def _fold_table(evaluation: Evaluation) -> str:
    folds = sorted({fold for cells in evaluation.by_fold.values() for fold in cells})
    caption = tables.fold_caption(evaluation.total.n, len(folds), evaluation.folds, evaluation.score)
    return tables.render(tables.fold_table(evaluation.by_fold, folds), caption)


def _test(evaluation: Evaluation) -> str:
    if evaluation.test_ece is not None:
        title = f"Test split: all {evaluation.members} runs, none saw it"
        text = tables.render("", title, tables.score_table(evaluation.test_by, evaluation.unit))
        text += tables.speakers_line(evaluation.test[evaluation.whole].speakers, evaluation.unit)
        ece = f"{evaluation.test_ece:.4f}"
        return text + f"expected calibration error of {evaluation.whole} on the test split: {ece}\n"
    if evaluation.test_clips:
        return f"\nTest split: {evaluation.test_clips} clips predicted; they have no labels to score\n"
    return ""
