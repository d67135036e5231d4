"""An interrupted run goes on from its last epoch, as if it had not stopped."""

from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer


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
