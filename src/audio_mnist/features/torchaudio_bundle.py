"""wav2vec 2.0, HuBERT and WavLM, as torchaudio publishes them."""

import torch
import torchaudio
from torch import Tensor

from audio_mnist.config import require
from audio_mnist.errors import ConfigError
from audio_mnist.features.encoder import Encoder

_HOP_MS = 20.0
_AT_A_TIME = 8  # clips, to bound memory


class TorchaudioBundle(Encoder):
    """A layer of a self-supervised model of speech. Its weights are downloaded once, some 100 MB to 1 GB.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        bundle: name in `torchaudio.pipelines`, such as WAV2VEC2_BASE, HUBERT_BASE or WAVLM_BASE.
        layer: transformer layer that gives the output, from 1.
        others: arguments of `Encoder`.

    Shape: (B, 1, T) -> (B, 1, F, N), F = 768 for the models of size BASE.

    Raises:
        ConfigError: there is no such bundle or layer, or its weights cannot be loaded.

    Source: Baevski et al., "wav2vec 2.0", 2020, and the models that followed it, by `torchaudio.pipelines`. Deviation:
    where a bundle normalises waveforms, each clip is normalised by itself.

    >>> TorchaudioBundle(8000, bundle="none", layer=6, speeds=[1.0], least_s=1.0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    audio_mnist.errors.ConfigError: feature.bundle=none: expected one of HUBERT_ASR_LARGE, ...
    """

    name = "torchaudio_bundle"
    title = "Bundle"

    def __init__(self, sample_rate_hz: int, *, bundle: str, layer: int, **others) -> None:
        published = vars(torchaudio.pipelines)
        bundles = {name: one for name, one in published.items() if isinstance(one, torchaudio.pipelines.Wav2Vec2Bundle)}
        if bundle not in bundles:
            raise ConfigError(f"feature.bundle={bundle}: expected one of {', '.join(sorted(bundles))}")
        found = bundles[bundle]
        super().__init__(sample_rate_hz, round(found.sample_rate), _HOP_MS, **others)
        try:
            self.model = found.get_model().eval().requires_grad_(False)
        except (OSError, RuntimeError) as error:  # no connection; a download that was cut short
            raise ConfigError(f"feature.bundle={bundle}: its weights cannot be loaded ({error})") from None
        # some are wrapped to normalise waveforms, all clips of a batch together
        self.normalizes = bool(getattr(self.model, "normalize_waveform", False))
        self.model = getattr(self.model, "model", self.model)
        layers = len(self.model.encoder.transformer.layers)
        require(1 <= layer <= layers, "feature.layer", layer, f"1 to {layers}")
        self.layer = layer

    def encode(self, waveform: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return self._encode(waveform)
        return torch.cat([self._encode(part) for part in waveform.split(_AT_A_TIME)])

    def _encode(self, waveform: Tensor) -> Tensor:
        if self.normalizes:
            waveform = torch.nn.functional.layer_norm(waveform, waveform.shape[-1:])
        return self.model.extract_features(waveform, num_layers=self.layer)[0][-1]  # (B, N, F)
