"""Tracked runs -> ensemble members: found, checked against each other, rebuilt from their checkpoints."""

import logging
import pickle
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from audio_mnist.config import to_plain
from audio_mnist.errors import RunError
from audio_mnist.scoring import mixture as ensembling
from audio_mnist.tracking import tracker as tracking
from audio_mnist.tracking.tracker import RunRecord, Tracker

if TYPE_CHECKING:
    from audio_mnist.data.prepare import PreparedCorpus
    from audio_mnist.training.classifier import Classifier

log = logging.getLogger(__name__)
TOLERANCE = 1e-4  # largest difference of a recomputed probability; float32 on other hardware stays far below


@dataclass(frozen=True)
class Member:
    """One run of an ensemble.

    Attributes:
        recipe: fingerprint of everything but the fold: runs that share it are
            one model, cross-validated.
        config: the run's whole composed config.
        fold: that it was scored on.
    """

    run: RunRecord
    recipe: str
    config: dict[str, Any]
    fold: int


def find(tracker: Tracker, run_ids: Sequence[str] | str) -> list[Member]:
    """The named runs, or with "latest" those of the newest sweep, if they can be one ensemble.

    Raises:
        RunError: names every refused run and why.
    """
    if run_ids == "latest":
        parent, runs, newer = tracker.latest_sweep()
        if parent is None:
            raise RunError(f"run_ids=latest: no sweep with a finished run in tracking.uri={tracker.shown_uri}")
        log.info("run_ids=latest: %s, %d finished runs", sweep_name(parent), len(runs))
        if newer:
            log.warning("note: of %d newer %s no run is finished", newer, "sweep" if newer == 1 else "sweeps")
        refused: dict[str, str] = {}
    else:
        runs, refused = _look_up(tracker, run_ids)
    first: RunRecord | None = None
    by_config: dict[str, str] = {}
    for run in runs:
        reason = _refusal(run, first, by_config)
        if reason:
            refused[run.id] = reason
        else:
            first = first or run
            by_config[run.tags["config_fingerprint"]] = run.id
    if refused:
        lines = [f"  {run_id}: {reason}" for run_id, reason in refused.items()]
        raise RunError(f"{len(refused)} of the runs cannot join the ensemble:\n" + "\n".join(lines))
    members = []
    for run in runs:
        config = config_of(tracker, run.id)
        members.append(Member(run, run.tags["recipe_fingerprint"], config, config["fold"]))
    return sorted(members, key=lambda member: (member.config["feature"]["name"] != "mel", member.recipe, member.fold))


def sweep_name(parent: RunRecord) -> str:
    """A sweep as a person knows it again: when it began, on which corpus, by which command."""
    return f"{parent.name} on {parent.tags.get('corpus', 'a corpus')} ({parent.tags.get('overrides', '')})"


def config_of(tracker: Tracker, run_id: str) -> dict[str, Any]:
    """A training run's whole composed config."""
    with tracker.artifact(run_id, tracking.CONFIG) as path:
        return to_plain(OmegaConf.load(path))


def _look_up(tracker: Tracker, run_ids: Sequence[str]) -> tuple[list[RunRecord], dict[str, str]]:
    runs, refused = [], {}
    for run_id in dict.fromkeys(run_ids):
        run = tracker.get(run_id)
        if run is None:
            refused[run_id] = f"unknown: no such run in tracking.uri={tracker.shown_uri}"
        elif list(run_ids).count(run_id) > 1:
            refused[run_id] = "named twice: name every run once"
        else:
            runs.append(run)
    return runs, refused


def _refusal(run: RunRecord, first: RunRecord | None, by_config: dict[str, str]) -> str | None:
    if run.tags.get("kind") != "train":
        return f"not a training run but a {run.tags.get('kind', 'run of something else')}; name the runs under it"
    if run.status != "FINISHED":
        return f"unfinished: its status is {run.status}; train it again"
    if first is not None:
        for key, what in (
            ("classes", "has other labels"),
            ("corpus_fingerprint", "was trained on another corpus (or the clips changed)"),
            ("fold_fingerprint", "was trained on other folds"),
        ):
            if run.tags[key] != first.tags[key]:
                return f"{what} than run {first.id}: {run.tags[key]}, not {first.tags[key]}"
    twin = by_config.get(run.tags["config_fingerprint"])
    if twin:
        return f"duplicated: the same settings and fold as run {twin}; it would count twice"
    return None


def load_classifier(tracker: Tracker, member: Member) -> "Classifier":
    """Front end and net, from the run's best checkpoint alone.

    Raises:
        RunError: the checkpoint is gone or damaged.
    """
    from audio_mnist.training.classifier import load

    with tracker.artifact(member.run.id, tracking.BEST_CHECKPOINT) as path:
        try:
            return load(path)
        except (RuntimeError, OSError, EOFError, KeyError, TypeError, pickle.UnpicklingError, zipfile.BadZipFile):
            raise RunError(
                f"run {member.run.id}: its checkpoint {tracking.BEST_CHECKPOINT} is damaged; train it again"
            ) from None


def logged_predictions(tracker: Tracker, run_id: str) -> pd.DataFrame:
    """What a run logged of its fold: clip_id, label, predicted and a column `p:CLASS` a class."""
    with tracker.artifact(run_id, tracking.FOLD_PREDICTIONS) as path:
        return pd.read_csv(path, dtype={"clip_id": str, "label": str, "predicted": str}, keep_default_na=False)


def probabilities_of(table: pd.DataFrame) -> np.ndarray:
    """(n, C) float64."""
    return table[[c for c in table.columns if c.startswith("p:")]].to_numpy(dtype=np.float64)


def check_reproduced(
    member: Member, corpus: "PreparedCorpus", logged: pd.DataFrame, rows: np.ndarray, p: np.ndarray
) -> None:
    """Compares recomputed probabilities (n, C) of the clips `rows` with the logged ones.

    Raises:
        RunError: other clips, or other probabilities than `TOLERANCE` allows.
    """
    if logged["clip_id"].tolist() != corpus.manifest["clip_id"].iloc[rows].tolist():
        raise RunError(f"run {member.run.id}: its logged predictions are of other clips than its fold {member.fold}")
    worst = float(np.abs(probabilities_of(logged) - p).max())
    if not worst <= TOLERANCE:
        raise RunError(
            f"run {member.run.id}: its checkpoint gives other probabilities than it logged (largest difference "
            f"{worst:.2g}, allowed {TOLERANCE:g}); the checkpoint or the log was changed: train it again"
        )


def fold_ensemble(tracker: Tracker, runs: Sequence[RunRecord], recipes: int) -> dict[int, float]:
    """Accuracy of the mean of all recipes' logged predictions, for each fold that all of them finished."""
    by_fold: dict[int, list[RunRecord]] = {}
    for run in runs:
        by_fold.setdefault(int(run.tags["fold"]), []).append(run)
    accuracies = {}
    for fold, of_fold in sorted(by_fold.items()):
        same_folds = len({(r.tags["fold_fingerprint"], r.tags["corpus_fingerprint"]) for r in of_fold}) == 1
        if len(of_fold) == recipes and same_folds:
            tables = [logged_predictions(tracker, run.id) for run in of_fold]
            p = ensembling.combine(np.stack([probabilities_of(table) for table in tables]), "mean")
            names = np.array([c.removeprefix("p:") for c in tables[0].columns if c.startswith("p:")])
            accuracies[fold] = float((names[p.argmax(axis=1)] == tables[0]["label"].to_numpy()).mean())
    return accuracies
