"""Front ends: waveforms (B, 1, T) -> features (B, 1, F, N), on the input's device.

A new feature is one subclass of `FrontEnd` with a `name`, and one file in
`conf/feature/` that sets its arguments.
"""

import math
import warnings
from typing import ClassVar

import torch
import torchaudio
from torch import Tensor, nn

from audio_mnist.config import construct
from audio_mnist.errors import ConfigError

NORMALIZATIONS = ("none", "minmax", "standard", "band")


class FrontEnd(nn.Module):
    """Base of every feature: a module without state that depends on other clips.

    Shape: (B, 1, T) -> (B, 1, F, N). Each clip is computed as if it were alone.
    """

    name: ClassVar[str]
    registry: ClassVar[dict[str, type["FrontEnd"]]] = {}

    def __init_subclass__(cls) -> None:
        FrontEnd.registry[cls.name] = cls


class LogMel(FrontEnd):
    """Mel power spectrogram in dB relative to the clip's own maximum.

    Args:
        sample_rate_hz: of the waveforms.
        window_ms: Hann window; the FFT is the next power of two of samples.
        hop_ms: between frames.
        n_mels: F, number of Slaney mel bands of unit area.
        f_min_hz: lower edge of the lowest band.
        f_max_hz: upper edge of the highest band; None is half the sample rate.
        top_db: the floor, this far below the clip's maximum.
        normalize: per clip: "none" (dB), "minmax" (0 to 1 over the clip),
            "standard" (mean 0, sd 1 over the clip) or "band" (each band to
            mean 0, sd 1 over time).

    Shape: (B, 1, T) -> (B, 1, n_mels, N), N = 1 + T // hop; any T >= 1.

    Raises:
        ConfigError: an argument is out of range.

    Source: `librosa.power_to_db(librosa.feature.melspectrogram(...), ref=np.max)`,
    from torchaudio's `Spectrogram` and `MelScale`. Deviations: the ratio to the
    maximum is taken before the logarithm, so a quiet clip has the same features
    as a loud one where librosa's absolute `amin` would cut it; silence is
    -top_db everywhere.
    """

    name = "mel"

    def __init__(
        self,
        sample_rate_hz: int,
        *,
        window_ms: float,
        hop_ms: float,
        n_mels: int,
        f_min_hz: float = 0.0,
        f_max_hz: float | None = None,
        top_db: float = 80.0,
        normalize: str = "standard",
    ) -> None:
        super().__init__()
        nyquist = sample_rate_hz / 2
        f_max = nyquist if f_max_hz is None else float(f_max_hz)
        window, hop = round(sample_rate_hz * window_ms / 1000), round(sample_rate_hz * hop_ms / 1000)
        for fine, key, got, expected in (
            (window >= 2, "window_ms", window_ms, f"at least {2000 / sample_rate_hz:.3g} (two samples)"),
            (hop >= 1, "hop_ms", hop_ms, f"at least {1000 / sample_rate_hz:.3g} (one sample)"),
            (n_mels >= 1, "n_mels", n_mels, "1 or more"),
            (0 <= f_min_hz < f_max, "f_min_hz", f_min_hz, f"0 or more, below f_max_hz ({f_max:g})"),
            (f_max <= nyquist, "f_max_hz", f_max_hz, f"at most half the sample rate ({nyquist:g})"),
            (top_db > 0, "top_db", top_db, "above 0"),
            (normalize in NORMALIZATIONS, "normalize", normalize, "one of " + ", ".join(NORMALIZATIONS)),
        ):
            if not fine:
                raise ConfigError(f"feature.{key}={got}: expected {expected}")
        self.top_db = float(top_db)
        self.normalize = normalize
        n_fft = 2 ** math.ceil(math.log2(window))
        self.spectrum = torchaudio.transforms.Spectrogram(
            n_fft,
            window,
            hop,
            power=None,  # squared below: twice as fast as the magnitude's square
            pad_mode="constant",  # zeros, as librosa; reflection raises on clips shorter than half a window
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="At least one mel filterbank")  # an error here
            self.bands = torchaudio.transforms.MelScale(
                n_mels, sample_rate_hz, float(f_min_hz), f_max, n_fft // 2 + 1, norm="slaney", mel_scale="slaney"
            )
        if (self.bands.fb.amax(dim=0) <= 0).any():
            raise ConfigError(
                f"feature.n_mels={n_mels}: some bands are narrower than a bin of the spectrum and stay empty; "
                f"lower n_mels or raise feature.window_ms ({window_ms:g})"
            )

    def forward(self, waveform: Tensor) -> Tensor:
        return _normalize(self.decibel(waveform), self.normalize)

    def decibel(self, waveform: Tensor) -> Tensor:
        spectrum = self.spectrum(waveform)  # (B, 1, n_fft / 2 + 1, N), complex
        power = self.bands(spectrum.real.square() + spectrum.imag.square())  # (B, 1, n_mels, N)
        peak = power.amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(power.dtype).tiny)
        return 10 * (power / peak).clamp_min(10 ** (-self.top_db / 10)).log10()


