"""What all nets share."""

from typing import ClassVar

from torch import Tensor, nn

from audio_mnist.errors import ConfigError


class Model(nn.Module):
    """Base of every net; a subclass has a `name`.

    Args:
        classes: at least 2.
        in_channels: C of the features.

    Shape: (B, C, F, N) -> (B, classes).

    Raises:
        ConfigError: an argument is out of range.
    """

    name: ClassVar[str]
    registry: ClassVar[dict[str, type["Model"]]] = {}

    def __init_subclass__(cls) -> None:
        if "name" in cls.__dict__:
            Model.registry[cls.name] = cls

    def __init__(self, classes: int, in_channels: int) -> None:
        super().__init__()
        if classes < 2:
            raise ConfigError(f"classes={classes}: a classifier needs at least 2")
        self.classes, self.in_channels = classes, in_channels


class SubSpectralNorm(nn.Module):
    """Batch normalisation of each of several bands of rows by itself.

    Args:
        channels: C.
        sub_bands: S, equal parts of the rows; 1 is ordinary batch normalisation.

    Shape: (B, C, F, N) -> (B, C, F, N).

    Raises:
        ConfigError: F is no multiple of S.

    Source: Chang et al., "SubSpectral normalization for neural audio data
    processing", 2021.
    """

    def __init__(self, channels: int, sub_bands: int) -> None:
        super().__init__()
        self.sub_bands = sub_bands
        self.norm = nn.BatchNorm2d(channels * sub_bands)

    def forward(self, x: Tensor) -> Tensor:
        clips, channels, rows, frames = x.shape
        if rows % self.sub_bands:
            raise ConfigError(
                f"model.sub_bands={self.sub_bands} does not divide the {rows} rows that a layer of the net has; "
                "choose another, or another number of rows of the feature"
            )
        parts = x.reshape(clips, channels * self.sub_bands, rows // self.sub_bands, frames)
        return self.norm(parts).reshape(clips, channels, rows, frames)


def batch_norm(channels: int, sub_bands: int) -> nn.Module:
    """Batch normalisation, by sub-bands where there are more than one."""
    return SubSpectralNorm(channels, sub_bands) if sub_bands > 1 else nn.BatchNorm2d(channels)
