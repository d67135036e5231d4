"""What all pretrained encoders share: their sample rate, the clip's level and place, copies for training."""

from typing import ClassVar

import torchaudio
from torch import Tensor, nn

from audio_mnist.config import require
from audio_mnist.data.windows import middle
from audio_mnist.features.base import FrontEnd

LEVEL = 0.03  # root mean square of every window, about that of speech; encoders expect a level, features do not


class Encoder(FrontEnd):
    """Base of every pretrained encoder. Its weights are frozen: a training neither changes nor stores them.

    A subclass has a `name`, and `encode`: (B, T) at the encoder's rate -> (B, N, F). The net's input is (B, 1, F, N).

    The embeddings of a corpus are computed once and kept on disk, one copy of each training clip per speed
    (`training.embeddings`). Augmentations of waveforms have no part in them.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        encoder_rate_hz: sample rate that the encoder expects, set by the subclass; waveforms are resampled to it.
        hop_ms: distance between the encoder's frames, set by the subclass.
        speeds: speeds of the copies of each training clip; a training draws one per clip and epoch.
        least_s: shortest window that the encoder gets, s. Silence surrounds a shorter one.
        normalize: scaling of the embeddings, as in `FrontEnd`.

    Shape: (B, 1, T) -> (B, 1, F, N). Each clip is computed as if it were alone.

    Raises:
        ConfigError: an argument is out of range.
    """

    row_label = "number"
    frozen: ClassVar[bool] = True

    def __init__(
        self,
        sample_rate_hz: int,
        encoder_rate_hz: int,
        hop_ms: float,
        *,
        speeds: list[float],
        least_s: float,
        normalize: str = "none",
    ) -> None:
        super().__init__(sample_rate_hz, hop_ms=hop_ms, normalize=normalize)
        distinct = len(speeds) == len(set(speeds)) >= 1
        in_range = all(isinstance(speed, int | float) and 0.25 <= speed <= 4 for speed in speeds)
        require(distinct and in_range, "feature.speeds", speeds, "one or more different factors, 0.25 to 4")
        require(1000 <= encoder_rate_hz <= 384_000, "feature.encoder_rate_hz", encoder_rate_hz, "1000 to 384000")
        require(0 < least_s <= 60, "feature.least_s", least_s, "above 0, at most 60")
        self.speeds = [float(speed) for speed in speeds]
        self.least = round(least_s * encoder_rate_hz)  # samples
        same = sample_rate_hz == encoder_rate_hz
        self.resample = nn.Identity() if same else torchaudio.transforms.Resample(sample_rate_hz, encoder_rate_hz)

    def encode(self, waveform: Tensor) -> Tensor:
        """Compute (B, N, F) embeddings of (B, T) waveforms at the encoder's rate."""
        raise NotImplementedError

    def transform(self, waveform: Tensor) -> Tensor:
        x = self.resample(waveform)[:, 0]  # (B, T)
        x = middle(x, max(self.least, x.shape[-1]))
        x = x * (LEVEL / x.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-8))
        return self.encode(x).transpose(1, 2).unsqueeze(1)  # (B, 1, F, N)
