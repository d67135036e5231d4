"""Per-channel energy normalisation."""

import torch
from torch import Tensor

from audio_mnist.errors import ConfigError
from audio_mnist.features.mel import LogMel


class PCEN(LogMel):
    """Mel power divided by its own recent mean in each band, then compressed.

    Steady noise and the recording's level are divided away, onsets stay.

    Args:
        smoothing_ms: time constant of the recent mean.
        gain: exponent of the division, 0 (none) to 1.
        bias: added before the root, and subtracted after, above 0.
        power: of the compression, 0 to 1.
        others: of `LogMel`; `top_db` sets the floor of the recent mean, this
            far below the clip's loudest band.

    Shape: (B, 1, T) -> (B, 1 + deltas, n_mels, N).

    Raises:
        ConfigError: an argument is out of range.

    Source: Wang et al., "Trainable frontend for robust and far-field keyword
    spotting", 2017; `librosa.pcen` with the recent mean started at the first
    frame. Deviation: the clip is first divided by its peak, so that `bias` means
    the same for a quiet clip and a loud one.
    """

    name = "pcen"

    def __init__(
        self,
        sample_rate_hz: int,
        *,
        smoothing_ms: float,
        gain: float,
        bias: float,
        power: float,
        **others,
    ) -> None:
        super().__init__(sample_rate_hz, **others)
        for fine, key, got, expected in (
            (smoothing_ms > 0, "smoothing_ms", smoothing_ms, "above 0"),
            (0 <= gain <= 1, "gain", gain, "0 to 1"),
            (bias > 0, "bias", bias, "above 0"),
            (0 < power <= 1, "power", power, "above 0, at most 1"),
        ):
            if not fine:
                raise ConfigError(f"feature.{key}={got}: expected {expected}")
        frames = smoothing_ms / 1000 * sample_rate_hz / self.hop
        # the coefficient whose step response is that of the time constant, as in librosa
        self.smoothing = ((1 + 4 * frames**2) ** 0.5 - 1) / (2 * frames**2)
        self.gain, self.bias, self.exponent = gain, bias, power

    def transform(self, waveform: Tensor) -> Tensor:
        energy = self.power(waveform)  # (B, 1, n_mels, N)
        energy = energy / energy.amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(energy.dtype).tiny)
        recent = energy @ _decay(energy.shape[-1], self.smoothing).to(energy)  # (B, 1, n_mels, N)
        recent = recent.clamp_min(10 ** (-self.top_db / 10))
        return (energy / recent**self.gain + self.bias) ** self.exponent - self.bias**self.exponent


def _decay(frames: int, smoothing: float) -> Tensor:
    """(N, N) float64: column t weighs the frames of the recent mean m[t] = (1 - s) m[t-1] + s x[t], m[0] = x[0]."""
    step = torch.arange(frames, dtype=torch.float64)
    age = step[None, :] - step[:, None]  # of frame k at time t
    weight = torch.where(age >= 0, smoothing * (1 - smoothing) ** age.clamp_min(0), 0.0)
    weight[0] = (1 - smoothing) ** step
    return weight
