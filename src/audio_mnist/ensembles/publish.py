"""An ensemble's files, and its tracked run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from audio_mnist.data import corpora
from audio_mnist.data.folds import Folds
from audio_mnist.data.prepare import PreparedCorpus
from audio_mnist.data.tables import safe
from audio_mnist.ensembles.evaluate import Evaluation, metrics_of
from audio_mnist.ensembles.join import Joint
from audio_mnist.ensembles.members import Member
from audio_mnist.inference.load import ENSEMBLE_FILE, describe
from audio_mnist.report import errors_page, plots
from audio_mnist.scoring.measures import MEASURES
from audio_mnist.tracking import pages
from audio_mnist.tracking.tracker import CONFIG, Tracker


@dataclass(frozen=True)
class Ensemble:
    """Everything that is known of an ensemble.

    Attributes:
        members: the runs that it combines.
        corpus: the decoded clips.
        folds: folds of all clips.
        joint: joined probabilities.
        evaluation: its scores.
        labels: recipe -> label.
    """

    members: list[Member]
    corpus: PreparedCorpus
    folds: Folds
    joint: Joint
    evaluation: Evaluation
    labels: Mapping[str, str]


def write_files(ensemble: Ensemble, data: dict[str, Any], folder: Path) -> list[Path]:
    """Write predictions, a competition's submission, tables and the errors page; return their paths.

    Args:
        ensemble: the ensemble.
        data: the `data` config of its corpus.
        folder: target folder.

    Raises:
        DataError: a competition lists clips that have no prediction.
    """
    corpus, folds, joint, labels = ensemble.corpus, ensemble.folds, ensemble.joint, ensemble.labels
    scored = _table(corpus, folds, joint.rows, joint.oof, "out of fold")
    test = _table(corpus, folds, joint.test_rows, joint.test, "test")
    # before any file is written: it may find that clips are missing
    submission = corpora.reader(data).submission(test[["clip_id", "predicted"]])
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "predictions.csv"]
    written = safe(pd.concat([part for part in (scored, test) if len(part)]))
    written.to_csv(files[0], index=False, float_format="%.6g")
    if submission is not None:
        files.append(folder / "submission.csv")
        submission.to_csv(files[1], index=False)
    configs = {labels[member.recipe]: member.config for member in ensemble.members}
    title = f"{corpus.name}: {ensemble.evaluation.whole}, {len(ensemble.members)} runs"
    return files + errors_page.write(folder, corpus, _sections(corpus, folds, joint, labels), configs, title)


def _table(corpus: PreparedCorpus, folds: Folds, rows: np.ndarray, p: np.ndarray, scored: str) -> pd.DataFrame:
    names = np.asarray(corpus.class_names)
    clips = corpus.manifest.iloc[rows]
    table = pd.DataFrame({"clip_id": clips["clip_id"], "scored": scored, "label": clips["label"]})
    table["fold"] = [str(f) if f >= 0 else "" for f in folds.fold_of[rows]]
    table["predicted"] = names[p.argmax(axis=1)] if len(rows) else []
    table[[f"p:{name}" for name in names]] = p
    return table


def _sections(
    corpus: PreparedCorpus, folds: Folds, joint: Joint, labels: Mapping[str, str]
) -> list[errors_page.Answers]:
    oof = {labels[recipe]: p for recipe, p in joint.oof_of.items()}
    sections = [errors_page.Answers("Out of fold", joint.rows, joint.oof, oof)]
    labelled = (corpus.targets()[joint.test_rows] >= 0) & folds.scored[joint.test_rows]
    if labelled.any():
        test = {labels[recipe]: p[labelled] for recipe, p in joint.test_of.items()}
        rows = joint.test_rows[labelled]
        sections.append(errors_page.Answers("Test split", rows, joint.test[labelled], test))
    return sections


def publish(
    tracker: Tracker,
    ensemble: Ensemble,
    settings: dict[str, Any],
    text: str,
    files: list[Path],
    further: dict[str, float],
) -> str:
    """Log an ensemble as a tracked run under its sweep; return the run's id.

    Args:
        tracker: the tracking store.
        ensemble: the ensemble.
        settings: the config of `ensemble.py`, as it may be logged.
        text: the rendered evaluation.
        files: files to log.
        further: metrics besides those of the evaluation.
    """
    members, corpus, evaluation = ensemble.members, ensemble.corpus, ensemble.evaluation
    parents = {member.run.parent_id for member in members}
    parent_id = parents.pop() if len(parents) == 1 else None
    ids = [member.run.id for member in members]
    run = tracker.start(
        f"ensemble of {len(members)} ({settings['combine']})",
        kind="ensemble",
        tags={
            "corpus": corpus.name,
            "corpus_fingerprint": corpus.fingerprint,
            "fold_fingerprint": ensemble.folds.fingerprint,
            "members": ",".join(ids),
            "optimistic": str(evaluation.optimistic).lower(),
        },
        params={
            "combine": settings["combine"],
            "calibrate": settings["calibrate"],
            "members": len(members),
            "features": ", ".join(ensemble.labels.values()),
        },
        parent_id=parent_id,
    )
    try:
        run.log_metrics(metrics_of(evaluation) | further)
        run.log_text(text, "table.txt")
        run.log_text(describe(ensemble.joint.mixture, ids, corpus.class_names), ENSEMBLE_FILE)
        run.log_text(OmegaConf.to_yaml(settings), CONFIG)
        run.note("```\n" + text + "```")
        for path in files:
            run.log_file(path, path.name)
        for name, figure in _figures(corpus, ensemble.joint, evaluation).items():
            run.log_figure(figure, f"figures/{name}.png")
    except BaseException:
        run.end("FAILED")
        raise
    run.end("FINISHED")
    if parent_id:
        _tell_sweep(tracker, parent_id, run.id, evaluation)
    return run.id


def _tell_sweep(tracker: Tracker, parent_id: str, run_id: str, evaluation: Evaluation) -> None:
    """Put the ensemble's score into its sweep's metrics, and a link into its note."""
    total = evaluation.total
    name = "" if evaluation.score == "accuracy" else f"{MEASURES[evaluation.score]} "
    scored = f"{name}{total.value:.4f} out of fold ({total.low:.4f} to {total.high:.4f}, n = {total.n})"
    page = pages.run_page(tracker, run_id)
    parent = tracker.open(parent_id)
    summed = {f"oof/{evaluation.score}": total.value, "oof/loss": evaluation.loss, "oof/n": float(total.n)}
    parent.log_metrics(summed)
    parent.flush()
    parent.head_note(f"[Ensemble of {evaluation.members}]({page}): {scored}")


def _figures(corpus: PreparedCorpus, joint: Joint, evaluation: Evaluation) -> dict[str, Any]:
    total, truth = evaluation.total, corpus.targets()[joint.rows]
    title = f"{evaluation.whole}, out of fold: {total.value:.4f} (n = {total.n})"
    title += "\noptimistic: epochs or settings were chosen on these clips" if evaluation.optimistic else ""
    return {
        "confusion_matrix": plots.confusion(truth, joint.oof.argmax(axis=1), corpus.class_names, title),
        "reliability": plots.reliability(evaluation.raw, evaluation.calibrated, evaluation.whole),
    }
