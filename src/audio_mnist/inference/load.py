"""A tracked run, ensemble or registered model -> a predictor."""

import json
import pickle
import zipfile
from typing import Any

from omegaconf import OmegaConf

from audio_mnist.config import to_plain
from audio_mnist.errors import RunError
from audio_mnist.inference.predictor import Predictor
from audio_mnist.scoring.mixture import Mixture
from audio_mnist.tracking.registry import registered_run
from audio_mnist.tracking.tracker import BEST_CHECKPOINT, CONFIG, AnyTracker, RunRecord, Tracker, newest
from audio_mnist.training.classifier import Classifier, load

VERSION = 2  # of what the weights of combine=stack mean
ENSEMBLE_FILE = "ensemble.json"  # artifact of an ensemble's run: all that it needs beside its members' checkpoints


def describe(mixture: Mixture, run_ids: list[str], class_names: tuple[str, ...]) -> str:
    """Return the text of `ENSEMBLE_FILE`."""
    described = {
        "members": [{"run": run, "recipe": recipe} for run, recipe in zip(run_ids, mixture.recipes, strict=True)],
        "combine": mixture.combine,
        "version": VERSION,
        "weights": mixture.weights,
        "temperature": mixture.temperature,
        "class_names": list(class_names),
    }
    return json.dumps(described, indent=2)


def load_predictor(tracker: Tracker, model: str) -> Predictor:
    """Load the predictor of a tracked run.

    Args:
        tracker: where it is tracked.
        model: id of an ensemble or a training run; "latest", the newest ensemble; or a registered model, NAME (its
            newest version), NAME@ALIAS or NAME/VERSION, with or without models:/ before it.

    Raises:
        RunError: there is no such run, or it cannot predict.
    """
    run = _find(tracker, model)
    if run.tags["kind"] == "train":
        return Predictor(run.name, run.id, (load_classifier(tracker, run.id),), Mixture(("",), "mean", {"": 1.0}, 1.0))
    try:
        with tracker.artifact(run.id, ENSEMBLE_FILE) as path:
            described = json.loads(path.read_text())
    except RunError as error:
        raise RunError(f"{error}; make the ensemble again with ensemble.py") from None
    if described["combine"] == "stack" and described.get("version", 1) < VERSION:
        raise RunError(f"model={run.id}: an earlier version weighed its members otherwise; make it again, ensemble.py")
    classifiers = []
    for entry in described["members"]:
        if tracker.get(entry["run"]) is None:
            raise RunError(
                f"model={run.id}: its member {entry['run']} is no longer in tracking.uri={tracker.shown_uri}"
            )
        classifiers.append(load_classifier(tracker, entry["run"]))
    recipes = tuple(entry["recipe"] for entry in described["members"])
    mixture = Mixture(recipes, described["combine"], described["weights"], described["temperature"])
    return Predictor(run.name, run.id, tuple(classifiers), mixture)


def _find(tracker: Tracker, model: str) -> RunRecord:
    if model == "latest":
        run = newest(tracker.search(kind="ensemble"))
        if run is None:
            raise RunError(f"model=latest: no ensemble in tracking.uri={tracker.shown_uri}; make one with ensemble.py")
    else:
        run = tracker.get(model) or tracker.get(registered_run(tracker, model) or model)
        if run is None:
            raise RunError(f"model={model}: neither a run nor a registered model in tracking.uri={tracker.shown_uri}")
    kind = run.tags.get("kind")
    if kind not in ("ensemble", "train"):
        raise RunError(f"model={model} is not an ensemble or a training run but a {kind or 'run of another project'}")
    if run.status != "FINISHED":
        raise RunError(f"model={model} is unfinished: its status is {run.status}")
    return run


def load_classifier(tracker: AnyTracker, run_id: str) -> Classifier:
    """Load front end and net from a run's best checkpoint alone.

    Raises:
        RunError: the checkpoint is missing or damaged.
    """
    with tracker.artifact(run_id, BEST_CHECKPOINT) as path:
        try:
            return load(path)
        except (RuntimeError, OSError, EOFError, KeyError, TypeError, pickle.UnpicklingError, zipfile.BadZipFile):
            raise RunError(f"run {run_id}: its checkpoint {BEST_CHECKPOINT} is damaged; train it again") from None


def config_of(tracker: AnyTracker, run_id: str) -> dict[str, Any]:
    """Return a training run's whole composed config."""
    with tracker.artifact(run_id, CONFIG) as path:
        return to_plain(OmegaConf.load(path))
