"""One fold as a LightningDataModule: waveforms to the device, features computed there."""

from collections.abc import Iterator

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from audio_mnist import features
from audio_mnist.augment import Augmenter, Placement
from audio_mnist.folds import Split
from audio_mnist.prepared import PreparedCorpus

Rows = tuple[np.ndarray, np.ndarray | None]  # (B,) clips, (B,) placements or None to centre


class Clips(Dataset):
    """Batches of clips by row number: ((B, 1, T) float32 waveforms, (B,) int64 class numbers)."""

    def __init__(self, corpus: PreparedCorpus) -> None:
        self._store, self._length = corpus.store, corpus.clip_samples
        self._targets = torch.from_numpy(corpus.targets())

    def __getitem__(self, rows: Rows) -> tuple[Tensor, Tensor]:
        indices, place = rows
        waveforms = self._store.gather(indices, self._length, place)
        return torch.from_numpy(waveforms).unsqueeze(1), self._targets[indices]


class ShuffledBatches(Sampler[Rows]):
    """Batches of one epoch in random order, each clip at a random place in its window.

    The draws depend on the seed and the epoch alone, so an epoch is the same
    whether or not the process saw those before it. On several devices each
    takes its share of the one permutation. An incomplete last batch is left
    out, since batch normalisation would weigh its clips differently.

    Args:
        indices: (n,) clips, at least 2.
        batch_size: B of one device, cut to n where the fold is smaller.
        seed: of the draws.
        placement: how often a clip is taken in an epoch, and where it is placed.
    """

    def __init__(self, indices: np.ndarray, batch_size: int, seed: int, placement: Placement | None = None) -> None:
        self._placement = placement or Placement()
        self._indices, self._seed = np.tile(indices, self._placement.copies), seed
        self._batch_size = min(batch_size, len(self._indices) // _world()[1])
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._indices) // (self._batch_size * _world()[1])

    def __iter__(self) -> Iterator[Rows]:
        rank, world = _world()
        rng = np.random.default_rng([self._seed, self._epoch])
        permutation = rng.permutation(len(self._indices))
        order, place = self._indices[permutation], rng.random(len(self._indices))
        if not self._placement.redraw:  # the first epoch's places, which stay with the copies
            place = np.random.default_rng(self._seed).random(len(self._indices))[permutation]
        for number in range(len(self)):
            start = (number * world + rank) * self._batch_size
            part = slice(start, start + self._batch_size)
            yield order[part], place[part]


class CentredBatches(Sampler[Rows]):
    """Every clip once, in order, centred in its window."""

    def __init__(self, indices: np.ndarray, batch_size: int) -> None:
        self._parts = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Rows]:
        return ((part, None) for part in self._parts)


class ClipDataModule(LightningDataModule):
    """Loaders of one fold.

    A batch leaves the loader as waveforms (B, 1, T) and arrives at the model as
    features (B, 1, F, N): they are computed on the model's device after the
    transfer. Validation has the scored fold first and, where epochs are chosen
    by one, the selection set second.

    Args:
        corpus: the decoded clips.
        split: the fold's index sets.
        feature: settings of the front end, `name` and its arguments.
        augment: settings of the augmentations of training clips, a key each.
        batch_size: B, clips.
        seed: of the order, the placement and the augmentation of training clips.

    Raises:
        ConfigError: settings of the feature or the augmentations are wrong.
        DataError: recorded noise cannot be read.
    """

    def __init__(
        self, corpus: PreparedCorpus, split: Split, *, feature: dict, augment: dict, batch_size: int, seed: int
    ) -> None:
        super().__init__()
        self._classes = len(corpus.class_names)
        self._placement = Placement.of(augment)
        self._augmenter = Augmenter(augment, corpus.store.sample_rate_hz)
        self._clips, self._split = Clips(corpus), split
        self._front_end = features.build(feature, corpus.store.sample_rate_hz)
        self._batch_size, self._seed = batch_size, seed

    def steps_per_epoch(self) -> int:
        """Batches that one epoch has, on one device."""
        return len(self._training_batches())

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training clips."""
        return self._loader(self._training_batches())

    def val_dataloader(self) -> list[DataLoader]:
        """The scored fold, then the selection set where there is one."""
        sets = [self._split.fold] + ([self._split.selection] if len(self._split.selection) else [])
        return [self._loader(CentredBatches(indices, 4 * self._batch_size)) for indices in sets]

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """((B, 1, T), (B,)) -> ((B, C, F, N), (B,)) on the batch's device, augmented in training.

        With mixup the targets of a training batch are shares, (B, classes).
        """
        waveforms, targets = batch
        self._front_end = self._front_end.to(waveforms.device)
        self._augmenter = self._augmenter.to(waveforms.device)
        trainer = self.trainer
        step, training = (trainer.global_step, trainer.training) if trainer else (0, False)
        self._augmenter.train(training)
        with torch.no_grad():
            seed = (self._seed, step, _world()[0])
            return self._augmenter(waveforms, targets, self._front_end, self._classes, seed)

    def _training_batches(self) -> ShuffledBatches:
        return ShuffledBatches(self._split.train, self._batch_size, self._seed, self._placement)

    def _loader(self, sampler: Sampler[Rows]) -> DataLoader:
        # A clip is copied from memory, not decoded: worker processes would cost more than they save.
        pinned = torch.cuda.is_available()
        return DataLoader(self._clips, batch_size=None, sampler=sampler, num_workers=0, pin_memory=pinned)


def _world() -> tuple[int, int]:
    """(rank, number of processes) of this training."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
