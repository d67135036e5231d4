"""A tracked run or ensemble -> an object that says what it hears in waveforms of any sample rate and length."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from audio_mnist.data.store import WaveformStore
from audio_mnist.ensemble.members import Member, config_of, load_classifier
from audio_mnist.errors import RunError
from audio_mnist.scoring.mixture import Mixture
from audio_mnist.system import devices
from audio_mnist.tracking.tracker import RunRecord, Tracker
from audio_mnist.training.classifier import Classifier, predict_together

FILE = "ensemble.json"  # artifact of an ensemble's run: all that is needed beside its members' checkpoints


@dataclass(frozen=True)
class Predictor:
    """Members and what makes one answer of theirs.

    Attributes:
        name: of the run, for people.
        run_id: of the run.
        classifiers: one a member.
        mixture: that joins them.
    """

    name: str
    run_id: str
    classifiers: tuple[Classifier, ...]
    mixture: Mixture

    @property
    def class_names(self) -> list[str]:
        """In the order of the probabilities."""
        return self.classifiers[0].class_names

    @property
    def window_s(self) -> float:
        """Shortest window that a member hears, s; of a longer clip it hears the middle."""
        return min(c.clip_samples / c.sample_rate_hz for c in self.classifiers)

    @property
    def heard_s(self) -> float:
        """How much of a long clip's middle the members hear, s; infinite where one hears several places of it."""
        if any(c.placements > 1 for c in self.classifiers):
            return math.inf
        return max(c.clip_samples / c.sample_rate_hz * max(c.speeds) for c in self.classifiers)

    def predict(self, waveforms: list[tuple[np.ndarray, int]]) -> np.ndarray:
        """Class probabilities of clips.

        Args:
            waveforms: ((T_i,) float32, sample rate in Hz) of each clip.

        Returns:
            (n, C) float64, rows sum to 1.
        """
        return self.mixture(self.members(waveforms))

    @staticmethod
    def resampled(samples: np.ndarray, own_hz: int, rate_hz: int) -> np.ndarray:
        """(T,) samples at another rate, as the waveform store has them."""
        return samples if own_hz == rate_hz else soxr.resample(samples, own_hz, rate_hz, quality="HQ")

    def members(self, waveforms: list[tuple[np.ndarray, int]]) -> np.ndarray:
        """What each member says: (M, n, C) float32."""
        p = np.empty((len(self.classifiers), len(waveforms), len(self.class_names)), dtype=np.float32)
        for rate_hz in sorted({c.sample_rate_hz for c in self.classifiers}):
            numbers = [i for i, c in enumerate(self.classifiers) if c.sample_rate_hz == rate_hz]
            clips = [self.resampled(x, own, rate_hz) for x, own in waveforms]
            offsets = np.cumsum([0, *map(len, clips)])
            store = WaveformStore(np.concatenate(clips).astype(np.float32, copy=False), offsets, rate_hz, Path())
            alike = [self.classifiers[i] for i in numbers]
            rows, size = np.arange(len(clips)), max(1, len(clips))
            p[numbers] = predict_together(alike, store, rows, batch_size=size, at_once=devices.at_once())
        return p


def describe(mixture: Mixture, run_ids: list[str], class_names: tuple[str, ...]) -> str:
    """The text of `FILE`."""
    described = {
        "members": [{"run": run, "recipe": recipe} for run, recipe in zip(run_ids, mixture.recipes, strict=True)],
        "combine": mixture.combine,
        "weights": mixture.weights,
        "temperature": mixture.temperature,
        "class_names": list(class_names),
    }
    return json.dumps(described, indent=2)


def load_predictor(tracker: Tracker, model: str) -> Predictor:
    """The predictor of a tracked run.

    Args:
        tracker: where it is tracked.
        model: id of an ensemble's or a training run; "latest", the newest ensemble; or a registered model, NAME (its
            newest version), NAME@ALIAS or NAME/VERSION.

    Raises:
        RunError: there is no such run, or it cannot predict.
    """
    if model == "latest":
        run = tracker.latest("ensemble")
    else:
        run = tracker.get(model) or tracker.get(tracker.registered_run(model) or model)
    if run is None and model == "latest":
        raise RunError(f"model=latest: no ensemble in tracking.uri={tracker.shown_uri}; make one with ensemble.py")
    if run is None:
        raise RunError(f"model={model}: neither a run nor a registered model in tracking.uri={tracker.shown_uri}")
    kind = run.tags.get("kind")
    if kind not in ("ensemble", "train"):
        raise RunError(f"model={model} is not an ensemble or a training run but a {kind or 'run of something else'}")
    if run.status != "FINISHED":
        raise RunError(f"model={model} is unfinished: its status is {run.status}")
    if kind == "train":
        classifiers = [load_classifier(tracker, _member(tracker, run))]
        return Predictor(run.name, run.id, tuple(classifiers), Mixture(("",), "mean", {"": 1.0}, 1.0))
    try:
        with tracker.artifact(run.id, FILE) as path:
            described = json.loads(path.read_text())
    except RunError as error:
        raise RunError(f"{error}; make the ensemble again with ensemble.py") from None
    classifiers = []
    for entry in described["members"]:
        member = tracker.get(entry["run"])
        if member is None:
            raise RunError(
                f"model={run.id}: its member {entry['run']} is no longer in tracking.uri={tracker.shown_uri}"
            )
        classifiers.append(load_classifier(tracker, _member(tracker, member)))
    recipes = tuple(entry["recipe"] for entry in described["members"])
    mixture = Mixture(recipes, described["combine"], described["weights"], described["temperature"])
    return Predictor(run.name, run.id, tuple(classifiers), mixture)


def _member(tracker: Tracker, run: RunRecord) -> Member:
    config = config_of(tracker, run.id)
    return Member(run, run.tags["recipe_fingerprint"], config, config["fold"])
