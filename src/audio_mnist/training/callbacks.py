"""What hooks into Lightning's loop: seeds, the kept state, metrics."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers.logger import Logger

from audio_mnist.tracking.untracked import UntrackedRun
from audio_mnist.training.resume import LAST, PENDING


class EpochSeed(Callback):
    """Seeds torch anew at the first step of each epoch, from the seed, the epoch and the process.

    So an epoch's dropout is the same whether or not the process saw those before it.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """After the loaders of the epoch were made, which draw too."""
        if batch_idx == 0:
            sequence = np.random.SeedSequence([self._seed, trainer.current_epoch, trainer.global_rank])
            torch.manual_seed(int(sequence.generate_state(1)[0]))


class KeepState(Checkpoint):
    """Keeps a run's whole state, weights, optimiser, schedule and callbacks, in its workplace.

    The state after an epoch becomes the one to go on from only when that
    epoch's metrics are in the tracking store, so that none is lost. The last
    epoch's is not kept: weights are averaged, if they are, after it.

    Args:
        folder: of the workplace.
        run: whose metrics are sent first.
        every_s: least time between two states.
    """

    def __init__(self, folder: Path, run: UntrackedRun, every_s: float) -> None:
        self._folder, self._run, self._every_s = folder, run, every_s
        self._saved_at = time.monotonic()
        # of a process that was killed before the metrics were sent
        (folder / PENDING).unlink(missing_ok=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the callbacks that choose epochs, before the epoch's metrics are logged."""
        over = trainer.should_stop or trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
        if not over and time.monotonic() - self._saved_at >= self._every_s:
            trainer.save_checkpoint(self._folder / PENDING)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The metrics of the epoch before are logged now."""
        pending = self._folder / PENDING
        if pending.exists():
            self._run.flush()
            os.replace(pending, self._folder / LAST)
            self._saved_at = time.monotonic()


class EpochLogger(Logger):
    """Lightning's metrics to a tracked run: once an epoch, sent in batches.

    Args:
        run: that they are logged to.
    """

    def __init__(self, run: UntrackedRun) -> None:
        super().__init__()
        self._run = run

    @property
    def name(self) -> str:
        return "mlflow"

    @property
    def version(self) -> str:
        return self._run.id

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the whole config is logged when the run starts."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Takes Lightning's metrics with the epoch as the step."""
        epoch = int(metrics.pop("epoch", step or 0))
        if metrics:
            self._run.log_metrics(metrics, step=epoch)
