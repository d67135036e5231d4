"""Per-channel energy normalisation."""

import torch
from torch import Tensor

from audio_mnist.config import require
from audio_mnist.features.mel import LogMel


class PCEN(LogMel):
    """Mel power divided by its recent mean in each band, then compressed.

    This divides steady noise and the recording's level away. Onsets stay.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        smoothing_ms: time constant of the recent mean.
        gain: exponent of the division, 0 (none) to 1.
        bias: value added before the root and subtracted after it, above 0.
        power: exponent of the compression, 0 to 1.
        others: arguments of `LogMel`. `top_db` sets the floor of the recent mean, relative to the clip's loudest band.

    Shape: (B, 1, T) -> (B, 1 + deltas, n_mels, N).

    Raises:
        ConfigError: an argument is out of range.

    Source: Wang et al., "Trainable frontend for robust and far-field keyword
    spotting", 2017; `librosa.pcen` with the recent mean started at the first
    frame. Deviation: the clip is first divided by its peak, so that `bias` means
    the same for a quiet clip and a loud one.

    >>> settings = {"smoothing_ms": 400.0, "gain": 0.98, "bias": 2.0, "power": 0.5}
    >>> PCEN(8000, n_mels=40, window_ms=32.0, hop_ms=25.6, **settings)(torch.randn(2, 1, 8000)).shape
    torch.Size([2, 1, 40, 40])
    """

    name = "pcen"
    title = "PCEN"

    def __init__(
        self, sample_rate_hz: int, *, smoothing_ms: float, gain: float, bias: float, power: float, **others
    ) -> None:
        super().__init__(sample_rate_hz, **others)
        require(smoothing_ms > 0, "feature.smoothing_ms", smoothing_ms, "above 0")
        require(0 <= gain <= 1, "feature.gain", gain, "0 to 1")
        require(bias > 0, "feature.bias", bias, "above 0")
        require(0 < power <= 1, "feature.power", power, "above 0, at most 1")
        frames = smoothing_ms / 1000 * sample_rate_hz / self.hop
        # the coefficient with the time constant in its step response, as in librosa
        self.smoothing = ((1 + 4 * frames**2) ** 0.5 - 1) / (2 * frames**2)
        self.gain, self.bias, self.exponent = gain, bias, power

    def transform(self, waveform: Tensor) -> Tensor:
        energy = self.power(waveform)  # (B, 1, n_mels, N)
        energy = energy / energy.amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(energy.dtype).tiny)
        device = energy.device if energy.is_cuda else None  # others may lack float64
        recent = energy @ _decay(energy.shape[-1], self.smoothing, device).to(energy)  # (B, 1, n_mels, N)
        recent = recent.clamp_min(10 ** (-self.top_db / 10))
        return (energy / recent**self.gain + self.bias) ** self.exponent - self.bias**self.exponent


def _decay(frames: int, smoothing: float, device: torch.device | None) -> Tensor:
    """Return (N, N) float64 weights of the recent mean; column t weighs the frames up to t.

    The mean is m[t] = (1 - s) m[t-1] + s x[t], with m[0] = x[0].
    """
    step = torch.arange(frames, dtype=torch.float64, device=device)
    age = step[None, :] - step[:, None]  # of frame k at time t
    weight = torch.where(age >= 0, smoothing * (1 - smoothing) ** age.clamp_min(0), 0.0)
    weight[0] = (1 - smoothing) ** step
    return weight
