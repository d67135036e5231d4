"""Batches of one fold: which clips, in which order, placed where; and a corpus that lives on the device."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from audio_mnist.augment import Placement
from audio_mnist.data.store import WaveformStore
from audio_mnist.system import devices


class Rows(NamedTuple):
    """One batch before its samples are gathered.

    Attributes:
        positions: (B,) positions in the set that the batch is drawn from.
        clips: (B,) row numbers of the manifest.
        placement: (B,) share of the slack before each clip, for training; None to centre. See `WaveformStore.gather`.
        slots: (B,) slots of the clips among those that an epoch draws for, for training.
    """

    positions: np.ndarray
    clips: np.ndarray
    placement: np.ndarray | None = None
    slots: np.ndarray | None = None

    @classmethod
    def joined(cls, batches: Sequence["Rows"]) -> "Rows":
        """Join training batches."""
        return cls(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))


class ResidentClips:
    """A whole corpus on a device, placed in windows there.

    Args:
        store: the decoded clips.
        device: the device.

    Source: `WaveformStore.gather`; the results are equal.
    """

    def __init__(self, store: WaveformStore, device: torch.device) -> None:
        self.samples = torch.tensor(np.asarray(store.samples), device=device)
        self.offsets = torch.tensor(np.asarray(store.offsets), device=device)

    @staticmethod
    def fits(store: WaveformStore, device: torch.device) -> bool:
        """Tell whether the corpus takes at most half of a GPU's free memory."""
        return device.type == "cuda" and 2 * store.samples.nbytes <= torch.cuda.mem_get_info(device)[0]

    def gather(self, indices: np.ndarray, length: int, placement: np.ndarray | None = None) -> Tensor:
        """Place clips in (B, T) float32 windows on the device, as `WaveformStore.gather` does."""
        device = self.samples.device
        clips = devices.put(indices, device)
        begin = self.offsets[clips]  # (B,)
        size = self.offsets[clips + 1] - begin
        slack = length - size
        share = 0.5 if placement is None else devices.put(placement, device)
        shift = (slack.abs() * share).round().long()
        within = torch.arange(length, device=device) - torch.where(slack >= 0, shift, -shift).unsqueeze(1)  # (B, T)
        inside = (within >= 0) & (within < size.unsqueeze(1))
        return self.samples[(begin.unsqueeze(1) + within).where(inside, 0)].where(inside, 0.0)


