"""Plain log-power spectrogram."""

import torch
from torch import Tensor

from audio_mnist.config import require
from audio_mnist.errors import ConfigError
from audio_mnist.features.base import MOST_ROWS, Bands


class LogSpectrogram(Bands):
    """Power in bands of equal width in Hz, in dB relative to the clip's maximum.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        n_bins: F, bands between f_min_hz and f_max_hz; each is the mean of the spectrum's bins that fall in it.
        window_ms: Hann window.
        others: arguments of `Bands` and `FrontEnd`.

    Shape: (B, 1, T) -> (B, 1 + deltas, n_bins, N).

    Raises:
        ConfigError: an argument is out of range.

    >>> LogSpectrogram(8000, n_bins=4, window_ms=32.0, hop_ms=25.6).row_values().round().tolist()
    [484.0, 1484.0, 2484.0, 3500.0]
    """

    name = "spectrogram"
    title = "Spectrogram"

    def __init__(self, sample_rate_hz: int, *, n_bins: int, window_ms: float, **others) -> None:
        require(1 <= n_bins <= MOST_ROWS, "feature.n_bins", n_bins, f"1 to {MOST_ROWS}")
        super().__init__(sample_rate_hz, n_bins, window_ms=window_ms, **others)
        if self.filters.isnan().any():
            raise ConfigError(
                f"feature.n_bins={n_bins}: more bands than the spectrum has bins; lower n_bins or raise "
                f"feature.window_ms ({window_ms:g})"
            )

    def filter_bank(self, bands: int) -> Tensor:
        bin_hz = torch.linspace(0, self.sample_rate_hz / 2, self.n_fft // 2 + 1, dtype=torch.float64)
        band = (bin_hz - self.f_min_hz) / (self.f_max_hz - self.f_min_hz) * bands
        band = torch.where(bin_hz == self.f_max_hz, bands - 1, band.floor())
        member = (band[:, None] == torch.arange(bands)).double()
        return (member / member.sum(dim=0)).float()
