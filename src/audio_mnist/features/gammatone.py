"""Log-gammatone spectrogram."""

import torch
from torch import Tensor

from audio_mnist.config import require
from audio_mnist.features.base import MOST_ROWS, Bands


class Gammatone(Bands):
    """Power after fourth-order gammatone filters, in dB relative to the clip's maximum.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        n_filters: F, centres evenly spaced on the ERB-rate scale.
        others: arguments of `Bands` and `FrontEnd`.

    Shape: (B, 1, T) -> (B, 1 + deltas, n_filters, N).

    Raises:
        ConfigError: an argument is out of range.

    Source: Slaney, "An efficient implementation of the Patterson-Holdsworth
    auditory filter bank", 1993; bandwidths of Glasberg and Moore, 1990.
    Deviation: no sample is filtered. The filters' power response, each of unit
    area, weighs the bins of a short-time spectrum, as a mel filter bank does.

    >>> Gammatone(8000, n_filters=4, window_ms=32.0, hop_ms=25.6).row_values().round().tolist()
    [182.0, 506.0, 1088.0, 2131.0]
    """

    name = "gammatone"
    title = "Gammatone"

    def __init__(self, sample_rate_hz: int, *, n_filters: int, **others) -> None:
        require(2 <= n_filters <= MOST_ROWS, "feature.n_filters", n_filters, f"2 to {MOST_ROWS}")
        super().__init__(sample_rate_hz, n_filters, **others)

    def filter_bank(self, bands: int) -> Tensor:
        low, high = (21.4 * torch.tensor(1 + 0.00437 * f).log10() for f in (self.f_min_hz, self.f_max_hz))
        rate = torch.linspace(float(low), float(high), bands + 2, dtype=torch.float64)[1:-1]  # without the edges
        centre_hz = (10 ** (rate / 21.4) - 1) / 0.00437
        width_hz = 1.019 * 24.7 * (0.00437 * centre_hz + 1)  # equivalent rectangular bandwidth
        bin_hz = torch.linspace(0, self.sample_rate_hz / 2, self.n_fft // 2 + 1, dtype=torch.float64)
        response = (1 + ((bin_hz[:, None] - centre_hz) / width_hz) ** 2) ** -4  # |order 4|^2
        return (response / response.sum(dim=0)).float()
