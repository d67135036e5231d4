"""A config's augmentations in their order, seeded, around a front end; and where clips are placed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audio_mnist.augment.base import Augmentation
from audio_mnist.config import construct
from audio_mnist.errors import ConfigError


@dataclass(frozen=True)
class Placement:
    """Where the loader places a training clip in its window.

    Attributes:
        copies: times that an epoch takes each clip, each at a place of its own.
        redraw: new places every epoch; else they are drawn once.
    """

    copies: int = 1
    redraw: bool = True

    @classmethod
    def of(cls, augment: dict[str, Any]) -> "Placement":
        """From the settings of `conf/augment/`, key `placement`.

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
        settings: of `conf/augment/`: a key an augmentation. One of probability 0 is left out.
        sample_rate_hz: of the waveforms.

    Shape: (B, 1, T) waveforms and (B,) class numbers -> (B, C, F, N) features
    and, with mixup in training mode, (B, classes) shares, else the class numbers.

    Raises:
        ConfigError: an unknown key, an unknown argument, or one out of range.
        DataError: recorded noise cannot be read.
    """

    def __init__(self, settings: dict[str, Any], sample_rate_hz: int) -> None:
        super().__init__()
        built = [_stage(key, own, sample_rate_hz) for key, own in settings.items() if key != "placement"]
        self.stages = nn.ModuleList(stage for stage in built if stage is not None)

    def forward(
        self, waveforms: Tensor, targets: Tensor, front_end: nn.Module, classes: int, seed: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        if not self.training or not len(self.stages):
            return front_end(waveforms), targets
        devices = [waveforms.device] if waveforms.is_cuda else []
        # draws of their own: dropout and the order of clips stay what they are without augmentation
        with torch.random.fork_rng(devices=devices):
            _seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1), waveforms.device)
            x = sounding = waveforms
            for stage in self._of("waveform"):
                x = stage(x)
                sounding = x if stage.moves else sounding
            # filters and noise sound around the clip too, whose own frames stay what they are
            x = front_end(x) if x is waveforms else front_end(x, sounding)  # (B, C, F, N)
            for stage in self._of("feature"):
                x = stage(x)
            for stage in self._of("pair"):
                if targets.ndim == 1:
                    targets = nn.functional.one_hot(targets, classes).to(x)
                x, targets = stage.blend(x, targets)
        return x, targets

    @property
    def changes_waveforms(self) -> bool:
        """Whether features must be computed anew for every batch."""
        return any(True for _ in self._of("waveform"))

    def _of(self, domain: str) -> Iterator[Any]:
        return (stage for stage in self.stages if stage.domain == domain)


def _seed(seed: int, device: torch.device) -> None:
    """As `torch.manual_seed`, which takes half a millisecond to note the stack for each kind of GPU never used."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def _stage(key: str, settings: Any, sample_rate_hz: int) -> Augmentation | None:
    """The augmentation of one key of the config, None where its probability is 0."""
    if not isinstance(settings, dict):
        raise ConfigError(f"augment.{key}={settings}: expected settings, augment.{key}.probability=...")
    if settings.get("probability") == 0 and key in Augmentation.registry:
        return None
    return construct(Augmentation.registry, f"augment.{key}", settings | {"name": key}, sample_rate_hz)
