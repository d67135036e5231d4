"""The tracking store itself: MLflow's client, its SQLite database created once, its errors."""

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from audio_mnist.errors import RunError

if TYPE_CHECKING:
    from mlflow import MlflowClient


def connect(uri: str) -> "MlflowClient":
    """MLflow's client of a tracking store, without its talk."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    # after the import, which sets levels of its own
    for name in ("mlflow", "mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def prepare_sqlite(uri: str) -> str:
    """Creates the database where it does not exist; returns the artifacts' location.

    MLflow's migrations break when two processes run them at once, or when one
    is killed among them. So they run under a lock, on a file of another name.
    """
    from sqlalchemy.engine import make_url

    database = make_url(uri).database
    if not database or database == ":memory:":
        raise RunError(f"tracking.uri={uri}: expected a database file, sqlite:///PATH")
    path = Path(database).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    artifacts = path.parent / "artifacts"
    artifacts.mkdir(exist_ok=True)
    if not path.exists():
        with FileLock(f"{path}.lock"):
            if not path.exists():
                partial = path.with_name(path.name + ".partial")
                partial.unlink(missing_ok=True)
                _create_database(partial, artifacts.as_uri())
                os.replace(partial, path)
    return artifacts.as_uri()


def _create_database(path: Path, artifacts: str) -> None:
    connect(f"sqlite:///{path}")  # quiet logs
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"sqlite:///{path}", artifacts)
    store._dispose_engine()
    # readers do not wait for a writer, and a commit costs half
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=wal")


@contextlib.contextmanager
def mlflow_errors(what: str) -> Iterator[None]:
    """Turns the errors of the tracking store into a `RunError` that begins with `what`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"{what}: the tracking store cannot be used ({reason})") from None
