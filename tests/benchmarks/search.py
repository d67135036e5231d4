"""What a search on the scored fold would claim: python -m tests.benchmarks.search TRACKING_URI EXPERIMENT

Takes a finished `search=default` sweep. Its trials never saw the scored folds. Here, and nowhere else, their
checkpoints are scored on them: the best of each fold is what a search that cheats reports. Prints that beside the
honest scores.
"""

import sys

import numpy as np

from audio_mnist.data.folds import cut_folds
from audio_mnist.data.prepare import prepare
from audio_mnist.inference.load import config_of, load_classifier
from audio_mnist.tracking.predictions import classes_of, logged_predictions, probabilities_of
from audio_mnist.tracking.tracker import Tracker


def mean_loss(p: np.ndarray, truth: np.ndarray) -> float:
    return float(-np.log(np.maximum(p[np.arange(len(truth)), truth], 1e-12)).mean())


def main(uri: str, experiment: str) -> None:
    tracker = Tracker(uri, experiment)
    trials = [run for run in tracker.search(kind="trial") if run.status == "FINISHED"]
    config = config_of(tracker, trials[0].id)
    corpus = prepare(config["data"])
    folds, targets = cut_folds(corpus.manifest, config["folds"]), corpus.targets()
    cheating, clips = [], 0
    for fold in sorted({int(run.tags["fold"]) for run in trials}):
        rows = np.flatnonzero((folds.fold_of == fold) & folds.scored)
        found = []
        for run in trials:
            if int(run.tags["fold"]) == fold:
                p = load_classifier(tracker, run.id).predict_clips(corpus.store, rows)
                found.append((mean_loss(p, targets[rows]), float((p.argmax(axis=1) == targets[rows]).mean())))
        cheating.append((len(rows), *min(found)))  # the trial of least loss
        clips += len(rows)
        print(f"fold {fold}: {len(found)} trials, scored fold's loss {min(found)[0]:.4f} to {max(found)[0]:.4f}")
    loss, accuracy = (sum(n * values[which] for n, *values in cheating) / clips for which in (0, 1))
    print(f"search on the scored folds would claim: accuracy {accuracy:.4f}, log loss {loss:.4f} (n = {clips})")
    honest = {"as given": [], "found": []}
    for run in tracker.search(kind="train"):
        if run.status == "FINISHED":
            table = logged_predictions(tracker, run.id)
            numbers = {name: number for number, name in enumerate(classes_of(table))}
            name = "as given" if config_of(tracker, run.id)["found_by"] is None else "found"
            honest[name].append((probabilities_of(table), table["label"].map(numbers).to_numpy()))
    for name, parts in honest.items():
        p, truth = (np.concatenate(part) for part in zip(*parts, strict=True))
        print(f"{name}: accuracy {(p.argmax(axis=1) == truth).mean():.4f}, log loss {mean_loss(p, truth):.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
