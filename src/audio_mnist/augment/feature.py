"""Augmentations of features (B, C, F, N), and of features and targets together."""

import torch
from torch import Tensor
from torchaudio.functional import mask_along_axis_iid

from audio_mnist.augment.base import Augmentation


class SpecAugment(Augmentation):
    """Hides bands of rows and of frames behind each row's mean over the clip.

    Args:
        rows: widest mask, as a share of the feature's rows (bands or coefficients).
        frames: widest mask, as a share of the frames.
        masks: of each kind; widths are drawn uniformly from 0.
        others: of `Augmentation`.

    Raises:
        ConfigError: an argument is out of range.

    Source: Park et al., "SpecAugment", 2019, without its time warping, with
    `torchaudio.functional.mask_along_axis_iid`.
    """

    name = "spec_augment"
    domain = "feature"

    def __init__(self, sample_rate_hz: int, *, rows: float, frames: float, masks: int, **base) -> None:
        super().__init__(sample_rate_hz, **base)
        self.check(0 <= rows < 1, "rows", rows, "0 or more, below 1")
        self.check(0 <= frames < 1, "frames", frames, "0 or more, below 1")
        self.check(masks >= 1, "masks", masks, "1 or more")
        self.rows, self.frames, self.masks = rows, frames, masks

    def augment(self, x: Tensor) -> Tensor:
        kept = torch.ones_like(x[:, :1])  # (B, 1, F, N), one mask for all channels
        for _ in range(self.masks):
            for axis, share in ((2, self.rows), (3, self.frames)):
                width = round(share * x.shape[axis])
                if width:
                    kept = mask_along_axis_iid(kept, width + 1, 0.0, axis)  # draws widths below its parameter
        return torch.where(kept > 0, x, x.mean(dim=3, keepdim=True))  # rows may differ in scale, as of MFCCs


class Mixup(Augmentation):
    """Blends each clip's feature and target with another's of the batch.

    Args:
        alpha: both parameters of the Beta distribution of the share, above 0.
        others: of `Augmentation`.

    Shape: (B, C, F, N), (B, classes) -> the same.

    Raises:
        ConfigError: an argument is out of range.

    Source: Zhang et al., "mixup", 2018. Deviation: the share is drawn for each clip.
    """

    name = "mixup"
    domain = "pair"

    def __init__(self, sample_rate_hz: int, *, alpha: float, **base) -> None:
        super().__init__(sample_rate_hz, **base)
        self.check(alpha > 0, "alpha", alpha, "above 0")
        self.alpha = alpha

    def blend(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Features and targets (B, classes), shares of each class."""
        share = torch.distributions.Beta(self.alpha, self.alpha).sample((len(x),)).to(x)  # (B,)
        share = share.where(torch.rand(len(x), device=x.device) < self.probability, 1.0)
        other = torch.randperm(len(x), device=x.device)
        return _lerp(x[other], x, share), _lerp(targets[other], targets, share)


def _lerp(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(start, end, share.view(-1, *[1] * (start.ndim - 1)))
