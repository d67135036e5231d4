"""A job's parts, built once and checked, and their training."""

import contextlib
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, RichProgressBar, WeightAveraging
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.optim.swa_utils import get_ema_multi_avg_fn

from audio_mnist import features
from audio_mnist.config import module_digests
from audio_mnist.data.folds import VALIDATION
from audio_mnist.errors import ConfigError
from audio_mnist.features.encoder import Encoder
from audio_mnist.system import devices
from audio_mnist.tracking.run import Run
from audio_mnist.training import dry_run
from audio_mnist.training.callbacks import EpochLogger, EpochSeed, KeepState
from audio_mnist.training.classifier import Classifier
from audio_mnist.training.datamodule import ClipDataModule
from audio_mnist.training.embeddings import embed
from audio_mnist.training.job import Job
from audio_mnist.training.resume import Workplace

log = logging.getLogger(__name__)
_ONLY_FOR_TRAINING = (
    *("optimizer_states", "lr_schedulers", "loops", "callbacks"),
    *("current_model_state", "averaging_state"),
)


@dataclass(frozen=True)
class Parts:
    """Everything that a run trains with.

    Attributes:
        classifier: the net and its front end.
        data: loaders of the fold, with the same front end.
        options: arguments of Lightning's Trainer.
    """

    classifier: Classifier
    data: ClipDataModule
    options: dict[str, Any]

    @property
    def length(self) -> tuple[int, int, int]:
        """Steps of an epoch, clips of a step, epochs."""
        return *self.data.epoch_shape(), self.options["max_epochs"]


def build(job: Job, *, alone: bool) -> Parts:
    """Build a job's parts, and find out whether they fit together.

    Args:
        job: the planned run.
        alone: whether it is not one of a sweep.

    Raises:
        ConfigError: settings are wrong, parts do not fit, or the device is not available.
        DataError: recorded noise cannot be read.
    """
    settings, corpus = job.settings, job.corpus
    compiled = settings["trainer"]["compile"]
    front_end = features.build(settings["feature"], corpus.store.sample_rate_hz)
    embeddings = None
    if isinstance(front_end, Encoder):
        fold_of = job.folds.fold_of
        rows = np.flatnonzero((fold_of >= 0) | (fold_of == VALIDATION))
        described = [job.settings["feature"], module_digests(job.settings["modules"])]
        device = job.device if job.device == "cuda" else "cpu"
        embeddings = embed(corpus.store, rows, front_end, described, corpus.clip_samples, device)
    classifier = Classifier(
        model=settings["model"],
        feature=settings["feature"],
        class_names=list(corpus.class_names),
        sample_rate_hz=corpus.store.sample_rate_hz,
        clip_samples=corpus.clip_samples,
        optimizer=settings["optimizer"],
        views=settings["views"],
        class_weights=_class_weights(job) if settings["class_weights"] == "balanced" else None,
        front_end=front_end,
        # further processes exchange gradients, and a compiled net has graphs of its own
        cuda_graph=settings["trainer"]["cuda_graph"] and settings["trainer"]["devices"] == 1 and not compiled,
    )
    data = ClipDataModule(
        corpus,
        job.split,
        front_end=front_end,
        augment=settings["augment"],
        batch_size=settings["trainer"]["batch_size"],
        seed=settings["seed"],
        balanced=settings["sampling"] == "balanced",
        embeddings=embeddings,
        pool=job.pool,
        groups=(corpus.manifest["recording"].to_numpy() if job.folds.groups is None else job.folds.groups),
    )
    dry_run.pass_silence(front_end, classifier.net, corpus.clip_samples)
    if compiled:
        devices.check_compiler()
        classifier.net.compile()  # in place: a checkpoint has the same names
    return Parts(classifier, data, _trainer_options(job, data, alone, classifier.net.closed_form))


def _class_weights(job: Job) -> list[float]:
    """Return a weight per class so that classes count alike; their mean over the training clips is 1."""
    counts = np.bincount(job.corpus.targets()[job.split.train], minlength=len(job.corpus.class_names))
    return (counts.sum() / (len(counts) * np.maximum(counts, 1))).tolist()


