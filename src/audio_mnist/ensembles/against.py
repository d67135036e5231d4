"""Two ensembles on the same clips: the difference of their scores, paired, and of each class's recall."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from audio_mnist.data.folds import Folds
from audio_mnist.data.prepare import PreparedCorpus
from audio_mnist.ensembles.evaluate import Evaluation
from audio_mnist.ensembles.join import Joint
from audio_mnist.errors import RunError
from audio_mnist.report import tables
from audio_mnist.scoring import calibration, intervals, measures
from audio_mnist.scoring.intervals import Paired
from audio_mnist.tracking.predictions import classes_of, probabilities_of
from audio_mnist.tracking.tracker import RunRecord, Tracker

PREDICTIONS = "predictions.csv"


@dataclass(frozen=True)
class Against:
    """This ensemble minus another one, on the clips that both scored out of fold.

    Attributes:
        name: name of the other one's run.
        whole: label of this ensemble.
        results: measure -> difference; the leading measure first.
        loss: difference of log loss, nats, and the ends of its 95% interval.
        classes: class -> difference of recall, on the clips of that class.
        unit: what the groups of the folds are, such as "speaker".
        notes: what a reader of the difference must know.
    """

    name: str
    whole: str
    results: dict[str, Paired]
    loss: tuple[float, float, float]
    classes: dict[str, Paired]
    unit: str
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """The `against/*` metrics."""
        found: dict[str, float] = {}
        for measure, result in self.results.items():
            found |= {f"against/{measure}": result.difference}
            found |= {f"against/{measure}_low": result.low, f"against/{measure}_high": result.high}
        low, high = self.loss[1:]
        return found | {"against/loss": self.loss[0], "against/loss_low": low, "against/loss_high": high}


def find(tracker: Tracker, run_id: str) -> RunRecord:
    """Return the run of an earlier ensemble.

    Raises:
        RunError: there is no such run, or it is no finished ensemble.
    """
    run = tracker.get(run_id)
    if run is None or run.tags.get("kind") != "ensemble" or run.status != "FINISHED":
        what = "no such run" if run is None else f"{run.name} is no finished ensemble"
        raise RunError(f"against={run_id}: {what}; give the id that an earlier ensemble.py printed, tracked: run ID")
    return run


def compare(
    tracker: Tracker, run: RunRecord, corpus: PreparedCorpus, folds: Folds, joint: Joint, evaluation: Evaluation
) -> Against:
    """Compare an ensemble with an earlier one.

    Args:
        tracker: where both are tracked.
        run: the other ensemble, as `find` returns it.
        corpus: the decoded clips.
        folds: folds of all clips.
        joint: this ensemble's probabilities.
        evaluation: its scores.

    Raises:
        RunError: it has other classes, or scored none of these clips.
    """
    with tracker.artifact(run.id, PREDICTIONS) as path:
        table = pd.read_csv(path, dtype={"clip_id": str, "label": str}, keep_default_na=False)
    table = table[table["scored"] == "out of fold"].set_index("clip_id")
    if classes_of(table) != list(corpus.class_names):
        raise RunError(f"against={run.id}: it has other classes, {', '.join(classes_of(table))}")
    clips = corpus.manifest["clip_id"].to_numpy()[joint.rows]
    labels = corpus.manifest["label"].to_numpy()[joint.rows]
    known = table["label"].to_dict()
    both = np.array([known.get(clip) == label for clip, label in zip(clips, labels, strict=True)], dtype=bool)
    if not both.any():
        raise RunError(f"against={run.id}: it scored none of these clips (corpus {run.tags.get('corpus')})")

    rows, p = joint.rows[both], joint.oof[both]
    other = probabilities_of(table.loc[clips[both]])
    truth, first, second = corpus.targets()[rows], p.argmax(axis=1), other.argmax(axis=1)
    groups = None if folds.groups is None else folds.groups[rows]
    count = len(corpus.class_names)
    return Against(
        name=f"{run.name}, run {run.id[:8]}",
        whole=evaluation.whole,
        results={m: measures.compare(m, truth, first, second, count, groups) for m in evaluation.oof_by},
        loss=intervals.mean_difference(calibration.log_loss(p, truth), calibration.log_loss(other, truth), groups),
        classes={
            name: intervals.compare(
                first[truth == number] == number,
                second[truth == number] == number,
                None if groups is None else groups[truth == number],
            )
            for number, name in enumerate(corpus.class_names)
            if (truth == number).any()
        },
        unit=folds.unit,
        notes=_notes(run.tags, corpus, folds, both),
    )


def _notes(tags: dict[str, str], corpus: PreparedCorpus, folds: Folds, both: np.ndarray) -> tuple[str, ...]:
    notes = []
    if not both.all():
        notes.append(f"compared on the {both.sum()} of {len(both)} clips that both scored")
    if tags.get("corpus_fingerprint") != corpus.fingerprint:
        notes.append("the corpus changed since: clips of the same name and label count as the same")
    if tags.get("fold_fingerprint") != folds.fingerprint:
        notes.append("the two were cut into different folds: each is scored out of its own folds")
    if tags.get("optimistic") == "true":
        notes.append("the other one is optimistic: its epochs or settings were chosen on the clips that it scored")
    return tuple(notes)


def render(against: Against) -> str:
    """Describe the comparison: one sentence, log loss, a table of classes, notes. Pure."""
    text = tables.paired_line(against.whole, against.name, against.results, against.unit) + "\n"
    loss, low, high = against.loss
    text += f"log loss {loss:+.4f} (95% interval {low:+.4f} to {high:+.4f}; below 0 is better)\n"
    drawn = Table()
    for name in ("class", "clips", "recall, points", "p", "only this right", "only the other right"):
        drawn.add_column(name, justify="left" if name == "class" else "right")
    for name, one in against.classes.items():
        points = f"{100 * one.difference:+.2f} ({100 * one.low:+.2f} to {100 * one.high:+.2f})"
        drawn.add_row(Text(name), str(one.n), points, f"{one.p_value:.2g}", str(one.only_first), str(one.only_second))
    text += tables.render(drawn, f"{len(against.classes)} comparisons: of twenty, one p below 0.05 is chance")
    return text + "".join(f"note: {note}\n" for note in against.notes)