class MFCC(LogMel):
    """Mel-frequency cepstral coefficients: the orthonormal DCT-II of `LogMel`.

    Args:
        n_mfcc: F, coefficients kept from the first (the mean level) on.
        others: as `LogMel`, which is computed first.

    Shape: (B, 1, T) -> (B, 1, n_mfcc, N).

    Raises:
        ConfigError: an argument is out of range.

    Source: `librosa.feature.mfcc(S=librosa.power_to_db(..., ref=np.max))`.
    """

    name = "mfcc"

    def __init__(
        self,
        sample_rate_hz: int,
        *,
        n_mfcc: int,
        window_ms: float,
        hop_ms: float,
        n_mels: int,
        f_min_hz: float = 0.0,
        f_max_hz: float | None = None,
        top_db: float = 80.0,
        normalize: str = "standard",
    ) -> None:
        super().__init__(
            sample_rate_hz,
            window_ms=window_ms,
            hop_ms=hop_ms,
            n_mels=n_mels,
            f_min_hz=f_min_hz,
            f_max_hz=f_max_hz,
            top_db=top_db,
            normalize=normalize,
        )
        if not 1 <= n_mfcc <= n_mels:
            raise ConfigError(f"feature.n_mfcc={n_mfcc}: expected 1 to feature.n_mels ({n_mels})")
        self.dct: Tensor  # (n_mels, n_mfcc)
        self.register_buffer("dct", torchaudio.functional.create_dct(n_mfcc, n_mels, "ortho"), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        bands = self.decibel(waveform)  # (B, 1, n_mels, N)
        cepstrum = (bands.transpose(-1, -2) @ self.dct).transpose(-1, -2)  # (B, 1, n_mfcc, N)
        return _normalize(cepstrum, self.normalize)


def build(settings: dict, sample_rate_hz: int) -> FrontEnd:
    """The front end that a feature's settings describe.

    Args:
        settings: `name` and the arguments of that class, plain values.
        sample_rate_hz: of the waveforms.

    Raises:
        ConfigError: an unknown name, an unknown argument, or one out of range.
    """
    return construct(FrontEnd.registry, "feature", settings, sample_rate_hz=sample_rate_hz)


def _normalize(x: Tensor, how: str) -> Tensor:
    if how == "minmax":
        low, high = x.amin(dim=(-2, -1), keepdim=True), x.amax(dim=(-2, -1), keepdim=True)
        return (x - low) / (high - low).clamp_min(1e-6)
    if how in ("standard", "band"):
        dim = (-2, -1) if how == "standard" else (-1,)
        return (x - x.mean(dim=dim, keepdim=True)) / x.std(dim=dim, keepdim=True, correction=0).clamp_min(1e-6)
    return x
