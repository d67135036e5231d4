"""Every member predicts its fold and the test split, with its own front end."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from audio_mnist.data.folds import Folds, cut_folds
from audio_mnist.data.prepare import PreparedCorpus, prepare
from audio_mnist.data.split import split_clips
from audio_mnist.data.store import WaveformStore
from audio_mnist.ensembles.members import Member
from audio_mnist.errors import RunError
from audio_mnist.inference.load import load_classifier
from audio_mnist.system import devices
from audio_mnist.tracking.predictions import logged_predictions, probabilities_of
from audio_mnist.tracking.tracker import Tracker
from audio_mnist.training.classifier import Classifier, predict_together

TOLERANCE = 1e-4  # largest difference of a repeated probability; float32 on other hardware stays far below


@dataclass(frozen=True)
class Predictions:
    """Probabilities of all members.

    Attributes:
        oof: recipe -> (clips, C), each clip by the run that did not train on it; NaN where there is none.
        test: (M, test clips, C), every member.
        test_rows: manifest rows of the test clips.
        recipes: recipe of each member.
        classifiers: every member, rebuilt from its checkpoint.
    """

    oof: dict[str, np.ndarray]
    test: np.ndarray
    test_rows: np.ndarray
    recipes: tuple[str, ...]
    classifiers: tuple[Classifier, ...]


class Stores:
    """The clips of one corpus at each sample rate that a member needs, decoded once per rate.

    Args:
        corpus: the corpus at the first member's rate.
        data: the first member's `data` config.
    """

    def __init__(self, corpus: PreparedCorpus, data: dict[str, Any]) -> None:
        self._data = data
        self._known: dict[int | None, WaveformStore] = {data["sample_rate_hz"]: corpus.store}

    def at(self, rate_hz: int | None) -> WaveformStore:
        """Return the clips at a rate; None is the files' most common one."""
        if rate_hz not in self._known:
            self._known[rate_hz] = prepare(self._data | {"sample_rate_hz": rate_hz}).store
        return self._known[rate_hz]


def corpus_of(members: list[Member], data: dict[str, Any]) -> tuple[PreparedCorpus, Folds]:
    """Return the corpus and the folds that the members were trained on.

    Args:
        members: members of one corpus and one assignment of folds.
        data: the first member's `data` config, with the paths where the corpus lies now.

    Raises:
        RunError: the corpus or the folds changed since then.
    """
    corpus, run = prepare(data), members[0].run
    if corpus.fingerprint != run.tags["corpus_fingerprint"]:
        raise RunError(
            f"the corpus changed since run {run.id} was trained: its fingerprint is {corpus.fingerprint}, then "
            f"{run.tags['corpus_fingerprint']}; restore the clips (data.root, data.manifest) or train again"
        )
    folds = cut_folds(corpus.manifest, members[0].config["folds"])
    if folds.fingerprint != run.tags["fold_fingerprint"]:
        raise RunError(
            f"the folds differ from those of run {run.id}: they were cut by another version of this package or of "
            "scikit-learn; install the version that it was trained with, or train again"
        )
    return corpus, folds


def predict(
    tracker: Tracker, members: list[Member], corpus: PreparedCorpus, folds: Folds, stores: Stores, batch_size: int
) -> Predictions:
    """Rebuild every member and predict.

    Raises:
        RunError: a checkpoint is missing or damaged, or gives other probabilities than its run logged.
    """
    oof: dict[str, np.ndarray] = {}
    by_rate: dict[int | None, list[int]] = {}
    classifiers: list[Classifier] = []
    test_rows = np.empty(0, dtype=np.int64)

    # out of fold, each member on its own fold
    for member in tqdm(members, desc="predicting", unit="run", disable=None):
        logged = logged_predictions(tracker, member.run.id)
        classifier = load_classifier(tracker, member.run.id)
        if tuple(classifier.class_names) != corpus.class_names:
            raise RunError(f"run {member.run.id}: its checkpoint has other classes than the corpus")
        rate_hz = member.config["data"]["sample_rate_hz"]
        split = split_clips(corpus.manifest, folds, fold=member.fold, selection="last")
        p = classifier.predict_clips(stores.at(rate_hz), split.fold, batch_size=batch_size)
        check_reproduced(member, corpus, logged, split.fold, p)
        if member.recipe not in oof:
            oof[member.recipe] = np.full((len(corpus.manifest), p.shape[1]), np.nan)
        oof[member.recipe][split.fold] = p
        test_rows = split.test
        by_rate.setdefault(rate_hz, []).append(len(classifiers))
        classifiers.append(classifier)

    # the test split, members of one sample rate together
    test = np.empty((len(members), len(test_rows), len(corpus.class_names)), dtype=np.float32)
    for rate_hz, numbers in by_rate.items():
        alike = [classifiers[number] for number in numbers]
        threads = devices.side_by_side()
        test[numbers] = predict_together(alike, stores.at(rate_hz), test_rows, batch_size=batch_size, threads=threads)
    return Predictions(oof, test, test_rows, tuple(member.recipe for member in members), tuple(classifiers))


def check_reproduced(
    member: Member, corpus: PreparedCorpus, logged: pd.DataFrame, rows: np.ndarray, p: np.ndarray
) -> None:
    """Compare repeated probabilities (n, C) of the clips `rows` with the logged ones.

    Raises:
        RunError: the clips differ, or the probabilities differ by more than `TOLERANCE`.
    """
    if logged["clip_id"].tolist() != corpus.manifest["clip_id"].iloc[rows].tolist():
        raise RunError(f"run {member.run.id}: its logged predictions are of other clips than its fold {member.fold}")
    worst = float(np.abs(probabilities_of(logged) - p).max())
    if not worst <= TOLERANCE:
        raise RunError(
            f"run {member.run.id}: its checkpoint gives other probabilities than it logged (largest difference "
            f"{worst:.2g}, allowed {TOLERANCE:g}); the checkpoint or the log was changed: train it again"
        )
