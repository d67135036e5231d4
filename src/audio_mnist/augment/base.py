"""What all augmentations share: their random numbers, and which clips they change."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from audio_mnist.config import Registered, require
from audio_mnist.system import devices


class Draws:
    """Random numbers for the clips of an epoch.

    All numbers but normal ones are drawn on the CPU, for all clips of the epoch,
    and copied. So a clip has its own, whatever clips are computed with it, and a GPU
    has the same ones and does not wait. Where a clip needs many, use `normal`.

    Args:
        key: whole numbers that all numbers follow from, such as seed and epoch.
        clips: number of clips of the epoch.
        device: where the clips are.

    >>> draws = Draws([0, 3], 400, torch.device("cpu"))
    >>> draws.at(np.array([7, 2, 9])).uniform(-1.0, 1.0, 1, 1).shape
    torch.Size([3, 1, 1])
    """

    def __init__(self, key: Sequence[int], clips: int, device: torch.device) -> None:
        self._key, self._device = tuple(key), device
        self._all, self._clips = clips, np.arange(clips)
        self._batch_size: int | None = clips
        self._calls = 0
        self._drawn: dict[tuple[int, ...], np.ndarray] = {}  # of all clips, call by call

    @classmethod
    def of(cls, x: Tensor) -> "Draws":
        """Return draws for one batch, from a seed that torch's global generator gives."""
        return cls([int(torch.randint(2**62, ()))], len(x), x.device)

    def at(self, clips: np.ndarray, batch_size: int | None = None) -> "Draws":
        """Return draws for some clips.

        Args:
            clips: (n,) their numbers, 0 to the number of clips - 1.
            batch_size: clips of each batch, in the order of `clips`; None where they are of no batch.
        """
        part = copy.copy(self)
        part._clips, part._batch_size = clips, batch_size
        return part

    def of_stage(self, number: int) -> "Draws":
        """Return draws for one augmentation; its numbers do not depend on what others draw."""
        part = copy.copy(self)
        part._key, part._calls = (*self._key, number), 0
        return part

    def chosen(self, probability: float) -> tuple[np.ndarray, "Draws"]:
        """Choose each clip with a probability.

        Returns:
            The (n,) chosen rows of these clips, and draws for them.
        """
        rows = np.flatnonzero(self.on_cpu(lambda rng, n: rng.random(n) < probability))
        return rows, self.at(self._clips[rows])

    def on_cpu(self, draw: Callable[[np.random.Generator, int], np.ndarray]) -> np.ndarray:
        """Return (clips, ...) numbers of what `draw(rng, n)` gives for all n clips of the epoch."""
        self._calls += 1
        key = (*self._key, self._calls)
        if key not in self._drawn:
            self._drawn[key] = draw(np.random.default_rng(key), self._all)
        return self._drawn[key][self._clips]

    def put(self, values: np.ndarray) -> Tensor:
        """Copy an array to the clips' device."""
        return devices.put(values, self._device)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw (clips, *shape) float32 numbers, uniformly from `low` to `high`."""
        return self.put(low + (high - low) * self.on_cpu(lambda rng, n: rng.random((n, *shape), dtype=np.float32)))

    def integers(self, below: int, *shape: int) -> Tensor:
        """Draw (clips, *shape) int64 numbers, uniformly from 0 to `below` - 1."""
        return self.put(self.on_cpu(lambda rng, n: rng.integers(below, size=(n, *shape))))

    def normal(self, *shape: int) -> Tensor:
        """Draw (clips, *shape) float32 normal numbers on the clips' device: there may be many.

        One generator serves all these clips, so a clip's numbers depend on what is computed with it.
        """
        seeds = self.on_cpu(lambda rng, n: rng.integers(2**62, size=n))
        generator = torch.Generator(self._device).manual_seed(int(seeds[0]))
        return torch.randn(len(seeds), *shape, generator=generator, device=self._device)

    def partners(self) -> Tensor:
        """Return for each clip the row of the one before it in its batch; batches are in random order.

        Raises:
            ValueError: the clips are of no batch. Only augmentations of pairs get batches: other clips may be scored.
        """
        if self._batch_size is None:
            raise ValueError("only an augmentation of pairs has partners: clips beside others may be scored ones")
        rows = np.arange(len(self._clips)).reshape(-1, self._batch_size)
        return self.put(np.roll(rows, 1, axis=1).ravel())


class Augmentation(Registered, nn.Module):
    """Base of every augmentation.

    Attributes:
        name: its key in the config.
        domain: what it takes: "waveform" (B, 1, T), "feature" (B, C, F, N), or "pair" (features and targets).
        moves: whether a clip begins or ends elsewhere in its window after it.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        probability: probability that a clip is changed.

    Raises:
        ConfigError: an argument is out of range.
    """

    registry: ClassVar[dict[str, Any]] = {}
    domain: ClassVar[str] = "waveform"
    moves: ClassVar[bool] = False

    def __init__(self, sample_rate_hz: int, *, probability: float) -> None:
        super().__init__()
        self.sample_rate_hz, self.probability = sample_rate_hz, probability
        require(0 <= probability <= 1, f"augment.{self.name}.probability", probability, "0 to 1")

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        if not self.training:
            return x
        chosen, draws = (draws or Draws.of(x)).chosen(self.probability)
        if len(chosen) == len(x):
            return self.augment(x, draws)
        if not len(chosen):
            return x
        rows = draws.put(chosen)
        return x.index_copy(0, rows, self.augment(x[rows], draws))

    def augment(self, x: Tensor, draws: Draws) -> Tensor:
        """Return all clips of `x`, changed, in the same shape; `x` itself stays as it is.

        Args:
            x: clips of one or more batches.
            draws: their random numbers; no others, so that a run repeats.
        """
        raise NotImplementedError
