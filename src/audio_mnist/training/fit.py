"""A job's parts, built once and checked, and their training."""

import logging
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from audio_mnist import features
from audio_mnist.errors import ConfigError
from audio_mnist.system import devices
from audio_mnist.tracking.run import Run
from audio_mnist.training import dry_run
from audio_mnist.training.callbacks import EpochLogger, EpochSeed, KeepState
from audio_mnist.training.classifier import Classifier
from audio_mnist.training.datamodule import ClipDataModule
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
    front_end = features.build(settings["feature"], corpus.store.sample_rate_hz)
    classifier = Classifier(
        model=settings["model"],
        feature=settings["feature"],
        class_names=list(corpus.class_names),
        sample_rate_hz=corpus.store.sample_rate_hz,
        clip_samples=corpus.clip_samples,
        optimizer=settings["optimizer"],
        views=settings["views"],
        front_end=front_end,
    )
    data = ClipDataModule(
        corpus,
        job.split,
        front_end=front_end,
        augment=settings["augment"],
        batch_size=settings["trainer"]["batch_size"],
        seed=settings["seed"],
    )
    dry_run.pass_silence(front_end, classifier.net, corpus.clip_samples)
    if settings["trainer"]["compile"]:
        devices.check_compiler()
        classifier.net.compile()  # in place: a checkpoint has the same names
    return Parts(classifier, data, _trainer_options(job, data, alone))


def _trainer_options(job: Job, data: ClipDataModule, alone: bool) -> dict[str, Any]:
    chosen = job.settings["trainer"]
    bar, epochs = chosen["progress_bar"], _epochs(chosen, data)
    chooses_epoch = job.settings["selection"] != "last"
    options = {
        "max_epochs": epochs,
        "check_val_every_n_epoch": chosen["validate_every"] or (1 if chooses_epoch else max(1, epochs // 30)),
        "accelerator": chosen["accelerator"],
        "devices": chosen["devices"],
        "strategy": chosen["strategy"],
        "precision": job.precision,
        "gradient_clip_val": chosen["gradient_clip_val"],
        "deterministic": True,
        "use_distributed_sampler": False,  # ShuffledBatches deals the clips out itself
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1_000_000,  # epochs are logged, steps are not
        "enable_model_summary": False,
        "enable_progress_bar": alone and sys.stderr.isatty() if bar is None else bar,
    }
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
        steps = data.steps_per_epoch() // chosen["devices"]  # each device takes its share of the clips
        allowed = math.ceil(chosen["max_steps"] / max(1, steps))
        epochs = min(epochs, max(chosen["min_epochs"], allowed))
    return epochs


def fit(job: Job, parts: Parts, workplace: Workplace, run: Run | None) -> tuple[Trainer, Path]:
    """Train a job, from the state in its workplace where there is one.

    Args:
        job: the planned run.
        parts: the job's parts.
        workplace: folder of its checkpoints.
        run: the tracked run; None in a further process of one run on several devices.

    Returns:
        Lightning's trainer, and the checkpoint of the kept epoch.
    """
    folder, selection = workplace.folder, job.settings["selection"]
    decay = job.settings["optimizer"]["ema_decay"]
    callbacks = _callbacks(job, parts, workplace, run)
    state, epochs = workplace.last()
    if state is not None:
        log.info("%s fold %d resumes after epoch %d", job.feature, job.fold, epochs)
    trainer = Trainer(
        **parts.options,
        logger=False if run is None else EpochLogger(run),
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
    )
    try:
        trainer.fit(parts.classifier, parts.data, ckpt_path=state)
    except SystemExit:
        if trainer.interrupted:  # Lightning exits on Ctrl-C
            raise KeyboardInterrupt from None
        raise
    path = folder / "best.ckpt"
    if selection == "last":
        trainer.save_checkpoint(path, weights_only=True)
    elif decay is not None:
        whole = torch.load(path, map_location="cpu", weights_only=True)
        torch.save({key: value for key, value in whole.items() if key not in _ONLY_FOR_TRAINING}, path)
    return trainer, path


def _callbacks(job: Job, parts: Parts, workplace: Workplace, run: Run | None) -> list[Callback]:
    selection = job.settings["selection"]
    decay = job.settings["optimizer"]["ema_decay"]
    patience = job.settings["trainer"]["early_stopping_patience"]
    callbacks: list[Callback] = [EpochSeed(job.settings["seed"])]
    if decay is not None:
        callbacks.append(EMAWeightAveraging(decay=decay))
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
