"""Log-Mel spectrogram and MFCC, the two features of the original."""

import warnings

import numpy as np
import torchaudio
from torch import Tensor

from audio_mnist.config import require
from audio_mnist.errors import ConfigError
from audio_mnist.features.base import MOST_ROWS, Bands


class LogMel(Bands):
    """Mel power spectrogram in dB relative to the clip's maximum.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        n_mels: F, number of Slaney mel bands of unit area.
        window_ms: Hann window.
        others: arguments of `Bands` and `FrontEnd`.

    Shape: (B, 1, T) -> (B, 1 + deltas, n_mels, N), N = 1 + T // hop; any T >= 1.

    Raises:
        ConfigError: an argument is out of range.

    Source: `librosa.power_to_db(librosa.feature.melspectrogram(...), ref=np.max)`,
    from torchaudio's `Spectrogram` and mel filters. Deviations: the ratio to the
    maximum is taken before the logarithm, so a quiet clip has the same features
    as a loud one; librosa's absolute `amin` would cut it. Silence is -top_db
    everywhere.

    >>> import torch
    >>> LogMel(8000, n_mels=40, window_ms=32.0, hop_ms=25.6)(torch.randn(2, 1, 8000)).shape
    torch.Size([2, 1, 40, 40])
    """

    name = "mel"
    title = "Mel"

    def __init__(self, sample_rate_hz: int, *, n_mels: int, window_ms: float, **others) -> None:
        require(1 <= n_mels <= MOST_ROWS, "feature.n_mels", n_mels, f"1 to {MOST_ROWS}")
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
        sample_rate_hz: sample rate of the waveforms.
        n_mfcc: F, number of coefficients, from the first (the mean level) on.
        n_mels: bands of the `LogMel` that is computed first.
        others: arguments of `LogMel`, `Bands` and `FrontEnd`.

    Shape: (B, 1, T) -> (B, 1 + deltas, n_mfcc, N).

    Raises:
        ConfigError: an argument is out of range.

    Source: `librosa.feature.mfcc(S=librosa.power_to_db(..., ref=np.max))`.

    >>> import torch
    >>> MFCC(8000, n_mfcc=20, n_mels=40, window_ms=32.0, hop_ms=25.6, deltas=1)(torch.randn(2, 1, 8000)).shape
    torch.Size([2, 2, 20, 40])
    """

    name = "mfcc"
    title = "MFCC"
    row_label = "coefficient"
    unit = ""

    def __init__(self, sample_rate_hz: int, *, n_mfcc: int, n_mels: int, **others) -> None:
        super().__init__(sample_rate_hz, n_mels=n_mels, **others)
        require(1 <= n_mfcc <= n_mels, "feature.n_mfcc", n_mfcc, f"1 to feature.n_mels ({n_mels})")
        self.dct: Tensor  # (n_mels, n_mfcc)
        self.register_buffer("dct", torchaudio.functional.create_dct(n_mfcc, n_mels, "ortho"), persistent=False)

    def row_values(self) -> np.ndarray:
        """Return the (F,) numbers of the coefficients, from 0."""
        return np.arange(self.rows)

    def transform(self, waveform: Tensor) -> Tensor:
        bands = self.decibel(waveform)  # (B, 1, n_mels, N)
        return (bands.transpose(-1, -2) @ self.dct).transpose(-1, -2)  # (B, 1, n_mfcc, N)
