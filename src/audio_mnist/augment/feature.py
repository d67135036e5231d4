"""Augmentations of features (B, C, F, N), and of features and targets together."""

import numpy as np
import torch
from torch import Tensor

from audio_mnist.augment.base import Augmentation, Draws
from audio_mnist.config import require


class SpecAugment(Augmentation):
    """Hide bands of rows and of frames behind each row's mean over the clip.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        rows: widest mask, as a share of the feature's rows (bands or coefficients).
        frames: widest mask, as a share of the frames.
        masks: number of masks of each kind; widths are drawn uniformly from 0.
        base: arguments of `Augmentation`.

    Shape: (B, C, F, N) -> (B, C, F, N).

    Raises:
        ConfigError: an argument is out of range.

    Source: Park et al., "SpecAugment", 2019, without its time warping, with the
    draws of `torchaudio.functional.mask_along_axis_iid`.

    >>> x = torch.arange(40.0).expand(1, 1, 40, 40)
    >>> hidden = SpecAugment(8000, rows=0.3, frames=0.0, masks=2, probability=1.0)(x)
    >>> hidden.mean(dim=3).allclose(x.mean(dim=3))
    True
    """

    name = "spec_augment"
    domain = "feature"

    def __init__(self, sample_rate_hz: int, *, rows: float, frames: float, masks: int, **base) -> None:
        super().__init__(sample_rate_hz, **base)
        require(0 <= rows < 1, "augment.spec_augment.rows", rows, "0 or more, below 1")
        require(0 <= frames < 1, "augment.spec_augment.frames", frames, "0 or more, below 1")
        require(masks >= 1, "augment.spec_augment.masks", masks, "1 or more")
        self.rows, self.frames, self.masks = rows, frames, masks

    def augment(self, x: Tensor, draws: Draws) -> Tensor:
        clips, _, rows, frames = x.shape
        hidden = np.zeros((clips, 1, rows, frames), dtype=bool)  # one mask for all channels
        for _ in range(self.masks):
            hidden |= _band(rows, round(self.rows * rows), draws)[:, None, :, None]
            hidden |= _band(frames, round(self.frames * frames), draws)[:, None, None, :]
        return torch.where(draws.put(hidden), x.mean(dim=3, keepdim=True), x)  # rows may differ in scale, as of MFCCs


class Mixup(Augmentation):
    """Blend each clip's feature and target with those of another clip of the batch.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        alpha: both parameters of the Beta distribution of the share, above 0.
        base: arguments of `Augmentation`.

    Shape: (B, C, F, N), (B, classes) -> the same.

    Raises:
        ConfigError: an argument is out of range.

    Source: Zhang et al., "mixup", 2018. Deviation: the share is drawn for each clip.

    >>> x, targets = Mixup(8000, alpha=0.3, probability=1.0).blend(torch.randn(8, 1, 4, 4), torch.eye(8))
    >>> targets.sum(dim=1).allclose(torch.ones(8))
    True
    """

    name = "mixup"
    domain = "pair"

    def __init__(self, sample_rate_hz: int, *, alpha: float, **base) -> None:
        super().__init__(sample_rate_hz, **base)
        require(alpha > 0, "augment.mixup.alpha", alpha, "above 0")
        self.alpha = alpha

    def blend(self, x: Tensor, targets: Tensor, draws: Draws | None = None) -> tuple[Tensor, Tensor]:
        """Return blended features and (B, classes) targets, shares of each class."""
        draws = draws or Draws.of(x)
        blended = draws.on_cpu(lambda rng, n: rng.random(n) < self.probability)
        drawn = draws.on_cpu(lambda rng, n: rng.beta(self.alpha, self.alpha, size=n))
        share = draws.put(np.where(blended, drawn, 1).astype(np.float32))  # (B,)
        other = draws.partners()
        return _lerp(x[other], x, share), _lerp(targets[other], targets, share)


def _band(size: int, widest: int, draws: Draws) -> np.ndarray:
    """Draw one band per clip: a width from 0 to `widest`, then its place. Return (clips, size), true inside."""
    width, share = draws.on_cpu(lambda rng, n: rng.random((n, 2))).T
    width = width * (widest + 1)
    first = np.floor(share * (size - width))[:, None]
    return (np.arange(size) >= first) & (np.arange(size) < first + np.floor(width)[:, None])


def _lerp(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(start, end, share.view(-1, *[1] * (start.ndim - 1)))
