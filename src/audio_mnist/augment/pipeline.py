"""A config's augmentations in their order, seeded, around a front end; and where clips are placed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from audio_mnist.augment.base import Augmentation, Draws
from audio_mnist.config import construct
from audio_mnist.errors import ConfigError


@dataclass(frozen=True)
class Placement:
    """Placement of training clips in their windows.

    Attributes:
        copies: copies of each clip in an epoch, each at a random place.
        redraw: whether every epoch draws new places.
    """

    copies: int = 1
    redraw: bool = True

    @classmethod
    def of(cls, augment: dict[str, Any]) -> "Placement":
        """Read the key `placement` of the settings of `conf/augment/`.

        >>> Placement.of({"placement": {"copies": 5}})
        Placement(copies=5, redraw=True)

        Raises:
            ConfigError: an unknown key, or a value out of range.
        """
        settings = {"copies": 1, "redraw": True} | (augment.get("placement") or {})
        copies, redraw = settings.pop("copies"), settings.pop("redraw")
        if settings:
            raise ConfigError(f"unknown config key augment.placement.{min(settings)}; it has copies, redraw")
        if not isinstance(copies, int) or isinstance(copies, bool) or copies < 1:
            raise ConfigError(f"augment.placement.copies={copies}: expected 1 or more")
        if not isinstance(redraw, bool):
            raise ConfigError(f"augment.placement.redraw={redraw}: expected true or false")
        return cls(copies, redraw)


class Augmenter(nn.Module):
    """All augmentations of a config, in its order, around a front end.

    Args:
        settings: settings of `conf/augment/`, one key per augmentation; those of probability 0 are left out.
        sample_rate_hz: sample rate of the waveforms.
        waveforms: whether augmentations of waveforms take part; those of features and pairs always do.

    Shape: (B, 1, T) waveforms -> (B, C, F, N) features.

    Raises:
        ConfigError: an unknown key, an unknown argument, or one out of range.
        DataError: recorded noise cannot be read.

    >>> augmenter = Augmenter({"mixup": {"probability": 1.0, "alpha": 0.3}}, 8000)
    >>> clips, targets = torch.randn(2, 1, 40, 40), torch.tensor([0, 2])
    >>> draws = Draws.of(clips)
    >>> x, shares = augmenter.blend(augmenter(clips, nn.Identity(), draws), targets, 3, draws)
    >>> x.shape, shares.shape
    (torch.Size([2, 1, 40, 40]), torch.Size([2, 3]))
    """

    def __init__(self, settings: dict[str, Any], sample_rate_hz: int, *, waveforms: bool = True) -> None:
        super().__init__()
        built = [_stage(key, arguments, sample_rate_hz) for key, arguments in settings.items() if key != "placement"]
        used = (stage for stage in built if stage is not None and (waveforms or stage.domain != "waveform"))
        self.stages = nn.ModuleList(used)

    def forward(self, waveforms: Tensor, front_end: nn.Module, draws: Draws) -> Tensor:
        x, sounding = self.augment_waveforms(waveforms, draws)
        return self.augment_features(x, sounding, front_end, draws)

    def augment_waveforms(self, waveforms: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Augment waveforms; no feature takes part.

        Args:
            waveforms: (B, 1, T).
            draws: the clips' numbers.

        Returns:
            (B, 1, T) waveforms, and the same before filters and noise filled the padding.
        """
        x = sounding = waveforms
        for number, stage in self._of("waveform") if self.training else ():
            x = stage(x, draws.of_stage(number))
            sounding = x if stage.moves else sounding
        return x, sounding

    def augment_features(self, waveforms: Tensor, sounding: Tensor, front_end: nn.Module, draws: Draws) -> Tensor:
        """Compute augmented features.

        Args:
            waveforms: what `augment_waveforms` returned first.
            sounding: what it returned with them; the clips' frames are those of it.
            front_end: the feature.
            draws: the clips' numbers.

        Returns:
            (B, C, F, N) features.
        """
        x = front_end(waveforms) if waveforms is sounding else front_end(waveforms, sounding)
        for number, stage in self._of("feature") if self.training else ():
            x = stage(x, draws.of_stage(number))
        return x

    def blend(self, x: Tensor, targets: Tensor, classes: int, draws: Draws) -> tuple[Tensor, Tensor]:
        """Blend clips with others of their batch.

        Args:
            x: (B, C, F, N) features of one or more batches.
            targets: (B,) class numbers.
            classes: number of classes.
            draws: the clips' numbers; they know each batch.

        Returns:
            Features; and, with mixup in training mode, (B, classes) shares, else the class numbers.
        """
        for number, stage in self._of("pair") if self.training else ():
            if targets.ndim == 1:
                targets = (targets.unsqueeze(1) == torch.arange(classes, device=x.device)).to(x)
            x, targets = stage.blend(x, targets, draws.of_stage(number))
        return x, targets

    @property
    def changes_waveforms(self) -> bool:
        """Whether every batch needs new features."""
        return any(True for _ in self._of("waveform"))

    def _of(self, domain: str) -> Iterator[tuple[int, Any]]:
        return ((number, stage) for number, stage in enumerate(self.stages) if stage.domain == domain)


def _stage(key: str, settings: Any, sample_rate_hz: int) -> Augmentation | None:
    """Build the augmentation of one config key, None where its probability is 0."""
    if not isinstance(settings, dict):
        raise ConfigError(f"augment.{key}={settings}: expected settings, augment.{key}.probability=...")
    if settings.get("probability") == 0 and key in Augmentation.registry:
        return None
    stage: Augmentation = construct(Augmentation.registry, f"augment.{key}", settings | {"name": key}, sample_rate_hz)
    return stage