class ShuffledBatches(Sampler[Rows]):
    """Batches of one epoch in random order, each clip at a random place in its window.

    The numbers depend only on the seed and the epoch, so an epoch is the same
    whether or not the process saw those before it. All folds of a seed take their
    clips from one order of the corpus, and give a clip the same place. On several
    devices each takes its share of the order. An incomplete last batch is left
    out: batch normalisation would weigh its clips differently.

    An epoch draws by slots: a copy of a clip, or with `classes` a place in the
    epoch, since a clip that comes twice must differ.

    Args:
        indices: (n,) clips, at least 2.
        batch_size: B of one device; at most n.
        seed: random seed.
        placement: copies of a clip in an epoch, and when they get new places.
        classes: (n,) class numbers, to draw classes alike, with replacement; None takes every clip once.
        clips: number of clips of the corpus; None for the largest of `indices` and those before it.
        pool: clips that any fold trains on, where all folds compute the same blocks of features; None for `indices`.
    """

    def __init__(
        self,
        indices: np.ndarray,
        batch_size: int,
        seed: int,
        placement: Placement | None = None,
        classes: np.ndarray | None = None,
        clips: int | None = None,
        pool: np.ndarray | None = None,
    ) -> None:
        self._placement = placement or Placement()
        self._clips, self._seed = clips or int(indices.max()) + 1, seed
        self._copies = self._copies_of(indices)  # their numbers among all copies of the corpus
        self._position_of = np.full(self._clips * self._placement.copies, -1)
        self._position_of[self._copies] = np.arange(len(self._copies))
        self._is_pooled: np.ndarray | None = None
        if pool is not None:
            self._is_pooled = np.zeros(len(self._position_of), dtype=bool)
            self._is_pooled[self._copies_of(pool)] = True
        self.batch_size = min(batch_size, len(self._copies) // world()[1])
        self.epoch = 0
        self._share: np.ndarray | None = None  # probability of each copy
        self._chosen = (-1, self._copies)  # an epoch, and the copies drawn for it
        if classes is not None:
            wanted = 1 / np.bincount(classes)[np.tile(classes, self._placement.copies)]
            self._share = wanted / wanted.sum()

    def _copies_of(self, indices: np.ndarray) -> np.ndarray:
        return (self._clips * np.arange(self._placement.copies)[:, None] + indices).ravel()

    @property
    def slots(self) -> int:
        """Number of slots that an epoch draws for."""
        return len(self._position_of) if self._share is None else len(self._copies)

    @property
    def is_pooled(self) -> bool:
        """Whether all folds compute the same blocks of features."""
        return self._is_pooled is not None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls it before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._copies) // (self.batch_size * world()[1])

    def __iter__(self) -> Iterator[Rows]:
        rows = self.rows(self._own())
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield Rows(*(of_all[start : start + self.batch_size] for of_all in rows))  # type: ignore[index]

    def order(self) -> np.ndarray:
        """Return the slots whose features this epoch computes, in the order in which they are needed."""
        if self._is_pooled is None:
            return self._own()
        order = self._random.permutation(self.slots)
        return order[self._is_pooled[order]]

    def rows(self, slots: np.ndarray) -> Rows:
        """Return (n,) slots as they are in this epoch."""
        copies = slots
        if self._share is not None:
            if self._chosen[0] != self.epoch:
                self._chosen = self.epoch, self._copies[self._random.choice(self.slots, self.slots, p=self._share)]
            copies = self._chosen[1][slots]
        if self._placement.redraw:
            places = np.random.default_rng([self._seed, self.epoch, 1]).random(self.slots)[slots]
        else:
            places = self._lasting[copies]
        return Rows(self._position_of[copies], copies % self._clips, places, slots)

    def fixed(self) -> Rows | None:
        """Return the whole set where its clips keep their places for all epochs, else None."""
        if self._placement.redraw:
            return None
        every = np.arange(len(self._copies))
        return Rows(every, self._copies % self._clips, self._lasting[self._copies])

    @property
    def _random(self) -> np.random.Generator:
        return np.random.default_rng([self._seed, self.epoch])

    @property
    def _lasting(self) -> np.ndarray:
        """Places that are drawn once and stay with the copies."""
        return np.random.default_rng([self._seed, 0, 3]).random(len(self._position_of))

    def _own(self) -> np.ndarray:
        """Return the slots of this process, batch after batch."""
        rank, size = world()
        order = np.arange(self.slots)
        if self._share is None:
            order = self._random.permutation(self.slots)
            order = order[self._position_of[order] >= 0]
        batches = order[: len(self) * size * self.batch_size].reshape(-1, size, self.batch_size)
        return batches[:, rank].ravel()


class CentredBatches(Sampler[Rows]):
    """Every clip once, in order, centred in its window.

    Args:
        indices: (n,) clips.
        batch_size: B.
    """

    def __init__(self, indices: np.ndarray, batch_size: int) -> None:
        every = np.arange(len(indices))
        self._parts = [every[start : start + batch_size] for start in range(0, len(every), batch_size)]
        self._indices = indices

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Rows]:
        return (Rows(part, self._indices[part]) for part in self._parts)

    def fixed(self) -> Rows:
        """Return the whole set."""
        return Rows(np.arange(len(self._indices)), self._indices)


def world() -> tuple[int, int]:
    """Return this process's rank and the number of processes of this training."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
