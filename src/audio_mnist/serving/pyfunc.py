"""What an MLflow server runs for a registered ensemble: this file and an ONNX graph.

`mlflow models serve` copies this file with the model, so it imports nothing of
audio_mnist. A request has one row per clip: `waveform`, samples of one channel
from -1 to 1, and `sample_rate_hz`. The answer has one row per clip: `label`, and
a probability `p:CLASS` per class.
"""

import json
import sys
import threading
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import soxr
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel

MAX_CLIPS = 1024  # per request
MAX_CLIP_S = 60.0  # default of data.max_clip_s
MIN_CLIP_S = 0.01  # as `data.decode`, like the three below
RATES_HZ = (1000, 384_000)  # least and greatest sample rate
PEAK = 2.0**31  # largest sample
STILL = 2.0**-23  # least change within a clip
MAX_REQUEST_BYTES = 16 * 2**20  # about 80 s of sound at 16 kHz; parsed it takes up to 40 times as much
LARGE_BYTES = 2**20  # of requests above this size one is answered at a time


class AudioClassifier(PythonModel):
    """An ensemble's ONNX graph behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        """Open the graph with one thread, as in training. In a server, limit its requests."""
        if "mlflow.pyfunc.scoring_server" in sys.modules:
            _limit_requests()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = context.artifacts["graph"]
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        described = json.loads(self._session.get_modelmeta().custom_metadata_map["audio_mnist"])
        self._classes, self._windows = described["class_names"], described["windows"]

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify clips.

        Args:
            context: MLflow's, not used.
            model_input: columns waveform and sample_rate_hz, one row per clip.
            params: not used.

        Returns:
            Columns label and `p:CLASS`, one row per clip.

        Raises:
            MlflowException: a clip cannot be used. A server answers 400 with the reason.
        """
        clips = _checked(model_input)
        windows = {}
        for window in self._windows:
            rate_hz = window["sample_rate_hz"]
            placed = [
                _placed(_resampled(x, own_hz, rate_hz), window["samples"], window["place"]) for x, own_hz in clips
            ]
            windows[window["name"]] = np.stack(placed)
        for number in range(len(clips)):
            if all(np.ptp(placed[number]) < STILL for placed in windows.values()):
                raise _refused(f"clip {number}: the part of the waveform that the model uses is silent")
        p = self._session.run(["probabilities"], windows)[0]
        if not np.isfinite(p).all():
            raise _refused(f"clip {int(np.argwhere(~np.isfinite(p))[0][0])}: the model has no finite answer")
        answer = pd.DataFrame({"label": [self._classes[number] for number in p.argmax(axis=1)]})
        answer[[f"p:{name}" for name in self._classes]] = p.astype(np.float64)
        return answer


def _checked(rows: pd.DataFrame) -> list[tuple[np.ndarray, int]]:
    if not 1 <= len(rows) <= MAX_CLIPS:
        raise _refused(f"{len(rows)} clips: expected 1 to {MAX_CLIPS}")
    clips = []
    for number, (waveform, rate_hz) in enumerate(zip(rows["waveform"], rows["sample_rate_hz"], strict=True)):
        if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
            raise _refused(f"clip {number}: sample_rate_hz={rate_hz}, expected {RATES_HZ[0]} to {RATES_HZ[1]}")
        try:
            with np.errstate(over="ignore"):  # infinite values are refused below
                samples = np.asarray(waveform, dtype=np.float32)
        except (TypeError, ValueError):
            raise _refused(f"clip {number}: waveform is not a list of numbers") from None
        if samples.ndim != 1 or len(samples) == 0:
            raise _refused(f"clip {number}: waveform has shape {samples.shape}, expected samples of one channel")
        if len(samples) > MAX_CLIP_S * rate_hz:
            raise _refused(f"clip {number}: {len(samples) / rate_hz:.1f} s, expected at most {MAX_CLIP_S:g} s")
        if not np.isfinite(samples).all():
            raise _refused(f"clip {number}: waveform has samples that are not finite numbers")
        if np.abs(samples).max() > PEAK:
            raise _refused(f"clip {number}: waveform has samples above {PEAK:.3g}, expected -1 to 1")
        if len(samples) < MIN_CLIP_S * rate_hz:
            raise _refused(f"clip {number}: {len(samples)} samples, expected at least {MIN_CLIP_S:g} s")
        if np.ptp(samples) < STILL:
            raise _refused(f"clip {number}: waveform is silent, all samples are equal")
        clips.append((samples, int(rate_hz)))
    return clips


def _limit_requests() -> None:
    """Make MLflow's server refuse requests that are too large or nested too deeply, before they are parsed."""
    from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
    from mlflow.pyfunc import scoring_server
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    if Request.stream.__name__ == "limited_stream":  # another model of this process did it
        return
    stream, invocations, large = Request.stream, scoring_server.invocations, threading.Lock()

    async def limited_stream(self: Request) -> AsyncGenerator[bytes, None]:
        size = int(self.headers.get("content-length") or 0)
        if size <= MAX_REQUEST_BYTES:
            size = 0
            async for chunk in stream(self):
                size += len(chunk)
                if size > MAX_REQUEST_BYTES:
                    break
                yield chunk
        if size > MAX_REQUEST_BYTES:
            raise HTTPException(
                413, f"the request is larger than {MAX_REQUEST_BYTES} bytes; send fewer clips at a time"
            )

    def limited_invocations(data: bytes, *others: Any) -> Any:
        is_large = len(data) > LARGE_BYTES
        if is_large and not large.acquire(blocking=False):
            reason = "another large request is being answered; send it again later"
            raise MlflowException(reason, error_code=TEMPORARILY_UNAVAILABLE)
        try:
            return invocations(data, *others)
        except (RecursionError, ValueError) as error:  # nested too deeply, a number of too many digits
            raise _refused(f"the request is not JSON that can be read ({error})") from None
        finally:
            if is_large:
                large.release()

    Request.stream = limited_stream  # type: ignore[method-assign,assignment]
    scoring_server.invocations = limited_invocations


def _refused(reason: str) -> MlflowException:
    return MlflowException(reason, error_code=INVALID_PARAMETER_VALUE)


def _resampled(samples: np.ndarray, own_hz: int, rate_hz: int) -> np.ndarray:
    if own_hz == rate_hz:
        return samples
    resampled = soxr.resample(samples, own_hz, rate_hz, quality="HQ")
    return resampled if len(resampled) else np.zeros(1, np.float32)


def _placed(samples: np.ndarray, length: int, place: float) -> np.ndarray:
    """Place a clip in a window of `length` samples, as `WaveformStore.gather` does."""
    slack = length - len(samples)
    shift = int(np.rint(abs(slack) * place))
    if slack < 0:
        return samples[shift : shift + length]
    window = np.zeros(length, dtype=np.float32)
    window[shift : shift + len(samples)] = samples
    return window


set_model(AudioClassifier())
