"""An ensemble as a registered MLflow model, which `mlflow models serve` serves."""

import tempfile
from pathlib import Path

from audio_mnist.errors import ConfigError
from audio_mnist.inference.predictor import Predictor
from audio_mnist.serving.onnx_graph import export
from audio_mnist.system import devices
from audio_mnist.tracking.registry import MODEL_NAME, register_model
from audio_mnist.tracking.tracker import Tracker

GRAPH = "ensemble.onnx"  # file of the model, under artifacts/
SCRIPT = Path(__file__).with_name("pyfunc.py")
_IMPORTED_BY_SCRIPT = ("mlflow", "numpy", "pandas", "soxr", "onnxruntime")


def check(name: str) -> None:
    """Check, before anything is computed, that a model can be registered under `name`.

    Raises:
        ConfigError: it is not a valid name, or optional packages are not installed.
    """
    if not MODEL_NAME.fullmatch(name):
        raise ConfigError(f"register={name}: expected a letter, then letters, digits, dots, dashes or underscores")
    devices.require_packages("serve", "onnx", "onnxscript", "onnxruntime")


def register(tracker: Tracker, predictor: Predictor, name: str, alias: str) -> int:
    """Save an ensemble with its run and register it: one ONNX graph and the text of `pyfunc.py`.

    Args:
        tracker: where the run is tracked.
        predictor: the ensemble of the run `predictor.run_id`.
        name: name of the registered model; created where it does not exist.
        alias: alias that moves to the new version.

    Returns:
        The new version's number.

    Raises:
        ConfigError: optional packages are not installed.
        RunError: the tracking store cannot be used.
    """
    check(name)
    with tempfile.TemporaryDirectory(prefix="audio-mnist-") as temporary:
        graph = Path(temporary) / GRAPH
        export(predictor, graph)
        return register_model(
            tracker, predictor.run_id, name, alias, script=SCRIPT, graph=graph, packages=_IMPORTED_BY_SCRIPT
        )
