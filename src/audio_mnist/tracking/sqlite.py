"""MLflow's SQLite database: created once, and found again after its folder was moved."""

import contextlib
import logging
import os
import sqlite3
from pathlib import Path

from filelock import FileLock

from audio_mnist.errors import RunError
from audio_mnist.tracking.backend import connect, mlflow_errors

log = logging.getLogger(__name__)


def absolute(uri: str) -> str:
    """Make the path of a SQLite address absolute: MLflow keeps one store per address, wherever the process moves.

    >>> absolute("sqlite:////tmp/mlflow.db"), absolute("http://127.0.0.1:5000")
    ('sqlite:////tmp/mlflow.db', 'http://127.0.0.1:5000')
    """
    prefix = "sqlite:///"
    if not uri.startswith(prefix) or uri.removeprefix(prefix) in ("", ":memory:"):
        return uri
    return prefix + os.path.abspath(uri.removeprefix(prefix))


def prepare_sqlite(uri: str) -> str:
    """Create the database where it does not exist; return the location of its artifacts.

    MLflow's migrations break when two processes run them at once, or when one
    is killed in the middle. So they run under a lock, on a file of another name.

    Raises:
        RunError: the address names no file, or the database cannot be created.
        OSError: the folder cannot be written.
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
    """Update MLflow's absolute addresses of artifacts after the project's folder was moved or copied.

    An experiment's addresses change only where the artifacts of its runs lie
    beside this database.
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
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    # MLflow commits some 300 times; nobody uses the file yet, so only the last commit must reach the disk
    event.listen(Engine, "connect", _without_waiting)
    try:
        connect(f"sqlite:///{path}")  # makes the logs quiet
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        store = SqlAlchemyStore(f"sqlite:///{path}", artifacts)
        store._dispose_engine()
    finally:
        event.remove(Engine, "connect", _without_waiting)
    # with a write-ahead log readers do not wait for a writer, and a commit takes half the time
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=wal")
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _without_waiting(connection: object, _: object) -> None:
    if isinstance(connection, sqlite3.Connection):  # of any engine of this process
        connection.execute("PRAGMA synchronous=off")
