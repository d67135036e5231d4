"""What all augmentations share."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from audio_mnist.config import Registered, require


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

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        rows = (torch.rand(len(x), device=x.device) < self.probability).nonzero().squeeze(1)
        if len(rows) == len(x):
            return self.augment(x)
        return x.index_copy(0, rows, self.augment(x[rows])) if len(rows) else x

    def augment(self, x: Tensor) -> Tensor:
        """Return all clips of `x`, changed, in the same shape; `x` itself stays as it is."""
        raise NotImplementedError


def uniform(low: float, high: float, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Draw uniformly from `low` to `high`, on the device of `like`."""
    return low + (high - low) * torch.rand(shape, device=like.device)
