"""Registered models: found by name, and saved with a run."""

import logging
import re
import tempfile
import warnings
from importlib import metadata
from pathlib import Path

from audio_mnist.errors import RunError
from audio_mnist.tracking.backend import mlflow_errors
from audio_mnist.tracking.tracker import Tracker

MODEL_NAME = re.compile(r"[A-Za-z][\w.-]*")
MODEL = "model"  # artifact folder of an ensemble's run
_NAMED = re.compile(rf"(?:models:/)?(?P<name>{MODEL_NAME.pattern})(?:@(?P<alias>.+)|/(?P<version>.+))?")


def registered_run(tracker: Tracker, model: str) -> str | None:
    """Return the id of a registered model's run, None where `model` is not the name of one.

    Args:
        tracker: the tracking store.
        model: NAME (its newest version), NAME@ALIAS or NAME/VERSION, with or without models:/ before it.

    Raises:
        RunError: the name exists, but not the alias or version.
    """
    named = _NAMED.fullmatch(model)
    if named is None:
        return None
    with mlflow_errors(f"model={model}"):
        found = tracker.client.search_model_versions(f"name = '{named['name']}'")
        if not found:
            return None
        aliases = tracker.client.get_registered_model(named["name"]).aliases  # alias -> version
    run_ids = {int(version.version): version.run_id for version in found}
    wanted = named["version"] or str(max(run_ids))
    if named["alias"] is not None:
        wanted = str(aliases.get(named["alias"], "none"))
    if wanted.isdigit() and int(wanted) in run_ids:
        return run_ids[int(wanted)]
    known = [str(number) for number in sorted(run_ids)] + [f"@{alias}" for alias in aliases]
    raise RunError(f"model={model}: {named['name']} has no such version; it has {', '.join(known)}")


def register_model(
    tracker: Tracker, run_id: str, name: str, alias: str, *, script: Path, graph: Path, packages: tuple[str, ...]
) -> int:
    """Save a model with its run, register it and move the alias to it. Nothing is pickled.

    Args:
        tracker: the tracking store.
        run_id: the run.
        name: name of the registered model; created where it does not exist.
        alias: alias of the new version.
        script: Python file with the MLflow model.
        graph: ONNX file that it opens, its artifact `graph`.
        packages: packages that the script imports; their versions are noted with the model.

    Returns:
        The number of the new version.

    Raises:
        RunError: the tracking store cannot be used.
    """
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="audio-mnist-") as temporary, mlflow_errors(f"register={name}"):
        _save(script, graph, packages, Path(temporary) / MODEL)
        tracker.client.log_artifacts(run_id, str(Path(temporary) / MODEL), MODEL)
        try:
            tracker.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = tracker.client.create_model_version(name, f"runs:/{run_id}/{MODEL}", run_id)
        tracker.client.set_registered_model_alias(name, alias, version.version)
        return int(version.version)


def _save(script: Path, graph: Path, packages: tuple[str, ...], folder: Path) -> None:
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    rows = Schema([ColSpec(Array(DataType.double), "waveform"), ColSpec(DataType.long, "sample_rate_hz")])
    messages = logging.getLogger("mlflow")
    level = messages.level
    try:
        messages.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mlflow.pyfunc.save_model(
                folder,
                python_model=str(script),
                artifacts={"graph": str(graph)},
                signature=ModelSignature(inputs=rows),
                pip_requirements=[f"{package}=={metadata.version(package)}" for package in packages],
            )
    finally:
        messages.setLevel(level)
