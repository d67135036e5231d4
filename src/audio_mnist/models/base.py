"""What all nets share."""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from audio_mnist.config import Registered
from audio_mnist.errors import ConfigError


class Model(Registered, nn.Module):
    """Base of every net. A subclass has a `name` and passes its input through `scaled` first.

    Args:
        classes: number of classes, at least 2.
        in_channels: C of the features.
        rows: F of the features.
        input_norm: whether `RowNorm` scales each row of the feature.

    Attributes:
        closed_form: whether `fit` finds its weights, in one pass and without gradients.
        groups_exactly: whether several nets trained as one in bfloat16 on a CPU have the bits of each alone.

    Shape: (B, C, F, N) -> (B, classes).

    Raises:
        ConfigError: an argument is out of range.
    """

    registry: ClassVar[dict[str, Any]] = {}
    closed_form: ClassVar[bool] = False
    groups_exactly: ClassVar[bool] = False

    def __init__(self, classes: int, in_channels: int, rows: int, *, input_norm: bool = False) -> None:
        super().__init__()
        if classes < 2:
            raise ConfigError(f"classes={classes}: a classifier needs at least 2")
        self.classes, self.in_channels = classes, in_channels
        self.scaled = RowNorm(in_channels, rows) if input_norm else nn.Identity()

    def fit(self, batches: Iterable[tuple[Tensor, Tensor, Tensor]], *, weighted: bool = False) -> None:
        """Fit a net of closed form at once.

        Args:
            batches: features (B, C, F, N), class numbers (B,), and groups (B,) of clips that belong together.
            weighted: whether classes count alike, however many clips each has.
        """
        raise NotImplementedError


class RowNorm(nn.Module):
    """Scale each row of each channel to mean 0 and sd 1: by the batch in training, by running statistics after it.

    Args:
        channels: C.
        rows: F.
        momentum: share of a batch in the running statistics.
        floor: share of the rows' mean variance that is added to each. It keeps a row that hardly moves small, such as
            a band that the recordings do not reach.

    Shape: (B, C, F, N) -> (B, C, F, N).

    Source: `bn0` of Kong et al., "PANNs: large-scale pretrained audio neural
    networks", 2020. Deviations: no learnt scale and shift; the floor.

    >>> RowNorm(1, 4)(torch.randn(8, 1, 4, 50) * 10).std().round()
    tensor(1.)
    """

    def __init__(self, channels: int, rows: int, momentum: float = 0.1, floor: float = 0.01) -> None:
        super().__init__()
        self.momentum, self.floor = momentum, floor
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(1, channels, rows, 1))
        self.register_buffer("variance", torch.ones(1, channels, rows, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.mean, self.variance
        if self.training:
            variance, mean = torch.var_mean(x, dim=(0, 3), correction=0, keepdim=True)
            self.mean.lerp_(mean.detach(), self.momentum)
            self.variance.lerp_(variance.detach(), self.momentum)
        return (x - mean) * (variance + self.floor * self.mean_variance(variance) + torch.finfo(x.dtype).tiny).rsqrt()

    def mean_variance(self, variance: Tensor) -> Tensor:
        """Return the mean of the (1, C, F, 1) variances, in a shape that fits them."""
        return variance.mean()


class SubSpectralNorm(nn.Module):
    """Batch normalisation of several bands of rows, each by itself.

    Args:
        channels: C.
        sub_bands: S, equal parts of the rows; 1 is ordinary batch normalisation.

    Shape: (B, C, F, N) -> (B, C, F, N).

    Raises:
        ConfigError: F is no multiple of S.

    Source: Chang et al., "SubSpectral normalization for neural audio data
    processing", 2021.

    >>> SubSpectralNorm(16, 5)(torch.randn(2, 16, 40, 20)).shape
    torch.Size([2, 16, 40, 20])
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
    """Return batch normalisation, by sub-bands where there are several."""
    return SubSpectralNorm(channels, sub_bands) if sub_bands > 1 else nn.BatchNorm2d(channels)
