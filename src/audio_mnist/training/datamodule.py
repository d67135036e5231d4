"""One fold as a LightningDataModule: waveforms to the device, features computed there."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn

from audio_mnist.augment import Augmenter, Draws, Placement
from audio_mnist.data.prepare import PreparedCorpus
from audio_mnist.data.split import Split
from audio_mnist.features import FrontEnd
from audio_mnist.system import devices
from audio_mnist.training.batches import CentredBatches, ResidentClips, Rows, ShuffledBatches
from audio_mnist.training.embeddings import Embeddings
from audio_mnist.training.shared import SharedBlocks, Stream

KEPT_BYTES = 32 * 2**20  # largest features of a set that are kept, not computed again
# waveforms of training batches that are computed at once: what a core's cache takes, and a GPU's memory easily
AT_ONCE_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}


def share_clips(families: Sequence[Sequence["ClipDataModule"]]) -> None:
    """Let data modules compute augmented waveforms once, and those of one family augmented features once.

    Args:
        families: the runs' data, of one seed. Those of a family differ in their folds alone. Families also differ in
            feature or net. The runs keep pace.
    """
    pooled = [family for family in families if all(module._training_batches().is_pooled for module in family)]
    waveforms = SharedBlocks(len(pooled))
    for family in pooled:
        stream = Stream(len(family))
        for number, module in enumerate(family):
            module._read, module._share_waveforms = partial(stream.read, number), waveforms.get


class FeatureBatches:
    """A loader: a sampler's rows as features (B, C, F, N) and targets on the device.

    Args:
        sampler: the rows. Lightning sets its epoch.
        compute: turns it into the batches.
    """

    batch_sampler = None  # Lightning asks every loader that has a sampler for it

    def __init__(
        self, sampler: ShuffledBatches | CentredBatches, compute: Callable[[Any], Iterator[tuple[Tensor, Tensor]]]
    ) -> None:
        self.sampler, self._compute = sampler, compute

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._compute(self.sampler)


class ClipDataModule(LightningDataModule):
    """Loaders of one fold.

    A loader yields features (B, C, F, N) and class numbers (B,) on the training's
    device; with mixup shares (B, classes). The features are computed there, and
    the waveforms are gathered there where the corpus fits. Several training
    batches are augmented and transformed at once; each clip has random numbers of
    its own. Features of clips that do not change, in validation above all,
    are computed once and kept while they are small. The first validation set is
    the scored fold. The second, where there is one, is the selection set.

    An encoder's features come from `embeddings`. Its training clips vary by their copies, not by their place.

    Args:
        corpus: the decoded clips.
        split: the fold's index sets.
        front_end: the feature.
        augment: settings of the augmentations of training clips, one key each.
        batch_size: B, clips.
        seed: random seed of the order, the placement and the augmentation of training clips.
        balanced: whether training batches draw classes alike.
        embeddings: features of all clips of the split, where the front end is a pretrained encoder.
        groups: (clips,) names of groups of clips that belong together, for a net of closed form.
        pool: clips that any fold trains on, where runs can share computed clips; None where they cannot.

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
        balanced: bool = False,
        embeddings: Embeddings | None = None,
        groups: np.ndarray | None = None,
        pool: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self._classes = len(corpus.class_names)
        self._placement = Placement.of(augment)
        self._augmenter = Augmenter(augment, corpus.store.sample_rate_hz, waveforms=embeddings is None)
        self._embeddings = embeddings
        self._targets, self._groups, self._pool = corpus.targets(), groups, pool
        self._store, self._length = corpus.store, corpus.clip_samples
        self._split, self._front_end = split, front_end
        self._batch_size, self._seed, self.balanced = batch_size, seed, balanced
        self._resident: ResidentClips | None = None
        self._read, self._share_waveforms = partial(Stream().read, 0), SharedBlocks().get
        self._kept: dict[str, Tensor | None] = {}  # features of a set, None where each batch computes them

    def epoch_shape(self) -> tuple[int, int]:
        """Return the number of batches of one epoch, on one device, and the clips in each."""
        batches = self._training_batches()
        return len(batches), batches.batch_size

    def train_dataloader(self) -> FeatureBatches:
        """Return shuffled batches of the training clips, augmented."""
        return FeatureBatches(self._training_batches(), self._train)

    def val_dataloader(self) -> list[FeatureBatches]:
        """Return the scored fold, then the selection set where there is one."""
        return [
            FeatureBatches(batches, partial(self._score, f"scored {number}"))
            for number, batches in enumerate(self._scored_batches())
        ]

    def _train(self, sampler: ShuffledBatches) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the training batches of one epoch, several computed at once."""
        device = self._device()
        at_once = max(1, AT_ONCE_BYTES.get(device.type, 0) // (4 * self._length * sampler.batch_size))
        kept, augmenter = self._kept_features("train", sampler, device), self._augmenter.to(device)
        draws = Draws([self._seed, sampler.epoch, 2], sampler.slots, device)

        def compute(slots: np.ndarray) -> Tensor:
            rows, its_draws = sampler.rows(slots), draws.at(slots)
            if kept is not None or self._embeddings is not None:
                x = self._inputs(rows, device) if kept is None else kept[devices.put(rows.positions, device)]
                return augmenter(x, nn.Identity(), its_draws)
            x, sounding = self._share_waveforms(
                sampler.epoch,
                int(slots[0]),
                lambda: augmenter.augment_waveforms(self._waveforms(rows, device), its_draws),
            )
            return augmenter.augment_features(x, sounding, self._front_end.to(device), its_draws)

        batches = iter(sampler)
        while group := list(islice(batches, at_once)):
            rows = Rows.joined(group)
            assert rows.slots is not None
            with _in_float32(device):
                targets = devices.put(self._targets[rows.clips], device)
                x = self._read(sampler, rows.slots, at_once * sampler.batch_size, compute)
                its_draws = draws.at(rows.slots, sampler.batch_size)
                x, targets = augmenter.blend(x, targets, self._classes, its_draws)
            yield from zip(x.split(sampler.batch_size), targets.split(sampler.batch_size), strict=True)

    def _score(self, name: str, sampler: CentredBatches) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of a scored set."""
        device = self._device()
        kept = self._kept_features(name, sampler, device)
        for rows in sampler:
            x = self._features(rows, device) if kept is None else kept[devices.put(rows.positions, device)]
            yield x, devices.put(self._targets[rows.clips], device)

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def training_set(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield all training clips, not augmented, for a net of closed form; of an encoder every copy.

        Returns:
            Features (B, C, F, N), class numbers (B,) and groups (B,) of each batch, on the device.
        """
        groups = self._targets if self._groups is None else np.unique(self._groups, return_inverse=True)[1]
        copies = 1 if self._embeddings is None else self._embeddings.copies
        for copy in range(copies):
            for rows in CentredBatches(self._split.train, 4 * self._batch_size):
                if self._embeddings is not None:
                    rows = rows._replace(placement=np.full(len(rows.clips), (copy + 0.5) / copies))
                x = self._features(rows, device)
                targets, together = (devices.put(of_all[rows.clips], device) for of_all in (self._targets, groups))
                yield x, targets, together

    def _features(self, rows: Rows, device: torch.device) -> Tensor:
        """Return (B, C, F, N) features in float32, not augmented."""
        x = self._inputs(rows, device)
        if self._embeddings is not None:
            return x
        with _in_float32(device):
            return self._front_end.to(device)(x)

    def _inputs(self, rows: Rows, device: torch.device) -> Tensor:
        """Return waveforms (B, 1, T), or the embeddings (B, C, F, N) of an encoder."""
        if self._embeddings is not None:
            return devices.put(self._embeddings.gather(rows.clips, rows.placement).numpy(), device)
        return self._waveforms(rows, device)

    def _waveforms(self, rows: Rows, device: torch.device) -> Tensor:
        """Return (B, 1, T) on the device."""
        if self._resident is None and ResidentClips.fits(self._store, device):
            self._resident = ResidentClips(self._store, device)
        if self._resident is not None:
            return self._resident.gather(rows.clips, self._length, rows.placement).unsqueeze(1)
        return devices.put(self._store.gather(rows.clips, self._length, rows.placement), device).unsqueeze(1)

    def _kept_features(
        self, name: str, sampler: ShuffledBatches | CentredBatches, device: torch.device
    ) -> Tensor | None:
        """Return the (n, C, F, N) features of a set of unchanging clips; None where they change or are too large."""
        if name not in self._kept:
            self._kept[name] = None
            rows = None if self._embeddings is not None else sampler.fixed()
            if rows is not None and not (name == "train" and self._augmenter.changes_waveforms):
                one = self._features(Rows(rows.positions[:1], rows.clips[:1]), device)
                if one.nbytes * len(rows.clips) <= KEPT_BYTES:
                    self._kept[name] = self._compute(rows, device)
        return self._kept[name]

    def _compute(self, rows: Rows, device: torch.device) -> Tensor:
        parts = []
        for start in range(0, len(rows.clips), 4 * self._batch_size):
            part = slice(start, start + 4 * self._batch_size)
            placement = None if rows.placement is None else rows.placement[part]
            parts.append(self._features(Rows(rows.positions[part], rows.clips[part], placement), device))
        return torch.cat(parts)

    def _training_batches(self) -> ShuffledBatches:
        classes = self._targets[self._split.train] if self.balanced else None
        # code of a person's own could mix clips of the scored fold into those that train
        parts = (self._front_end, *self._augmenter.stages)
        ours = all(type(part).__module__.startswith("audio_mnist.") for part in parts)
        computed = self._embeddings is None and (self._placement.redraw or self._augmenter.changes_waveforms)
        pool = self._pool if ours and computed and not self.balanced else None
        clips, train = len(self._targets), self._split.train
        return ShuffledBatches(train, self._batch_size, self._seed, self._placement, classes, clips, pool)

    def _scored_batches(self) -> list[CentredBatches]:
        sets: list[np.ndarray] = [self._split.fold] + ([self._split.selection] if len(self._split.selection) else [])
        return [CentredBatches(indices, 4 * self._batch_size) for indices in sets]


@contextlib.contextmanager
def _in_float32(device: torch.device) -> Iterator[None]:
    """Compute features without gradients and in full float32, whatever the training's precision is."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False), devices.exact_convolutions():
        yield
