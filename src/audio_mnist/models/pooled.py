"""A small net on the mean and standard deviation over frames."""

import torch
from torch import Tensor, nn

from audio_mnist.config import require
from audio_mnist.models.base import Model


class Pooled(Model):
    """One hidden layer on a clip's statistics. It suits embeddings of a pretrained encoder.

    Args:
        classes: number of classes.
        in_channels: C of the features.
        rows: F of the features.
        hidden: units of the hidden layer.
        dropout: dropout of the statistics and of the hidden layer, 0 to 1.
        base: arguments of `Model`.

    Shape: (B, C, F, N) -> (B, classes).

    Raises:
        ConfigError: an argument is out of range.

    >>> Pooled(10, 1, 96, hidden=256, dropout=0.3)(torch.randn(2, 1, 96, 13)).shape
    torch.Size([2, 10])
    """

    name = "pooled"

    def __init__(self, classes: int, in_channels: int, rows: int, *, hidden: int, dropout: float, **base) -> None:
        super().__init__(classes, in_channels, rows, **base)
        require(hidden >= 1, "model.hidden", hidden, "1 or more")
        require(0 <= dropout < 1, "model.dropout", dropout, "0 or more, below 1")
        self.scale = nn.BatchNorm1d(2 * in_channels * rows, affine=False)
        self.hidden = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(2 * in_channels * rows, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.output = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.hidden(self.scale(statistics(self.scaled(x)))))


def statistics(x: Tensor) -> Tensor:
    """Return the mean and standard deviation over frames of (B, C, F, N) features, (B, 2 * C * F).

    >>> statistics(torch.tensor([[[[1.0, 3.0]]]]))
    tensor([[2., 1.]])
    """
    variance, mean = torch.var_mean(x, dim=3, correction=0)
    return torch.cat([mean, variance.clamp_min(1e-12).sqrt()], dim=1).flatten(1)
