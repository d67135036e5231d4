"""Lightning callbacks and logger: seeds, the kept state, metrics."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers.logger import Logger

from audio_mnist.tracking.run import Run
from audio_mnist.training import progress
from audio_mnist.training.resume import LAST, PENDING


class EpochSeed(Callback):
    """Seed torch at the first step of each epoch, from the seed, the epoch and the process.

    So an epoch's dropout is the same whether or not the process saw those before
    it.

    Args:
        seed: the run's random seed.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed after the epoch's loaders were made; they draw too."""
        if batch_idx == 0:
            torch.manual_seed(epoch_seed(self._seed, trainer.current_epoch, trainer.global_rank))


def epoch_seed(seed: int, epoch: int, process: int) -> int:
    """Return the seed of an epoch's dropout in one process of a run."""
    return int(np.random.SeedSequence([seed, epoch, process]).generate_state(1)[0])


class KeepState(Checkpoint):
    """Keep a run's whole state (weights, optimiser, schedule, callbacks) in its folder.

    A run resumes from the state of an epoch only when that epoch's metrics are in
    the tracking store, so that none is lost. The last epoch's state is not kept:
    weights are averaged, if at all, after it.

    Args:
        folder: where the run's checkpoints are kept.
        run: the run; its metrics are sent first.
        every_s: least time between two states.
    """

    def __init__(self, folder: Path, run: Run, every_s: float) -> None:
        self._folder, self._run, self._every_s = folder, run, every_s
        self._saved_at = time.monotonic()
        # left by a process that was killed before it sent the metrics
        (folder / PENDING).unlink(missing_ok=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state, after the callbacks that choose epochs and before the epoch's metrics are logged."""
        over = trainer.should_stop or trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
        if not over and time.monotonic() - self._saved_at >= self._every_s:
            trainer.save_checkpoint(self._folder / PENDING)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Accept the state, since the metrics of the epoch before are logged now."""
        pending = self._folder / PENDING
        if pending.exists():
            self._run.flush()
            os.replace(pending, self._folder / LAST)
            self._saved_at = time.monotonic()


class Progress(Callback):
    """Tell the sweep how far the run is, at most once a second.

    Args:
        folder: the run's folder.
        score: name of the score that is shown.
    """

    def __init__(self, folder: Path, score: str) -> None:
        self._folder, self._score, self._told_at, self._begun = folder, score, 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where a resumed run begins."""
        self._begun = trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch, and the newest score of the scored fold."""
        if time.monotonic() - self._told_at >= 1:
            self._told_at = time.monotonic()
            known = trainer.callback_metrics.get(f"fold/{self._score}")
            score = None if known is None else float(known)
            epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs
            progress.write(self._folder, epoch=epoch, epochs=epochs, begun=self._begun, score=score)


class EpochLogger(Logger):
    """Log Lightning's metrics to a tracked run, once per epoch.

    Args:
        run: the run.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    @property
    def name(self) -> str:
        return "mlflow"

    @property
    def version(self) -> str:
        return self._run.id

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's start logs the whole config."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log metrics with the epoch as the step."""
        epoch = int(metrics.pop("epoch", step or 0))
        if metrics:
            self._run.log_metrics(metrics, step=epoch)
