"""Log-Mel spectrogram and MFCC, the two features of the original."""

import math
import warnings

import numpy as np
import torch
import torchaudio
from torch import Tensor

from audio_mnist.errors import ConfigError
from audio_mnist.features.base import LONGEST_MS, MOST_ROWS, FrontEnd


class Bands(FrontEnd):
    """Power in frequency bands: base of the features that have a filter bank.

    Args:
        bands: F, set by the subclass.
        window_ms: Hann window; the FFT is the next power of two of samples.
        f_min_hz: lower edge of the lowest band.
        f_max_hz: upper edge of the highest band; None is half the sample rate.
        top_db: `decibel`'s floor, this far below the clip's maximum.
        others: of `FrontEnd`.

    Raises:
        ConfigError: an argument is out of range.
    """

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
        nyquist = sample_rate_hz / 2
        self.f_min_hz, self.f_max_hz = float(f_min_hz), nyquist if f_max_hz is None else float(f_max_hz)
        least_ms = 2000 / sample_rate_hz
        longest = f"{least_ms:.3g} (two samples) to {LONGEST_MS:g}"
        for fine, key, got, expected in (
            (0.75 * least_ms < window_ms <= LONGEST_MS, "window_ms", window_ms, longest),
            (0 <= f_min_hz < self.f_max_hz, "f_min_hz", f_min_hz, f"0 or more, below f_max_hz ({self.f_max_hz:g})"),
            (self.f_max_hz <= nyquist, "f_max_hz", f_max_hz, f"at most half the sample rate ({nyquist:g})"),
            (0 < top_db <= 1000, "top_db", top_db, "above 0, at most 1000"),
        ):
            if not fine:
                raise ConfigError(f"feature.{key}={got}: expected {expected}")
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

    row_label = "frequency (Hz)"
    unit = "dB"

    def row_values(self) -> np.ndarray:
        """(F,) centres of the bands, Hz."""
        bins_hz = torch.linspace(0, self.sample_rate_hz / 2, len(self.filters), device=self.filters.device)
        return (bins_hz @ self.filters / self.filters.sum(dim=0)).cpu().numpy()

    def filter_bank(self, bands: int) -> Tensor:
        """(n_fft / 2 + 1, bands) weights of the power spectrum's bins."""
        raise NotImplementedError

    def power(self, waveform: Tensor) -> Tensor:
        """(B, 1, T) -> (B, 1, bands, N)."""
        spectrum = self.spectrum(waveform)  # (B, 1, n_fft / 2 + 1, N), complex
        power = spectrum.real.square() + spectrum.imag.square()
        return (power.transpose(-1, -2) @ self.filters).transpose(-1, -2)

    def decibel(self, waveform: Tensor) -> Tensor:
        """(B, 1, T) -> (B, 1, bands, N), dB relative to the clip's maximum."""
        power = self.power(waveform)
        peak = power.amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(power.dtype).tiny)
        return 10 * (power / peak).clamp_min(10 ** (-self.top_db / 10)).log10()

    def transform(self, waveform: Tensor) -> Tensor:
        return self.decibel(waveform)


class LogMel(Bands):
    """Mel power spectrogram in dB relative to the clip's own maximum.

    Args:
        n_mels: F, number of Slaney mel bands of unit area.
        others: of `Bands` and `FrontEnd`.

    Shape: (B, 1, T) -> (B, 1 + deltas, n_mels, N), N = 1 + T // hop; any T >= 1.

    Raises:
        ConfigError: an argument is out of range.

    Source: `librosa.power_to_db(librosa.feature.melspectrogram(...), ref=np.max)`,
    from torchaudio's `Spectrogram` and mel filters. Deviations: the ratio to the
    maximum is taken before the logarithm, so a quiet clip has the same features
    as a loud one where librosa's absolute `amin` would cut it; silence is
    -top_db everywhere.
    """

    name = "mel"

    def __init__(self, sample_rate_hz: int, *, n_mels: int, window_ms: float, **others) -> None:
        if not 1 <= n_mels <= MOST_ROWS:
            raise ConfigError(f"feature.n_mels={n_mels}: expected 1 to {MOST_ROWS}")
        super().__init__(sample_rate_hz, n_mels, window_ms=window_ms, **others)
        if (self.filters.amax(dim=0) <= 0).any():
            raise ConfigError(
                f"feature.n_mels={n_mels}: some bands are narrower than a bin of the spectrum and stay empty; "
                f"lower n_mels or raise feature.window_ms ({window_ms:g})"
            )

    def filter_bank(self, bands: int) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="At least one mel filterbank")  # an error above
            return torchaudio.functional.melscale_fbanks(
                self.n_fft // 2 + 1,
                self.f_min_hz,
                self.f_max_hz,
                bands,
                self.sample_rate_hz,
                norm="slaney",
                mel_scale="slaney",
            )


class MFCC(LogMel):
    """Mel-frequency cepstral coefficients: the orthonormal DCT-II of `LogMel`.

    Args:
        n_mfcc: F, coefficients kept from the first (the mean level) on.
        others: of `LogMel`, which is computed first.

    Shape: (B, 1, T) -> (B, 1 + deltas, n_mfcc, N).

    Raises:
        ConfigError: an argument is out of range.

    Source: `librosa.feature.mfcc(S=librosa.power_to_db(..., ref=np.max))`.
    """

    name = "mfcc"
    row_label = "coefficient"
    unit = ""

    def row_values(self) -> np.ndarray:
        """(F,) numbers of the coefficients, from 0."""
        return np.arange(self.rows)

    def __init__(self, sample_rate_hz: int, *, n_mfcc: int, n_mels: int, **others) -> None:
        super().__init__(sample_rate_hz, n_mels=n_mels, **others)
        if not 1 <= n_mfcc <= n_mels:
            raise ConfigError(f"feature.n_mfcc={n_mfcc}: expected 1 to feature.n_mels ({n_mels})")
        self.dct: Tensor  # (n_mels, n_mfcc)
        self.register_buffer("dct", torchaudio.functional.create_dct(n_mfcc, n_mels, "ortho"), persistent=False)

    def transform(self, waveform: Tensor) -> Tensor:
        bands = self.decibel(waveform)  # (B, 1, n_mels, N)
        return (bands.transpose(-1, -2) @ self.dct).transpose(-1, -2)  # (B, 1, n_mfcc, N)
