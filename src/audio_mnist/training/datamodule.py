"""One fold as a LightningDataModule: waveforms to the device, features computed there."""

from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from audio_mnist.augment import Augmenter, Placement
from audio_mnist.data.folds import Split
from audio_mnist.data.prepare import PreparedCorpus
from audio_mnist.features import FrontEnd
from audio_mnist.training.batches import Batches, CentredBatches, ResidentClips, Rows, ShuffledBatches, world

KEPT_BYTES = 32 * 2**20  # largest features of a set that are kept, not computed again


class ClipDataModule(LightningDataModule):
    """Loaders of one fold.

    A batch leaves the loader as row numbers and reaches the model as features
    (B, C, F, N). The waveforms are gathered after the transfer, on the device
    where the corpus fits there, and the features are computed there. Features of
    clips that do not change, in validation above all, are computed once and kept
    while they are small. The first validation set is the scored fold. The second,
    where there is one, is the selection set.

    Args:
        corpus: the decoded clips.
        split: the fold's index sets.
        front_end: the feature.
        augment: settings of the augmentations of training clips, one key each.
        batch_size: B, clips.
        seed: random seed of the order, the placement and the augmentation of training clips.

    Raises:
        ConfigError: settings of the augmentations are wrong.
        DataError: recorded noise cannot be read.
    """

    def __init__(
        self,
        corpus: PreparedCorpus,
        split: Split,
        *,
        front_end: FrontEnd,
        augment: dict[str, Any],
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        self._classes = len(corpus.class_names)
        self._placement = Placement.of(augment)
        self._augmenter = Augmenter(augment, corpus.store.sample_rate_hz)
        self._store, self._length = corpus.store, corpus.clip_samples
        self._batches, self._split = Batches(corpus.targets()), split
        self._front_end = front_end
        self._batch_size, self._seed = batch_size, seed
        self._device = torch.device("cpu")  # of front end and augmenter
        self._resident: ResidentClips | None = None
        self._kept: dict[str, Tensor | None] = {}  # features of a set, None where each batch computes them

    def steps_per_epoch(self) -> int:
        """Return the number of batches of one epoch, on one device."""
        return len(self._training_batches())

    def train_dataloader(self) -> DataLoader:
        """Return shuffled batches of the training clips."""
        return self._loader(self._training_batches())

    def val_dataloader(self) -> list[DataLoader]:
        """Return the scored fold, then the selection set where there is one."""
        return [self._loader(batches) for batches in self._scored_batches()]

    def transfer_batch_to_device(
        self, batch: tuple[Rows, Tensor], device: torch.device, dataloader_idx: int
    ) -> tuple[Rows, Tensor]:
        """Move the targets; `on_after_batch_transfer` moves the waveforms."""
        rows, targets = batch
        return rows, targets.to(device, non_blocking=True)

    def on_after_batch_transfer(self, batch: tuple[Rows, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Turn (rows, (B,)) into ((B, C, F, N), (B,)) on the targets' device, augmented in training.

        With mixup the targets of a training batch are shares, (B, classes).
        """
        rows, targets = batch
        device, trainer = targets.device, self.trainer
        if device != self._device:
            self._front_end, self._augmenter = self._front_end.to(device), self._augmenter.to(device)
            self._device = device
        training = rows.placement is not None
        if training != self._augmenter.training:
            self._augmenter.train(training)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):  # features in float32
            kept = self._kept_features("train" if training else str(dataloader_idx), device)
            seed = (self._seed, trainer.global_step if trainer else 0, world()[0])
            if kept is None:
                waveforms = self._waveforms(rows, device)
                return self._augmenter(waveforms, targets, self._front_end, self._classes, seed)
            x = kept[torch.from_numpy(rows.positions).to(device)]
            return self._augmenter(x, targets, torch.nn.Identity(), self._classes, seed)

    def _waveforms(self, rows: Rows, device: torch.device) -> Tensor:
        """Return (B, 1, T) on the device."""
        if self._resident is None and ResidentClips.fits(self._store, device):
            self._resident = ResidentClips(self._store, device)
        if self._resident is not None:
            return self._resident.gather(rows.clips, self._length, rows.placement).unsqueeze(1)
        waveforms = torch.from_numpy(self._store.gather(rows.clips, self._length, rows.placement)).unsqueeze(1)
        return waveforms.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else waveforms.to(device)

    def _kept_features(self, name: str, device: torch.device) -> Tensor | None:
        """Return the (n, C, F, N) features of a set of unchanging clips; None where they change or are too large."""
        if name not in self._kept:
            self._kept[name] = None
            sampler = self._training_batches() if name == "train" else self._scored_batches()[int(name)]
            rows = sampler.fixed()
            if rows is not None and not (name == "train" and self._augmenter.changes_waveforms):
                one = self._front_end(torch.zeros(1, 1, self._length, device=device))
                if one.nbytes * len(rows.clips) <= KEPT_BYTES:
                    self._kept[name] = self._compute(rows, device)
        return self._kept[name]

    def _compute(self, rows: Rows, device: torch.device) -> Tensor:
        parts = []
        for start in range(0, len(rows.clips), 4 * self._batch_size):
            part = slice(start, start + 4 * self._batch_size)
            placement = None if rows.placement is None else rows.placement[part]
            waveforms = self._waveforms(Rows(rows.positions[part], rows.clips[part], placement), device)
            parts.append(self._front_end(waveforms))
        return torch.cat(parts)

    def _training_batches(self) -> ShuffledBatches:
        return ShuffledBatches(self._split.train, self._batch_size, self._seed, self._placement)

    def _scored_batches(self) -> list[CentredBatches]:
        sets: list[np.ndarray] = [self._split.fold] + ([self._split.selection] if len(self._split.selection) else [])
        return [CentredBatches(indices, 4 * self._batch_size) for indices in sets]

    def _loader(self, sampler: Sampler[Rows]) -> DataLoader:
        # rows are numbers: worker processes would cost more than they save
        return DataLoader(self._batches, batch_size=None, sampler=sampler, num_workers=0, collate_fn=_unchanged)


def _unchanged(batch: Any) -> Any:
    return batch
