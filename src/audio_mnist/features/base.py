"""What all features share: scaling, what the padding around a clip becomes, deltas."""

from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn

from audio_mnist.errors import ConfigError

NORMALIZATIONS = ("none", "minmax", "standard", "band")
LONGEST_MS = 1000.0  # of a window or a hop: a clip is about as long
MOST_ROWS = 1024
PADDINGS = ("silence", "before_scaling", "after_scaling")


class FrontEnd(nn.Module):
    """Base of every feature: a module without state that depends on other clips.

    A subclass has a `name`, and `transform`: (B, 1, T) -> (B, 1, F, N).

    Args:
        sample_rate_hz: of the waveforms.
        hop_ms: between frames.
        normalize: per clip: "none", "minmax" (0 to 1 over the clip), "standard"
            (mean 0, sd 1 over the clip) or "band" (each row to mean 0, sd 1
            over time).
        padding: what the zeros around a clip become. "silence": a sound like
            any other. "after_scaling": the clip's own frames are scaled, the
            others are then 0. "before_scaling": the others are 0, then all
            are scaled. A clip reaches from its first sample that is not zero to
            its last.
        deltas: 1 adds the slope over time as a second channel, 2 also the
            slope's slope as a third.

    Shape: (B, 1, T) -> (B, 1 + deltas, F, N), N = 1 + T // hop. Each clip is
    computed as if it were alone.

    Raises:
        ConfigError: an argument is out of range.

    Source of the deltas: `torchaudio.functional.compute_deltas`, 5 frames.
    """

    name: ClassVar[str]
    row_label: ClassVar[str] = "row"  # what the rows are, on an axis
    unit: ClassVar[str] = ""  # of `transform`
    registry: ClassVar[dict[str, type["FrontEnd"]]] = {}

    def __init_subclass__(cls) -> None:
        if "name" in cls.__dict__:
            FrontEnd.registry[cls.name] = cls

    def __init__(
        self,
        sample_rate_hz: int,
        *,
        hop_ms: float,
        normalize: str = "standard",
        padding: str = "silence",
        deltas: int = 0,
    ) -> None:
        super().__init__()
        self.sample_rate_hz = sample_rate_hz
        least_ms = 1000 / sample_rate_hz
        longest = f"{least_ms:.3g} (one sample) to {LONGEST_MS:g}"
        for fine, key, got, expected in (
            (0.5 * least_ms < hop_ms <= LONGEST_MS, "hop_ms", hop_ms, longest),
            (normalize in NORMALIZATIONS, "normalize", normalize, "one of " + ", ".join(NORMALIZATIONS)),
            (padding in PADDINGS, "padding", padding, "one of " + ", ".join(PADDINGS)),
            (deltas in (0, 1, 2), "deltas", deltas, "0, 1 or 2"),
        ):
            if not fine:
                raise ConfigError(f"feature.{key}={got}: expected {expected}")
        self.hop = round(sample_rate_hz * hop_ms / 1000)  # samples
        self.normalize, self.padding, self.deltas = normalize, padding, deltas

    @property
    def channels(self) -> int:
        """C of the features."""
        return 1 + self.deltas

    @cached_property
    def rows(self) -> int:
        """F of the features; to be asked on the CPU."""
        with torch.no_grad():
            return self(torch.zeros(1, 1, self.hop)).shape[2]

    def row_values(self) -> np.ndarray:
        """(F,) where each row stands on its axis, in the unit of `row_label`."""
        return np.arange(self.rows)

    @property
    def scaled_unit(self) -> str:
        """Of the features."""
        return self.unit if self.normalize == "none" else f"scaled ({self.normalize})"

    def transform(self, waveform: Tensor) -> Tensor:
        """(B, 1, T) -> (B, 1, F, N), not yet scaled."""
        raise NotImplementedError

    def forward(self, waveform: Tensor, sounding: Tensor | None = None) -> Tensor:
        """Features of clips.

        Args:
            waveform: (B, 1, T).
            sounding: (B, 1, T) whose samples that are not zero are the clip's own, where `waveform` has noise around
                the clip; None is `waveform`.
        """
        x = self.transform(waveform)  # (B, 1, F, N)
        if self.padding == "silence":
            x = _normalize(x, self.normalize, torch.ones_like(x[:, :, :1], dtype=torch.bool))
        else:
            inside = self._inside(waveform if sounding is None else sounding, x.shape[-1])  # (B, 1, 1, N)
            if self.padding == "after_scaling":
                x = _normalize(x, self.normalize, inside).where(inside, 0.0)
            else:
                x = _normalize(x.where(inside, 0.0), self.normalize, torch.ones_like(inside))
        parts = [x]
        for _ in range(self.deltas):
            parts.append(torchaudio.functional.compute_deltas(parts[-1]))
        return torch.cat(parts, dim=1) if self.deltas else x

    def _inside(self, waveform: Tensor, frames: int) -> Tensor:
        """(B, 1, 1, N) booleans: frames whose centre lies in the clip."""
        sounding = waveform != 0  # (B, 1, T)
        length = waveform.shape[-1]
        first = sounding.int().argmax(dim=-1, keepdim=True)
        behind = length - sounding.flip(-1).int().argmax(dim=-1, keepdim=True)
        centre = torch.arange(frames, device=waveform.device) * self.hop
        return ((centre >= first) & (centre <= behind)).unsqueeze(2)


def _normalize(x: Tensor, how: str, inside: Tensor) -> Tensor:
    """Scales by the frames that `inside` (B, 1, 1, N) marks."""
    if how == "none":
        return x
    if how == "minmax":
        low = x.where(inside, torch.inf).amin(dim=(-2, -1), keepdim=True)
        high = x.where(inside, -torch.inf).amax(dim=(-2, -1), keepdim=True)
        return (x - low) / (high - low).clamp_min(1e-6)
    dim = (-2, -1) if how == "standard" else (-1,)
    weight = inside.to(x.dtype).expand_as(x)
    count = weight.sum(dim=dim, keepdim=True).clamp_min(1)
    centred = x - (x * weight).sum(dim=dim, keepdim=True) / count
    variance = (centred.square() * weight).sum(dim=dim, keepdim=True) / count
    return centred / variance.sqrt().clamp_min(1e-6)
