"""One fold as a LightningDataModule: waveforms to the device, features computed there."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from audio_mnist import features
from audio_mnist.augment import Augmenter, Placement
from audio_mnist.data.folds import Split
from audio_mnist.data.prepare import PreparedCorpus
from audio_mnist.data.store import WaveformStore

KEPT_BYTES = 32 * 2**20  # of the features of a set of clips that are kept rather than computed anew


class Rows(NamedTuple):
    """One batch before it is gathered.

    Attributes:
        positions: (B,) in the set that the batch is drawn from.
        clips: (B,) row numbers of the manifest.
        place: (B,) in 0 to 1 for training, None to centre: `WaveformStore.gather`.
    """

    positions: np.ndarray
    clips: np.ndarray
    place: np.ndarray | None


class Batches(Dataset):
    """Rows with their targets: (`Rows`, (B,) int64 class numbers). Nothing is copied yet."""

    def __init__(self, targets: np.ndarray) -> None:
        self._targets = torch.from_numpy(targets)

    def __getitem__(self, rows: Rows) -> tuple[Rows, Tensor]:
        return rows, self._targets[rows.clips]


class ResidentClips:
    """A whole corpus on a device, placed in windows there.

    Args:
        store: the decoded clips.
        device: that they are copied to.

    Source: `WaveformStore.gather`, whose results these are.
    """

    def __init__(self, store: WaveformStore, device: torch.device) -> None:
        self.samples = torch.tensor(np.asarray(store.samples), device=device)
        self.offsets = torch.tensor(np.asarray(store.offsets), device=device)

    @staticmethod
    def fits(store: WaveformStore, device: torch.device) -> bool:
        """Whether the corpus takes at most half of the memory that is free on a GPU."""
        return device.type == "cuda" and 2 * store.samples.nbytes <= torch.cuda.mem_get_info(device)[0]

    def gather(self, indices: np.ndarray, length: int, place: np.ndarray | None = None) -> Tensor:
        """(B, T) float32 on the device, as `WaveformStore.gather`."""
        device = self.samples.device
        clips = torch.from_numpy(indices).to(device)
        begin = self.offsets[clips]  # (B,)
        size = self.offsets[clips + 1] - begin
        slack = length - size
        share = 0.5 if place is None else torch.from_numpy(place).to(device)
        shift = (slack.abs() * share).round().long()
        within = torch.arange(length, device=device) - torch.where(slack >= 0, shift, -shift).unsqueeze(1)  # (B, T)
        inside = (within >= 0) & (within < size.unsqueeze(1))
        return self.samples[(begin.unsqueeze(1) + within).where(inside, 0)].where(inside, 0.0)


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
            yield Rows(permutation[part], order[part], place[part])

    def fixed(self) -> Rows | None:
        """The whole set, where each of its clips has one place for all epochs."""
        if self._placement.redraw:
            return None
        every = np.arange(len(self._indices))
        return Rows(every, self._indices, np.random.default_rng(self._seed).random(len(every)))


class CentredBatches(Sampler[Rows]):
    """Every clip once, in order, centred in its window."""

    def __init__(self, indices: np.ndarray, batch_size: int) -> None:
        every = np.arange(len(indices))
        self._parts = [every[start : start + batch_size] for start in range(0, len(every), batch_size)]
        self._indices = indices

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Rows]:
        return (Rows(part, self._indices[part], None) for part in self._parts)

    def fixed(self) -> Rows:
        """The whole set."""
        return Rows(np.arange(len(self._indices)), self._indices, None)


class ClipDataModule(LightningDataModule):
    """Loaders of one fold.

    A batch leaves the loader as row numbers and arrives at the model as
    features (B, C, F, N): the waveforms are gathered after the transfer, on the
    device where the corpus fits into it, and the features are computed there.
    Those of clips that stay as they are, in validation above all, are computed
    once and kept while they are small. Validation has the scored fold first
    and, where epochs are chosen by one, the selection set second.

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
        self._store, self._length = corpus.store, corpus.clip_samples
        self._batches, self._split = Batches(corpus.targets()), split
        self._front_end = features.build(feature, corpus.store.sample_rate_hz)
        self._batch_size, self._seed = batch_size, seed
        self._device = torch.device("cpu")  # of front end and augmenter
        self._resident: ResidentClips | None = None
        self._kept: dict[str, Tensor | None] = {}  # features of a set, None where they are computed anew

    def steps_per_epoch(self) -> int:
        """Batches that one epoch has, on one device."""
        return len(self._training_batches())

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training clips."""
        return self._loader(self._training_batches())

    def val_dataloader(self) -> list[DataLoader]:
        """The scored fold, then the selection set where there is one."""
        return [self._loader(batches) for batches in self._scored_batches()]

    def transfer_batch_to_device(
        self, batch: tuple[Rows, Tensor], device: torch.device, dataloader_idx: int
    ) -> tuple[Rows, Tensor]:
        """The targets go; the waveforms follow in `on_after_batch_transfer`."""
        rows, targets = batch
        return rows, targets.to(device, non_blocking=True)

    def on_after_batch_transfer(self, batch: tuple[Rows, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """(rows, (B,)) -> ((B, C, F, N), (B,)) on the targets' device, augmented in training.

        With mixup the targets of a training batch are shares, (B, classes).
        """
        rows, targets = batch
        device, trainer = targets.device, self.trainer
        if device != self._device:
            self._front_end, self._augmenter = self._front_end.to(device), self._augmenter.to(device)
            self._device = device
        training = rows.place is not None
        if training != self._augmenter.training:
            self._augmenter.train(training)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):  # features in float32
            kept = self._kept_features("train" if training else str(dataloader_idx), device)
            seed = (self._seed, trainer.global_step if trainer else 0, _world()[0])
            if kept is None:
                waveforms = self._waveforms(rows, device)
                return self._augmenter(waveforms, targets, self._front_end, self._classes, seed)
            x = kept[torch.from_numpy(rows.positions).to(device)]
            return self._augmenter(x, targets, torch.nn.Identity(), self._classes, seed)

    def _waveforms(self, rows: Rows, device: torch.device) -> Tensor:
        """(B, 1, T) on the device."""
        if self._resident is None and ResidentClips.fits(self._store, device):
            self._resident = ResidentClips(self._store, device)
        if self._resident is not None:
            return self._resident.gather(rows.clips, self._length, rows.place).unsqueeze(1)
        waveforms = torch.from_numpy(self._store.gather(rows.clips, self._length, rows.place)).unsqueeze(1)
        return waveforms.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else waveforms.to(device)

    def _kept_features(self, name: str, device: torch.device) -> Tensor | None:
        """(n, C, F, N) features of a set whose clips stay as they are; None where they do not, or are too large."""
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
            place = None if rows.place is None else rows.place[part]
            parts.append(self._front_end(self._waveforms(Rows(rows.positions[part], rows.clips[part], place), device)))
        return torch.cat(parts)

    def _training_batches(self) -> ShuffledBatches:
        return ShuffledBatches(self._split.train, self._batch_size, self._seed, self._placement)

    def _scored_batches(self) -> list[CentredBatches]:
        sets = [self._split.fold] + ([self._split.selection] if len(self._split.selection) else [])
        return [CentredBatches(indices, 4 * self._batch_size) for indices in sets]

    def _loader(self, sampler: Sampler[Rows]) -> DataLoader:
        # rows are numbers: worker processes would cost more than they save
        return DataLoader(self._batches, batch_size=None, sampler=sampler, num_workers=0, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch


def _world() -> tuple[int, int]:
    """(rank, number of processes) of this training."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
