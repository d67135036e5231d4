"""The small pre-activation residual net, the original's."""

from torch import Tensor, nn

from audio_mnist.config import require
from audio_mnist.models.base import Model, batch_norm

POOLINGS = ("mean", "mean_max")


class ResBlock(nn.Module):
    """Three pre-activated convolutions and a projected shortcut.

    BN-ReLU-1x1, BN-ReLU-3x3, BN-ReLU-1x1, plus a 1x1 projection of the input,
    then ReLU. The inner width is the input's.

    Shape: (B, in_channels, F, N) -> (B, out_channels, F, N).

    Source: the order of He et al., "Identity Mappings in Deep Residual
    Networks", 2016. Deviations: the shortcut is always projected, and a ReLU
    follows the sum.
    """

    def __init__(self, in_channels: int, out_channels: int, sub_bands: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            batch_norm(in_channels, sub_bands),
            nn.ReLU(),
            nn.Conv2d(in_channels, in_channels, 1),
            batch_norm(in_channels, sub_bands),
            nn.ReLU(),
            nn.Conv2d(in_channels, in_channels, 3, padding=1),
            batch_norm(in_channels, sub_bands),
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, 1),
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.residual(x) + self.shortcut(x)).relu()


class ResNet(Model):
    """The net of the original notebook, made deeper and wider by two numbers.

    Args:
        classes: number of classes.
        in_channels: C of the features.
        rows: F of the features.
        depth: blocks of each stage; 1 is the original net, with exactly 83,562 trainable parameters at 10 classes.
        width: factor on the channels of every convolution.
        dropout: dropout before the last layer, 0 to 1.
        sub_bands: equal parts of the rows, each normalised by itself; 1 as the original.
        pooling: "mean" over rows and frames, as the original; or "mean_max", the mean over rows, then the sum of mean
            and maximum over frames, as in Kong et al., "PANNs", 2020. A short event in a long clip keeps its weight.
        base: arguments of `Model`.

    Shape: (B, C, F, N) -> (B, classes). The three poolings need 8 rows and
    frames; zeros fill up what is missing.

    Raises:
        ConfigError: an argument is out of range.

    >>> import torch
    >>> net = ResNet(10, 1, 40)
    >>> net(torch.randn(2, 1, 40, 40)).shape, sum(p.numel() for p in net.parameters())
    (torch.Size([2, 10]), 83562)
    """

    name = "resnet"
    groups_exactly = True

    def __init__(
        self,
        classes: int,
        in_channels: int,
        rows: int,
        *,
        depth: int = 1,
        width: int = 1,
        dropout: float = 0.5,
        sub_bands: int = 1,
        pooling: str = "mean",
        **base,
    ) -> None:
        super().__init__(classes, in_channels, rows, **base)
        for key, value in (("depth", depth), ("width", width), ("sub_bands", sub_bands)):
            require(value >= 1, f"model.{key}", value, "1 or more")
        require(0 <= dropout < 1, "model.dropout", dropout, "0 or more, below 1")
        require(pooling in POOLINGS, "model.pooling", pooling, "one of " + ", ".join(POOLINGS))
        self.pooling = pooling
        w = 16 * width
        self.stem = nn.Sequential(nn.Conv2d(in_channels, w, 3, padding=1), batch_norm(w, sub_bands), nn.MaxPool2d(2))
        self.stages = nn.Sequential(
            nn.ReLU(),  # after the pooling: the same numbers from a quarter of the values
            _stage(w, 2 * w, depth, sub_bands),
            nn.MaxPool2d(2),
            _stage(2 * w, 2 * w, depth, sub_bands),
            _stage(2 * w, 4 * w, depth, sub_bands),
            nn.MaxPool2d(2),
            _stage(4 * w, 4 * w, depth, sub_bands),
        )
        self.hidden = nn.Sequential(nn.Linear(4 * w, 2 * w), nn.BatchNorm1d(2 * w), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(2 * w, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(self.scaled(x), (0, max(0, 8 - x.shape[3]), 0, max(0, 8 - x.shape[2])))
        x = self.stem(x)  # (B, 16w, F/2, N/2)
        x = self.stages(x)  # (B, 64w, F/8, N/8)
        if self.pooling == "mean":
            x = x.mean(dim=(2, 3))  # (B, 64w); adaptive pooling has no deterministic backward on CUDA
        else:
            x = x.mean(dim=2)  # (B, 64w, N/8)
            x = x.mean(dim=2) + x.amax(dim=2)  # (B, 64w)
        x = self.hidden(x)  # (B, 32w)
        return self.output(self.dropout(x))  # (B, C)


def _stage(in_channels: int, out_channels: int, depth: int, sub_bands: int) -> nn.Sequential:
    first = ResBlock(in_channels, out_channels, sub_bands)
    return nn.Sequential(first, *(ResBlock(out_channels, out_channels, sub_bands) for _ in range(depth - 1)))
