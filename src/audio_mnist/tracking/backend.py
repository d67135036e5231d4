"""MLflow's client of a tracking store, its imports and its errors."""

import contextlib
import importlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from audio_mnist.errors import RunError
from audio_mnist.system.imports import quick_imports
from audio_mnist.tracking.uri import without_password, without_user

if TYPE_CHECKING:
    from mlflow import MlflowClient


def import_client(uri: str) -> None:
    """Import what the client of a tracking store needs. This takes seconds and leaves the store alone."""
    _quieten()
    with quick_imports():
        importlib.import_module("mlflow.artifacts")
        if not uri.startswith("http"):
            importlib.import_module("mlflow.store.tracking.sqlalchemy_store")


def _quieten() -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def connect(uri: str) -> "MlflowClient":
    """Return a quiet client of a tracking store."""
    _quieten()
    if without_user(uri) != uri:  # else it prints the server's address after each run, password included
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    # after the import, which sets levels too
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # `mlflow_errors` reports these tracebacks
    return MlflowClient(tracking_uri=uri)


@contextlib.contextmanager
def mlflow_errors(what: str) -> Iterator[None]:
    """Turn the errors of the tracking store into a `RunError` that begins with `what`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = without_password(str(error).strip().splitlines()[0])
        raise RunError(f"{what}: the tracking store cannot be used ({reason})") from None
