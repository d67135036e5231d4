"""What all features share: scaling, the padding around a clip, deltas, filter banks."""

import math
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn

from audio_mnist.config import Registered, require

NORMALIZATIONS = ("none", "minmax", "standard", "band")
PADDINGS = ("silence", "before_scaling", "after_scaling")
LONGEST_MS = 1000.0  # of a window or a hop; a clip is about as long
MOST_ROWS = 1024


class FrontEnd(Registered, nn.Module):
    """Base of every feature. No state depends on other clips.

    A subclass has a `name`, and `transform`: (B, 1, T) -> (B, 1, F, N).

    Args:
        sample_rate_hz: sample rate of the waveforms.
        hop_ms: distance between frames.
        normalize: scaling per clip: "none", "minmax" (0 to 1 over the clip), "standard" (mean 0, sd 1 over the clip) or
            "band" (each row to mean 0, sd 1 over time).
        padding: what the zeros around a clip become. "silence": a sound like any other. "after_scaling": the clip's
            own frames are scaled, the others are then 0. "before_scaling": the others are 0, then all are scaled. A
            clip reaches from its first sample that is not zero to its last.
        deltas: 1 adds the slope over time as a second channel, 2 also the slope's slope as a third.

    Attributes:
        title: the name in tables; `name` where a subclass has none.
        row_label: what the rows are, on an axis.
        unit: unit of `transform`.
        frozen: whether it is a pretrained encoder; its embeddings are computed once and kept.

    Shape: (B, 1, T) -> (B, 1 + deltas, F, N), N = 1 + T // hop. Each clip is
    computed as if it were alone.

    Raises:
        ConfigError: an argument is out of range.

    Source of the deltas: `torchaudio.functional.compute_deltas`, 5 frames.
    """

    registry: ClassVar[dict[str, Any]] = {}
    title: ClassVar[str] = ""
    row_label: ClassVar[str] = "row"
    unit: ClassVar[str] = ""
    frozen: ClassVar[bool] = False

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
        in_range = 0.5 * least_ms < hop_ms <= LONGEST_MS
        require(in_range, "feature.hop_ms", hop_ms, f"{least_ms:.3g} (one sample) to {LONGEST_MS:g}")
        require(normalize in NORMALIZATIONS, "feature.normalize", normalize, "one of " + ", ".join(NORMALIZATIONS))
        require(padding in PADDINGS, "feature.padding", padding, "one of " + ", ".join(PADDINGS))
        require(deltas in (0, 1, 2), "feature.deltas", deltas, "0, 1 or 2")
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
        """Return the (F,) positions of the rows on their axis, in the unit of `row_label`."""
        return np.arange(self.rows)

    @property
    def scaled_unit(self) -> str:
        """Unit of the features after scaling."""
        return self.unit if self.normalize == "none" else f"scaled ({self.normalize})"

    def transform(self, waveform: Tensor) -> Tensor:
        """Compute (B, 1, F, N) features of (B, 1, T) waveforms, not yet scaled."""
        raise NotImplementedError

    def forward(self, waveform: Tensor, sounding: Tensor | None = None) -> Tensor:
        """Compute the features of clips.

        Args:
            waveform: (B, 1, T).
            sounding: (B, 1, T); its samples that are not zero are the clip's own, where `waveform` has noise around
                the clip. None takes `waveform`.
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
        """Mark (B, 1, 1, N) frames with their centre in the clip."""
        sounding = waveform != 0  # (B, 1, T)
        length = waveform.shape[-1]
        first = sounding.int().argmax(dim=-1, keepdim=True)
        behind = length - sounding.flip(-1).int().argmax(dim=-1, keepdim=True)
        centre = torch.arange(frames, device=waveform.device) * self.hop
        return ((centre >= first) & (centre <= behind)).unsqueeze(2)


class Bands(FrontEnd):
    """Power in frequency bands: base of the features that have a filter bank.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        bands: F, set by the subclass.
        hop_ms: distance between frames.
        window_ms: Hann window; the FFT has the next power of two of its samples.
        f_min_hz: lower edge of the lowest band.
        f_max_hz: upper edge of the highest band; None is half the sample rate.
        top_db: distance of `decibel`'s floor from the clip's maximum.
        others: arguments of `FrontEnd`.

    Raises:
        ConfigError: an argument is out of range.
    """

    row_label = "frequency (Hz)"
    unit = "dB"

    def __init__(
        self,
        sample_rate_hz: int,
        bands: int,
        *,
        hop_ms: float,
        window_ms: float,
        f_min_hz: float = 0.0,
        f_max_hz: float | None = None,
        top_db: float = 80.0,
        **others,
    ) -> None:
        super().__init__(sample_rate_hz, hop_ms=hop_ms, **others)
        nyquist, least_ms = sample_rate_hz / 2, 2000 / sample_rate_hz
        self.f_min_hz, self.f_max_hz = float(f_min_hz), nyquist if f_max_hz is None else float(f_max_hz)
        in_range = 0.75 * least_ms < window_ms <= LONGEST_MS
        require(in_range, "feature.window_ms", window_ms, f"{least_ms:.3g} (two samples) to {LONGEST_MS:g}")
        below = f"0 or more, below f_max_hz ({self.f_max_hz:g})"
        require(0 <= f_min_hz < self.f_max_hz, "feature.f_min_hz", f_min_hz, below)
        require(self.f_max_hz <= nyquist, "feature.f_max_hz", f_max_hz, f"at most half the sample rate ({nyquist:g})")
        require(0 < top_db <= 1000, "feature.top_db", top_db, "above 0, at most 1000")
        self.window = round(sample_rate_hz * window_ms / 1000)  # samples
        self.top_db = float(top_db)
        self.n_fft = 2 ** math.ceil(math.log2(self.window))
        self.spectrum = torchaudio.transforms.Spectrogram(
            self.n_fft,
            self.window,
            self.hop,
            power=None,  # squared below: twice as fast as the magnitude's square
            pad_mode="constant",  # zeros, as librosa; reflection raises on clips shorter than half a window
        )
        self.filters: Tensor  # (n_fft / 2 + 1, bands)
        self.register_buffer("filters", self.filter_bank(bands), persistent=False)

    def row_values(self) -> np.ndarray:
        """Return the (F,) centres of the bands, Hz."""
        bins_hz = torch.linspace(0, self.sample_rate_hz / 2, len(self.filters), device=self.filters.device)
        return (bins_hz @ self.filters / self.filters.sum(dim=0)).cpu().numpy()

    def filter_bank(self, bands: int) -> Tensor:
        """Return (n_fft / 2 + 1, bands) weights of the power spectrum's bins."""
        raise NotImplementedError

    def power(self, waveform: Tensor) -> Tensor:
        """Compute (B, 1, bands, N) power of (B, 1, T) waveforms."""
        spectrum = self.spectrum(waveform)  # (B, 1, n_fft / 2 + 1, N), complex
        power = spectrum.real.square() + spectrum.imag.square()
        return (power.transpose(-1, -2) @ self.filters).transpose(-1, -2)

    def decibel(self, waveform: Tensor) -> Tensor:
        """Compute (B, 1, bands, N) dB relative to each clip's maximum."""
        power = self.power(waveform)
        peak = power.amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(power.dtype).tiny)
        return 10 * (power / peak).clamp_min(10 ** (-self.top_db / 10)).log10()

    def transform(self, waveform: Tensor) -> Tensor:
        return self.decibel(waveform)


def _normalize(x: Tensor, how: str, inside: Tensor) -> Tensor:
    """Scale by the frames that `inside` (B, 1, 1, N) marks."""
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
