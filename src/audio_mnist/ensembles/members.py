"""Tracked runs -> ensemble members: found, and checked against each other."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from audio_mnist.errors import RunError, by_cause
from audio_mnist.inference.load import config_of
from audio_mnist.tracking.run import list_of
from audio_mnist.tracking.tracker import RunRecord, Tracker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One run of an ensemble.

    Attributes:
        run: the tracked run.
        recipe: fingerprint of everything but the fold. Runs that share it are one model, cross-validated.
        config: the run's whole composed config.
        fold: the fold that it was scored on.
    """

    run: RunRecord
    recipe: str
    config: dict[str, Any]
    fold: int


def find(tracker: Tracker, run_ids: Sequence[str] | str) -> list[Member]:
    """Return the named runs, or with "latest" those of the newest sweep, if they can be one ensemble.

    Raises:
        RunError: names refused runs, grouped by reason.
    """
    refused: dict[str, str] = {}
    if run_ids == "latest":
        runs = _latest(tracker)
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
        raise RunError(f"{len(refused)} of the runs cannot join the ensemble:\n{by_cause(refused, 'runs')}")
    members = []
    for run in runs:
        config = config_of(tracker, run.id)
        members.append(Member(run, run.tags["recipe_fingerprint"], config, config["fold"]))
    return sorted(members, key=lambda member: (member.config["feature"]["name"] != "mel", member.recipe, member.fold))


def latest_sweep(tracker: Tracker) -> tuple[RunRecord | None, list[RunRecord], int]:
    """Return the newest sweep that has finished runs, these runs, and the number of newer sweeps without any.

    Its runs include those that it took over from earlier sweeps.
    """
    sweeps = tracker.search(kind="sweep")
    newest_first = sorted(sweeps, key=lambda sweep: sweep.tags.get("begun", ""), reverse=True)
    for newer, parent in enumerate(newest_first):
        ids = list_of(parent.tags, "taken_over")
        taken = [run for run in map(tracker.get, ids) if run is not None and run.tags.get("kind") == "train"]
        trained = [run for run in tracker.search(kind="train", parent_id=parent.id) if run.id not in ids]
        finished = [run for run in taken + trained if run.status == "FINISHED"]
        found = list_of(parent.tags, "found")  # by a search, which also trained the settings as given
        finished = [run for run in finished if run.id in found] or finished
        if finished:
            return parent, finished, newer
    return None, [], len(sweeps)


def _latest(tracker: Tracker) -> list[RunRecord]:
    parent, runs, newer = latest_sweep(tracker)
    if parent is None:
        raise RunError(f"run_ids=latest: no sweep with a finished run in tracking.uri={tracker.shown_uri}")
    log.info("run_ids=latest: %s, %d finished runs", sweep_name(parent), len(runs))
    if newer:
        log.warning("note: %d newer %s no finished run", newer, "sweep has" if newer == 1 else "sweeps have")
    return runs


def sweep_name(parent: RunRecord) -> str:
    """Describe a sweep as a person recognises it: when it began, on which corpus, by which command."""
    return f"{parent.name} on {parent.tags.get('corpus', 'a corpus')} ({parent.tags.get('overrides', '')})"


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
        return f"not a training run but a {run.tags.get('kind', 'run of another project')}; name the runs under it"
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
