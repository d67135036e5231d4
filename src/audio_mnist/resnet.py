"""The small pre-activation residual net: (B, 1, F, N) -> (B, C) logits."""

from torch import Tensor, nn

from audio_mnist.config import construct
from audio_mnist.errors import ConfigError


class ResBlock(nn.Module):
    """Three pre-activated convolutions and a projected shortcut.

    BN-ReLU-1x1, BN-ReLU-3x3, BN-ReLU-1x1, plus a 1x1 projection of the input,
    ReLU after the sum. The inner width is the input's.

    Shape: (B, in_channels, F, N) -> (B, out_channels, F, N).

    Source: the order of He et al., "Identity Mappings in Deep Residual
    Networks", 2016. Deviations: the shortcut is always projected, and a ReLU
    follows the sum.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),
            nn.Conv2d(in_channels, in_channels, 1),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),
            nn.Conv2d(in_channels, in_channels, 3, padding=1),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, 1),
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.residual(x) + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """The net of the original notebook, made deeper and wider by two numbers.

    Args:
        classes: C, at least 2.
        depth: blocks of each stage; 1 is the original net, with exactly 83,562
            trainable parameters at 10 classes.
        width: multiplies the channels of every convolution.
        dropout: before the last layer, 0 to 1.
        in_channels: channels of the input feature.

    Shape: (B, in_channels, F, N) -> (B, C). Fewer than 8 bins or frames are
    padded with zeros to 8, which the three poolings need.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self, classes: int, *, depth: int = 1, width: int = 1, dropout: float = 0.5, in_channels: int = 1
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ConfigError(f"classes={classes}: a classifier needs at least 2")
        if depth < 1:
            raise ConfigError(f"model.depth={depth}: expected 1 or more")
        if width < 1:
            raise ConfigError(f"model.width={width}: expected 1 or more")
        if not 0 <= dropout < 1:
            raise ConfigError(f"model.dropout={dropout}: expected 0 or more, below 1")
        w = 16 * width
        self.stem = nn.Sequential(nn.Conv2d(in_channels, w, 3, padding=1), nn.BatchNorm2d(w), nn.ReLU())
        self.stages = nn.Sequential(
            nn.MaxPool2d(2),
            _stage(w, 2 * w, depth),
            nn.MaxPool2d(2),
            _stage(2 * w, 2 * w, depth),
            _stage(2 * w, 4 * w, depth),
            nn.MaxPool2d(2),
            _stage(4 * w, 4 * w, depth),
        )
        self.hidden = nn.Sequential(nn.Linear(4 * w, 2 * w), nn.BatchNorm1d(2 * w), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(2 * w, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x, (0, max(0, 8 - x.shape[3]), 0, max(0, 8 - x.shape[2])))
        x = self.stem(x)  # (B, 16w, F, N)
        x = self.stages(x)  # (B, 64w, F/8, N/8)
        x = x.mean(dim=(2, 3))  # (B, 64w); adaptive pooling has no deterministic backward on CUDA
        x = self.hidden(x)  # (B, 32w)
        return self.output(self.dropout(x))  # (B, C)


def _stage(in_channels: int, out_channels: int, depth: int) -> nn.Sequential:
    first = ResBlock(in_channels, out_channels)
    return nn.Sequential(first, *(ResBlock(out_channels, out_channels) for _ in range(depth - 1)))


MODELS: dict[str, type[nn.Module]] = {"resnet": ResNet}


def build(settings: dict, classes: int) -> nn.Module:
    """The net that `settings` (`name` and its arguments) describe.

    Raises:
        ConfigError: an unknown name, an unknown argument, or one out of range.
    """
    return construct(MODELS, "model", settings, classes=classes)
