"""The tracking store itself: MLflow's client, its SQLite database created once, its errors."""

import contextlib
import importlib
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from audio_mnist.config import without_password, without_user
from audio_mnist.errors import RunError
from audio_mnist.system.imports import quick_imports

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)


def import_client(uri: str) -> None:
    """Imports what the client of a tracking store needs, which takes seconds; the store is left alone."""
    _quieten()
    with quick_imports():
        importlib.import_module("mlflow.artifacts")
        if not uri.startswith("http"):
            importlib.import_module("mlflow.store.tracking.sqlalchemy_store")


def _quieten() -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def connect(uri: str) -> "MlflowClient":
    """MLflow's client of a tracking store, without its talk."""
    _quieten()
    if without_user(uri) != uri:  # after each run it would print the server's address, password included
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    # after the import, which sets levels of its own
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of what `mlflow_errors` says
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
                with mlflow_errors(f"tracking.uri={uri}"):
                    _create_database(partial, artifacts.as_uri())
                os.replace(partial, path)
    with mlflow_errors(f"tracking.uri={uri}"):
        _follow(path, artifacts)
    return artifacts.as_uri()


def _follow(path: Path, artifacts: Path) -> None:
    """A project folder that was moved or copied keeps its runs: MLflow's addresses of artifacts, absolute, follow it.

    Those of an experiment are changed only where its runs' artifacts lie beside this database.
    """
    ours = artifacts.as_uri()
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
                return  # empty: MLflow fills it
            query = "SELECT experiment_id, artifact_location FROM experiments"
            query += " WHERE artifact_location LIKE 'file:%/artifacts'"
            for number, theirs in connection.execute(query).fetchall():
                query = "SELECT run_uuid FROM runs WHERE experiment_id = ? AND artifact_uri LIKE ? || '/%'"
                runs = connection.execute(query, (number, theirs)).fetchall() if theirs != ours else []
                if any((artifacts / run_id).is_dir() for (run_id,) in runs):
                    log.warning("the project's folder was moved: its runs' artifacts are those in %s", artifacts)
                    _move(connection, theirs, ours)
    except sqlite3.Error as error:
        raise OSError(str(error)) from None


def _move(connection: sqlite3.Connection, old: str, new: str) -> None:
    columns = {"experiments": "artifact_location", "runs": "artifact_uri", "model_versions": "storage_location"}
    for table, column in columns.items():
        moved = f"{column} = ? || SUBSTR({column}, ?)"
        connection.execute(
            f"UPDATE {table} SET {moved} WHERE {column} = ? OR {column} LIKE ? || '/%'", (new, len(old) + 1, old, old)
        )
    connection.commit()


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
        reason = without_password(str(error).strip().splitlines()[0])
        raise RunError(f"{what}: the tracking store cannot be used ({reason})") from None
