"""An ensemble as a registered MLflow model: saved, registered under a name, given an alias."""

import logging
import tempfile
import warnings
from importlib import metadata
from pathlib import Path

from audio_mnist.errors import ConfigError
from audio_mnist.inference.predictor import Predictor
from audio_mnist.serving.onnx_graph import export
from audio_mnist.system import devices
from audio_mnist.tracking.backend import mlflow_errors
from audio_mnist.tracking.tracker import MODEL_NAME, Tracker

MODEL = "model"  # artifact folder of an ensemble's run
GRAPH = "ensemble.onnx"  # in it, under artifacts/
SERVED = Path(__file__).with_name("pyfunc.py")
# what `served.py` imports; the versions that this process has are written down with the model
_NEEDS = ("mlflow", "numpy", "pandas", "soxr", "onnxruntime")


def check(name: str) -> None:
    """Checks, before anything is computed, that a model can be registered under `name`.

    Raises:
        ConfigError: the name is not one, or optional packages are not installed.
    """
    if not MODEL_NAME.fullmatch(name):
        raise ConfigError(f"register={name}: expected a letter, then letters, digits, dots, dashes or underscores")
    devices.require_packages("serve", "onnx", "onnxscript", "onnxruntime")


def register(tracker: Tracker, predictor: Predictor, name: str, alias: str) -> int:
    """Saves an ensemble with its run and registers it.

    The model is one ONNX graph and the text of `served.py`: nothing is pickled.

    Args:
        tracker: where the run is tracked.
        predictor: the ensemble of the run `predictor.run_id`.
        name: of the registered model, made where there is none.
        alias: that is moved to the new version.

    Returns:
        The new version's number.

    Raises:
        ConfigError: optional packages are not installed.
        RunError: the tracking store cannot be used.
    """
    check(name)
    with tempfile.TemporaryDirectory(prefix="audio-mnist-") as temporary:
        graph, folder = Path(temporary) / GRAPH, Path(temporary) / MODEL
        export(predictor, graph)
        _save(graph, folder)
        with mlflow_errors(f"register={name}"):
            return _register(tracker, folder, predictor.run_id, name, alias)


def _register(tracker: Tracker, folder: Path, run_id: str, name: str, alias: str) -> int:
    from mlflow.exceptions import MlflowException

    tracker.client.log_artifacts(run_id, str(folder), MODEL)
    try:
        tracker.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = tracker.client.create_model_version(name, f"runs:/{run_id}/{MODEL}", run_id)
    tracker.client.set_registered_model_alias(name, alias, version.version)
    return int(version.version)


def _save(graph: Path, folder: Path) -> None:
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    rows = Schema([ColSpec(Array(DataType.double), "waveform"), ColSpec(DataType.long, "sample_rate_hz")])
    talk = logging.getLogger("mlflow")
    level = talk.level
    try:
        talk.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mlflow.pyfunc.save_model(
                folder,
                python_model=str(SERVED),
                artifacts={"graph": str(graph)},
                signature=ModelSignature(inputs=rows),
                pip_requirements=[f"{package}=={metadata.version(package)}" for package in _NEEDS],
            )
    finally:
        talk.setLevel(level)
