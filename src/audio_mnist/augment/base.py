"""What all augmentations share: their random numbers, and which clips they change."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from audio_mnist.config import Registered, require
from audio_mnist.system import devices


class Draws:
    """Random numbers for the clips of one or more training steps, each step from a generator of its own.

    A clip's numbers depend on its step alone, not on the steps that are computed
    with it. All numbers but normal ones are drawn on the CPU and copied. So a GPU
    does not wait, and has the same numbers.

    Args:
        rngs: a generator per step.
        counts: number of clips of each step, in the order of the clips.
        device: where the clips are.

    >>> draws = Draws([np.random.default_rng(0), np.random.default_rng(1)], [3, 2], torch.device("cpu"))
    >>> draws.uniform(-1.0, 1.0, 1, 1).shape
    torch.Size([5, 1, 1])
    """

    def __init__(self, rngs: Sequence[np.random.Generator], counts: Sequence[int], device: torch.device) -> None:
        self._rngs, self._counts, self._device = rngs, counts, device

    @classmethod
    def of(cls, x: Tensor) -> "Draws":
        """Return draws for one batch, from a seed that torch's global generator gives."""
        return cls([np.random.default_rng(int(torch.randint(2**62, ())))], [len(x)], x.device)

    def chosen(self, probability: float) -> tuple[np.ndarray, "Draws"]:
        """Choose each clip with a probability.

        Returns:
            The (n,) chosen clips, and draws for them.
        """
        if probability == 1:
            return np.arange(sum(self._counts)), self
        chosen = [rng.random(count) < probability for rng, count in zip(self._rngs, self._counts, strict=True)]
        rows = np.flatnonzero(np.concatenate(chosen))
        return rows, Draws(self._rngs, [int(part.sum()) for part in chosen], self._device)

    def on_cpu(self, draw: Callable[[np.random.Generator, int], np.ndarray]) -> np.ndarray:
        """Return what `draw(rng, clips)` gives for each step, in one array (clips, ...)."""
        return np.concatenate([draw(rng, count) for rng, count in zip(self._rngs, self._counts, strict=True)])

    def put(self, values: np.ndarray) -> Tensor:
        """Copy an array to the clips' device."""
        return devices.put(values, self._device)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw (clips, *shape) float32 numbers, uniformly from `low` to `high`."""
        return self.put(low + (high - low) * self.on_cpu(lambda rng, n: rng.random((n, *shape), dtype=np.float32)))

    def integers(self, below: int | np.ndarray, *shape: int) -> Tensor:
        """Draw (clips, *shape) int64 numbers, uniformly from 0 to `below` - 1."""
        return self.put(self.on_cpu(lambda rng, n: rng.integers(below, size=(n, *shape))))

    def normal(self, *shape: int) -> Tensor:
        """Draw (clips, *shape) float32 normal numbers on the clips' device, by torch: there may be many."""
        parts = []
        for rng, count in zip(self._rngs, self._counts, strict=True):
            generator = torch.Generator(self._device).manual_seed(int(rng.integers(2**62)))
            parts.append(torch.randn(count, *shape, generator=generator, device=self._device))
        return torch.cat(parts)

    def partners(self) -> Tensor:
        """Return for each clip the number of a random clip of its own step; none is taken twice."""
        first = np.repeat(np.cumsum([0, *self._counts[:-1]]), self._counts)
        return self.put(first + self.on_cpu(lambda rng, n: rng.permutation(n)))


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
            x: clips of one or more steps.
            draws: their random numbers; no others, so that a run repeats.
        """
        raise NotImplementedError
