"""A trained fold, scored and logged."""

import json
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning import Trainer
from sklearn.metrics import log_loss

from audio_mnist.data.prepare import PreparedCorpus
from audio_mnist.features import FrontEnd
from audio_mnist.report import plots
from audio_mnist.scoring import measures
from audio_mnist.tracking.predictions import FOLD_PREDICTIONS, log_predictions
from audio_mnist.tracking.run import Run
from audio_mnist.tracking.tracker import BEST_CHECKPOINT, DIGESTS, digest_of
from audio_mnist.training.classifier import load
from audio_mnist.training.job import Job


def score(job: Job, run: Run, trainer: Trainer, checkpoint: Path, front_end: FrontEnd) -> dict[str, float]:
    """Score a run's checkpoint on its fold and log the result.

    The file is scored, not the net in memory: the ensemble will load the file.

    Returns:
        Accuracy, balanced accuracy, macro F1 and loss.
    """
    best = load(checkpoint, front_end)
    kept = int(torch.load(checkpoint, map_location="cpu", weights_only=True)["epoch"])
    best_epoch = min(kept, trainer.current_epoch - 1)  # counted from 0, as the steps of fold/*
    if trainer.num_devices == 1:
        best = best.to(trainer.strategy.root_device)
    corpus, rows = job.corpus, job.split.fold
    probabilities = best.predict_clips(corpus.store, rows)
    metrics = score_fold(corpus, rows, probabilities)

    run.log_metrics({f"best/{key}": value for key, value in metrics.items()} | {"best/epoch": best_epoch})
    run.log_file(checkpoint, BEST_CHECKPOINT)
    predictions = log_predictions(run, corpus.manifest.iloc[rows], probabilities, corpus.class_names)
    logged = {BEST_CHECKPOINT: checkpoint.read_bytes(), FOLD_PREDICTIONS: predictions.encode()}
    run.set_tag(DIGESTS, json.dumps({name: digest_of(name, content) for name, content in logged.items()}))
    title = f"{job.feature}, fold {job.fold} of 0 to {job.folds.count - 1}: {metrics['accuracy']:.4f} (n = {len(rows)})"
    title += "\noptimistic: its epoch or settings were chosen on this fold" if job.optimistic else ""
    picture = plots.confusion(corpus.targets()[rows], probabilities.argmax(axis=1), corpus.class_names, title)
    run.log_figure(picture, "figures/confusion_matrix.png")
    return metrics


def score_fold(corpus: PreparedCorpus, rows: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return accuracy, balanced accuracy, macro F1 and mean cross-entropy (nats) of (n, C) probabilities."""
    targets = corpus.targets()[rows]
    classes = np.arange(len(corpus.class_names))
    exact = probabilities.astype(np.float64)
    predicted = exact.argmax(axis=1)
    return {
        **{measure: measures.value(measure, targets, predicted, len(classes)) for measure in measures.MEASURES},
        "loss": float(log_loss(targets, exact / exact.sum(axis=1, keepdims=True), labels=classes)),
    }
