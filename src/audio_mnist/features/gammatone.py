"""Log-gammatone spectrogram."""

import torch
from torch import Tensor

from audio_mnist.errors import ConfigError
from audio_mnist.features.base import MOST_ROWS
from audio_mnist.features.mel import Bands


class Gammatone(Bands):
    """Power after fourth-order gammatone filters, in dB relative to the clip's own maximum.

    Args:
        n_filters: F, centres evenly spaced on the ERB-rate scale.
        others: of `Bands` and `FrontEnd`.

    Shape: (B, 1, T) -> (B, 1 + deltas, n_filters, N).

    Raises:
        ConfigError: an argument is out of range.

    Source: Slaney, "An efficient implementation of the Patterson-Holdsworth
    auditory filter bank", 1993; bandwidths of Glasberg and Moore, 1990.
    Deviation: the filters' power response weighs the bins of a short-time
    spectrum, as a mel filter bank does, and no sample is filtered; each filter has unit area.
    """

    name = "gammatone"

    def __init__(self, sample_rate_hz: int, *, n_filters: int, **others) -> None:
        if not 2 <= n_filters <= MOST_ROWS:
            raise ConfigError(f"feature.n_filters={n_filters}: expected 2 to {MOST_ROWS}")
        super().__init__(sample_rate_hz, n_filters, **others)

    def filter_bank(self, bands: int) -> Tensor:
        low, high = (21.4 * torch.tensor(1 + 0.00437 * f).log10() for f in (self.f_min_hz, self.f_max_hz))
        rate = torch.linspace(float(low), float(high), bands + 2, dtype=torch.float64)[1:-1]  # the edges left out
        centre_hz = (10 ** (rate / 21.4) - 1) / 0.00437
        width_hz = 1.019 * 24.7 * (0.00437 * centre_hz + 1)  # of the equivalent rectangle
        bin_hz = torch.linspace(0, self.sample_rate_hz / 2, self.n_fft // 2 + 1, dtype=torch.float64)
        response = (1 + ((bin_hz[:, None] - centre_hz) / width_hz) ** 2) ** -4  # |order 4|^2
        return (response / response.sum(dim=0)).float()
