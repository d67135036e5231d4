"""BC-ResNet, the small net of keyword spotting."""

from torch import Tensor, nn

from audio_mnist.config import require
from audio_mnist.errors import ConfigError
from audio_mnist.models.base import Model, batch_norm

# channels at tau = 1, blocks, stride over rows, dilation over frames (the paper's table 1)
STAGES = ((8, 2, 1, 1), (12, 2, 2, 2), (16, 4, 2, 4), (20, 4, 1, 8))


class BroadcastedBlock(nn.Module):
    """Two-dimensional features plus one-dimensional ones, broadcast over the rows.

    The two-dimensional part is a depthwise 3x1 convolution over rows with
    sub-spectral normalisation. Its mean over rows passes a depthwise 1x3
    convolution over frames, SiLU, a 1x1 convolution and dropout. Both are added.
    A block that changes the channels starts with a 1x1 convolution and has no
    identity.

    Shape: (B, in_channels, F, N) -> (B, out_channels, F / stride, N).
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, dilation: int, sub_bands: int, dropout: float
    ) -> None:
        super().__init__()
        self.identity = in_channels == out_channels and stride == 1
        self.enter: nn.Module = nn.Identity()
        if in_channels != out_channels:
            widen = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.enter = nn.Sequential(widen, nn.BatchNorm2d(out_channels), nn.ReLU())
        self.rows = nn.Sequential(
            nn.Conv2d(
                out_channels,
                out_channels,
                (3, 1),
                stride=(stride, 1),
                padding=(1, 0),
                groups=out_channels,
                bias=False,
            ),
            batch_norm(out_channels, sub_bands),
        )
        self.frames = nn.Sequential(
            nn.Conv2d(
                out_channels,
                out_channels,
                (1, 3),
                padding=(0, dilation),
                dilation=(1, dilation),
                groups=out_channels,
                bias=False,
            ),
            nn.BatchNorm2d(out_channels),
            nn.SiLU(),
            nn.Conv2d(out_channels, out_channels, 1, bias=False),
            nn.Dropout2d(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        two = self.rows(self.enter(x))  # (B, out, F / stride, N)
        one = self.frames(two.mean(dim=2, keepdim=True))  # (B, out, 1, N)
        out = two + one + x if self.identity else two + one
        return out.relu()


class BCResNet(Model):
    """BC-ResNet-tau.

    Args:
        classes: number of classes.
        in_channels: C of the features.
        rows: F of the features.
        tau: factor on the channels; the paper has 1, 1.5, 2, 3, 6 and 8.
        sub_bands: parts of the sub-spectral normalisation; divides the feature's rows and their half, quarter and
            eighth. 1 is batch normalisation.
        dropout: dropout in each block, 0 to 1.
        base: arguments of `Model`.

    Shape: (B, C, F, N) -> (B, classes), F at least 40.

    Raises:
        ConfigError: an argument is out of range, or the feature has too few rows.

    Source: Kim et al., "Broadcasted residual learning for efficient keyword
    spotting", 2021: for 40 rows and 12 classes 9,232 parameters at tau = 1.

    >>> import torch
    >>> BCResNet(10, 1, 40, tau=1.0)(torch.randn(2, 1, 40, 40)).shape
    torch.Size([2, 10])
    """

    name = "bcresnet"

    def __init__(
        self,
        classes: int,
        in_channels: int,
        rows: int,
        *,
        tau: float = 1.0,
        sub_bands: int = 5,
        dropout: float = 0.1,
        **base,
    ) -> None:
        super().__init__(classes, in_channels, rows, **base)
        require(tau >= 0.5, "model.tau", tau, "0.5 or more")
        require(sub_bands >= 1, "model.sub_bands", sub_bands, "1 or more")
        require(0 <= dropout < 1, "model.dropout", dropout, "0 or more, below 1")
        width = round(16 * tau)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 5, stride=(2, 1), padding=2, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        for channels, count, stride, dilation in STAGES:
            for number in range(count):
                blocks.append(
                    BroadcastedBlock(
                        width,
                        round(channels * tau),
                        stride=stride if number == 0 else 1,
                        dilation=dilation,
                        sub_bands=sub_bands,
                        dropout=dropout,
                    )
                )
                width = round(channels * tau)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.Conv2d(width, width, 5, padding=(0, 2), groups=width, bias=False),
            nn.Conv2d(width, round(32 * tau), 1, bias=False),
            nn.BatchNorm2d(round(32 * tau)),
            nn.ReLU(),
        )
        self.output = nn.Conv2d(round(32 * tau), classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.scaled(x))  # (B, 16 tau, F / 2, N)
        x = self.blocks(x)  # (B, 20 tau, F / 8, N)
        if x.shape[2] < 5:
            raise ConfigError("model=bcresnet needs a feature of 33 rows or more: its last kernel spans 5 eighths")
        x = self.head(x)  # (B, 32 tau, F / 8 - 4, N)
        return self.output(x.mean(dim=(2, 3), keepdim=True)).flatten(1)  # (B, classes)
