"""Any encoder of sound in a local ONNX file."""

import hashlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from audio_mnist.errors import ConfigError
from audio_mnist.features.encoder import Encoder
from audio_mnist.system import devices

DOMAIN, OPERATOR = "audio_mnist", "Encode"  # of the node that stands for the encoder in an exported graph
_TOLERANCE = 1e-3  # largest relative difference of a clip's embedding alone and in a batch


class OnnxEncoder(Encoder):
    """An encoder in an ONNX file with one input, waveforms (B, T), and one output, embeddings (B, N, F).

    B and T must be dynamic. It runs in onnxruntime on the CPU, with torch's number of threads.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        path: the file.
        encoder_rate_hz: sample rate that it expects.
        hop_ms: distance between its frames.
        sha256: SHA-256 of the file, set when a run is planned, so that a prediction uses the same weights.
        others: arguments of `Encoder`.

    Shape: (B, 1, T) -> (B, 1, F, N).

    Raises:
        ConfigError: the file is missing, changed, or not such an encoder, or onnxruntime is not installed.

    >>> OnnxEncoder(8000, path="no.onnx", encoder_rate_hz=16000, hop_ms=20.0, speeds=[1.0], least_s=1.0)
    Traceback (most recent call last):
    audio_mnist.errors.ConfigError: feature.path=no.onnx: cannot be read (No such file or directory)
    """

    name = "onnx_encoder"
    title = "ONNX encoder"
    contents: ClassVar[dict[str, bytes]] = {}  # path -> the file as it was read

    def __init__(
        self,
        sample_rate_hz: int,
        *,
        path: str,
        encoder_rate_hz: int,
        hop_ms: float,
        sha256: str | None = None,
        **others,
    ) -> None:
        super().__init__(sample_rate_hz, encoder_rate_hz, hop_ms, **others)
        devices.require_packages("pretrained", "onnxruntime")
        self.path = Path(path).expanduser()
        try:
            self.contents[str(self.path)] = self.path.read_bytes()
        except OSError as error:
            raise ConfigError(f"feature.path={path}: cannot be read ({error.strerror or error})") from None
        if sha256 is not None and hashlib.sha256(self.contents[str(self.path)]).hexdigest() != sha256:
            raise ConfigError(f"feature.path={path}: the file changed since the run was trained; restore it")
        self._open()

    def _open(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # errors become messages below
        self.reason = (
            f"feature.path={self.path}: expected an ONNX encoder in one file, waveforms (B, T) -> embeddings (B, N, F)"
        )
        try:
            content = self.contents[str(self.path)]
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
            if len(inputs) != 1 or len(outputs) != 1:
                raise ConfigError(f"{self.reason}; it has {len(inputs)} inputs and {len(outputs)} outputs")
            self._input = inputs[0].name
            x = np.random.default_rng(0).normal(0, 0.1, (2, self.least)).astype(np.float32)
            x[1] *= 0.01
            both, alone = self._run(x), self._run(x[1:])
        except ConfigError:
            raise
        except Exception as error:  # onnxruntime has a class of its own for each fault
            raise ConfigError(f"{self.reason}; {str(error).splitlines()[0]}") from None
        if both.ndim != 3:
            raise ConfigError(f"{self.reason}; its output has shape {both.shape}")
        if np.abs(both[1:] - alone).max() > _TOLERANCE * max(1e-6, float(np.abs(alone).max())):
            raise ConfigError(f"{self.reason}; it answers for a clip in a batch otherwise than for the clip alone")

    def __deepcopy__(self, memo: dict) -> "OnnxEncoder":
        return self  # nothing in it changes, and a session cannot be copied

    def _run(self, x: np.ndarray) -> np.ndarray:
        return self._session.run(None, {self._input: x})[0]

    def encode(self, waveform: Tensor) -> Tensor:
        if torch.compiler.is_exporting():  # `serving.onnx_graph` puts the file's graph in the place of this node
            _, frames, numbers = self._run(np.zeros((1, waveform.shape[1]), np.float32)).shape
            shape = (waveform.shape[0], frames, numbers)
            attributes: dict[str, Any] = {"path": str(self.path)}
            name = f"{DOMAIN}::{OPERATOR}"
            return torch.onnx.ops.symbolic(name, (waveform,), attributes, dtype=torch.float32, shape=shape, version=1)
        return torch.from_numpy(self._run(waveform.cpu().numpy())).to(waveform)
