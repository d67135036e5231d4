"""What all augmentations share."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from audio_mnist.errors import ConfigError


class Augmentation(nn.Module):
    """Base of every augmentation.

    Attributes:
        name: its key in the config.
        domain: what it takes: "waveform" (B, 1, T) or "feature" (B, C, F, N).
        moves: whether a clip begins or ends elsewhere in its window after it.

    Args:
        sample_rate_hz: of the waveforms.
        probability: that a clip is changed.

    Raises:
        ConfigError: an argument is out of range.
    """

    name: ClassVar[str]
    domain: ClassVar[str] = "waveform"
    moves: ClassVar[bool] = False
    registry: ClassVar[dict[str, type["Augmentation"]]] = {}

    def __init_subclass__(cls) -> None:
        if "name" in cls.__dict__:
            Augmentation.registry[cls.name] = cls

    def __init__(self, sample_rate_hz: int, *, probability: float) -> None:
        super().__init__()
        self.sample_rate_hz, self.probability = sample_rate_hz, probability
        self.check(0 <= probability <= 1, "probability", probability, "0 to 1")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        rows = (torch.rand(len(x), device=x.device) < self.probability).nonzero().squeeze(1)
        if len(rows) == len(x):
            return self.augment(x)
        return x.index_copy(0, rows, self.augment(x[rows])) if len(rows) else x

    def augment(self, x: Tensor) -> Tensor:
        """All clips of `x`, changed, in the same shape; `x` itself stays as it is."""
        raise NotImplementedError

    def check(self, fine: bool, key: str, got: object, expected: str) -> None:
        """Raises a `ConfigError` of this augmentation's key."""
        if not fine:
            raise ConfigError(f"augment.{self.name}.{key}={got}: expected {expected}")


def uniform(low: float, high: float, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return low + (high - low) * torch.rand(shape, device=like.device)