def _trainer_options(job: Job, data: ClipDataModule, alone: bool, closed_form: bool) -> dict[str, Any]:
    chosen = job.settings["trainer"]
    bar, epochs = chosen["progress_bar"], 1 if closed_form else _epochs(chosen, data)
    chooses_epoch = job.settings["selection"] != "last"
    options = {
        "max_epochs": epochs,
        "check_val_every_n_epoch": chosen["validate_every"] or (1 if chooses_epoch else max(1, epochs // 30)),
        "accelerator": chosen["accelerator"],
        "devices": chosen["devices"],
        "strategy": chosen["strategy"],
        "precision": "32-true" if closed_form else job.precision,
        "gradient_clip_val": chosen["gradient_clip_val"],
        "deterministic": True,
        "use_distributed_sampler": False,  # ShuffledBatches deals the clips out itself
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1_000_000,  # epochs are logged, steps are not
        "enable_model_summary": False,
        "enable_progress_bar": alone and sys.stderr.isatty() if bar is None else bar,
    }
    if chosen["devices"] == 1:
        # not that of SLURM, where Lightning would look for further processes
        options["plugins"] = [LightningEnvironment()]
    try:
        Trainer(**options, logger=False, enable_checkpointing=False)
    except (MisconfigurationException, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"trainer.accelerator, devices, strategy or precision is not available: {reason}") from None
    return options


def _epochs(chosen: dict[str, Any], data: ClipDataModule) -> int:
    """Return `max_epochs`, fewer where they would exceed `max_steps`, but at least `min_epochs`."""
    epochs = chosen["max_epochs"]
    if chosen["max_steps"] is not None:
        steps = data.epoch_shape()[0] // chosen["devices"]  # each device takes its share of the clips
        allowed = math.ceil(chosen["max_steps"] / max(1, steps))
        epochs = min(epochs, max(chosen["min_epochs"], allowed))
    return epochs


def fit(
    job: Job, parts: Parts, workplace: Workplace, run: Run | None, further: Sequence[Callback] = ()
) -> tuple[Trainer, Path]:
    """Train a job, from the state in its workplace where there is one.

    Args:
        job: the planned run.
        parts: the job's parts.
        workplace: folder of its checkpoints.
        run: the tracked run; None in a further process of one run on several devices.
        further: callbacks besides the run's own.

    Returns:
        Lightning's trainer, and the checkpoint of the kept epoch.
    """
    selection = job.settings["selection"]
    decay = job.settings["optimizer"]["ema_decay"]
    callbacks = [*_callbacks(job, parts, workplace, run), *further]
    state, epochs = workplace.last()
    if state is not None and epochs < parts.options["max_epochs"]:
        log.info("%s fold %d resumes after epoch %d", job.feature, job.fold, epochs)
    trainer = Trainer(
        **parts.options,
        logger=False if run is None else EpochLogger(run),
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
    )
    with interruptible(trainer):
        trainer.fit(parts.classifier, parts.data, ckpt_path=state)
    path = workplace.folder / "best.ckpt"
    if selection == "last":
        trainer.save_checkpoint(path, weights_only=True)
    elif decay is not None:
        whole = torch.load(path, map_location="cpu", weights_only=True)
        torch.save({key: value for key, value in whole.items() if key not in _ONLY_FOR_TRAINING}, path)
    return trainer, path


@contextlib.contextmanager
def interruptible(trainer: Trainer) -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C, which Lightning turns into SystemExit."""
    try:
        yield
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


def _callbacks(job: Job, parts: Parts, workplace: Workplace, run: Run | None) -> list[Callback]:
    selection = job.settings["selection"]
    decay = job.settings["optimizer"]["ema_decay"]
    patience = job.settings["trainer"]["early_stopping_patience"]
    callbacks: list[Callback] = [EpochSeed(job.settings["seed"])]
    if decay is not None and not parts.classifier.net.closed_form:
        # all weights in one operation; Lightning's own EMAWeightAveraging takes one or more for each
        callbacks.append(WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(decay)))
    if selection != "last":
        checkpoint = ModelCheckpoint(
            workplace.folder,
            filename="best",
            monitor="selection/loss" if selection == "inner" else "fold/loss",
            save_weights_only=decay is None,  # only whole checkpoints hold the averaged weights
            enable_version_counter=False,
        )
        callbacks.append(checkpoint)
    if patience is not None:
        callbacks.append(EarlyStopping("selection/loss", patience=patience))
    if parts.options["enable_progress_bar"]:
        callbacks.append(RichProgressBar(leave=False))
    if workplace.lasting and run is not None:
        # the last, so that it has the others' states
        callbacks.append(KeepState(workplace.folder, run, job.settings["resume_every_s"]))
    return callbacks
