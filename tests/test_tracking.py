"""The tracking store: created once, shared, closed cleanly, refused clearly."""

import contextlib
import multiprocessing
import sqlite3
from pathlib import Path
from unittest.mock import Mock

import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine, text

from audio_mnist.ensembles.members import latest_sweep
from audio_mnist.errors import RunError
from audio_mnist.tracking import backend
from audio_mnist.tracking import sqlite as tracking_sqlite
from audio_mnist.tracking.run import list_of
from audio_mnist.tracking.tracker import Tracker


def uri_of(folder: Path) -> str:
    return f"sqlite:///{folder}/mlruns/mlflow.db"


def _log_in_process(arguments: tuple[str, int]) -> str:
    uri, number = arguments
    run = Tracker(uri, "audio-mnist").start(f"run {number}", kind="train", tags={}, params={"number": number})
    for step in range(50):
        run.log_metrics({"fold/accuracy": step / 50}, step)
    run.end("FINISHED")
    return run.id


def test_tracker_by_four_processes_on_a_fresh_database(tmp_path: Path) -> None:
    """Each creates the database if need be; no run and no metric is lost."""
    uri = uri_of(tmp_path)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        ids = pool.map(_log_in_process, [(uri, n) for n in range(4)], chunksize=1)
    with sqlite3.connect(tmp_path / "mlruns" / "mlflow.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        logged = dict(connection.execute("SELECT run_uuid, COUNT(*) FROM metrics GROUP BY run_uuid"))
        experiments = connection.execute("SELECT name FROM experiments WHERE name = 'audio-mnist'").fetchall()
    assert logged == dict.fromkeys(ids, 50)
    assert len(experiments) == 1
    assert all(record and record.status == "FINISHED" for record in map(Tracker(uri, "audio-mnist").get, ids))


@pytest.mark.parametrize("fails", [False, True])
def test_only_the_creation_does_not_wait_for_the_disk(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later connections wait for it as SQLite does by default, also after a creation that failed."""
    if fails:
        monkeypatch.setattr(tracking_sqlite, "connect", Mock(side_effect=RuntimeError))
    with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
        tracking_sqlite._create_database(tmp_path / "new.db", "file:///artifacts")
    with create_engine(f"sqlite:///{tmp_path}/other.db").connect() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2


def test_tracker_keeps_runs_under_their_sweep(tmp_path: Path) -> None:
    """children lists them in order with tags and last metrics; latest_sweep passes over one without finished runs."""
    tracker = Tracker(uri_of(tmp_path), "audio-mnist")
    old, new = (tracker.start(n, kind="sweep", tags={"begun": b}, params={}) for n, b in (("old", "1"), ("new", "2")))
    good = tracker.start("a", kind="train", tags={"fold": "0"}, params={}, parent_id=old.id)
    good.log_metrics({"best/accuracy": 0.5})
    good.end("FINISHED")
    tracker.start("b", kind="train", tags={"fold": "1"}, params={}, parent_id=old.id).end("FAILED")
    tracker.start("c", kind="train", tags={"fold": "1"}, params={}, parent_id=new.id).end("KILLED")
    children = tracker.search(kind="train", parent_id=old.id)
    assert [(c.name, c.status, c.tags["fold"]) for c in children] == [("a", "FINISHED", "0"), ("b", "FAILED", "1")]
    assert children[0].metrics == {"best/accuracy": 0.5} and children[0].parent_id == old.id
    parent, finished, newer = latest_sweep(tracker)
    assert parent is not None and parent.id == old.id and [run.id for run in finished] == [good.id] and newer == 1


def test_run_lists_are_not_cut(tmp_path: Path) -> None:
    """Hundreds of runs that a sweep took over, more than one of MLflow's tags holds."""
    tracker = Tracker(uri_of(tmp_path), "audio-mnist")
    ids = [f"{number:032x}" for number in range(1050)]
    run = tracker.start("a", kind="sweep", tags={}, params={})
    run.set_list("taken_over", ids)
    found = tracker.get(run.id)
    assert found is not None and sorted(list_of(found.tags, "taken_over")) == ids
    run.set_list("taken_over", ids[:2])
    found = tracker.get(run.id)
    assert found is not None and list_of(found.tags, "taken_over") == ids[:2]
    assert list_of({"taken_over": "a,b", "other": "c"}, "taken_over") == ["a", "b"]  # as it was kept before


def test_run_artifacts_come_back_and_missing_ones_are_named(tmp_path: Path) -> None:
    """Text and files under the name that they were given."""
    tracker = Tracker(uri_of(tmp_path), "audio-mnist")
    run = tracker.start("a", kind="train", tags={}, params={"deep": {"key": [1, 2]}})
    source = tmp_path / "other-name"
    source.write_bytes(b"weights")
    run.log_file(source, "checkpoints/best.ckpt")
    run.log_text("hello", "note.txt")
    with tracker.artifact(run.id, "checkpoints/best.ckpt") as path:
        assert path.read_bytes() == b"weights"
    with tracker.artifact(run.id, "note.txt") as path:
        assert path.read_text() == "hello"
    assert list((tmp_path / "mlruns" / "artifacts").rglob("best.ckpt"))
    with pytest.raises(RunError, match=f"run {run.id}: its artifact gone.csv"), tracker.artifact(run.id, "gone.csv"):
        pass


def test_tracker_get_of_an_unknown_run_is_none(tmp_path: Path) -> None:
    """Ids that never were, and what is no id."""
    tracker = Tracker(uri_of(tmp_path), "audio-mnist")
    assert tracker.get("0" * 32) is None
    assert tracker.get("not an id") is None


def test_tracker_refuses_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A file where mlruns should be: one clear error."""
    (tmp_path / "mlruns").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written"):
        Tracker(uri_of(tmp_path), "audio-mnist")


def test_tracker_refuses_what_is_no_database(tmp_path: Path) -> None:
    """A text file named mlflow.db, and a database without a file."""
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_text("no database at all " * 100)
    with pytest.raises(RunError, match="the tracking store cannot be used"):
        Tracker(uri_of(tmp_path), "audio-mnist")
    with pytest.raises(RunError, match="expected a database file"):
        Tracker("sqlite:///:memory:", "audio-mnist")


def test_tracker_refuses_a_deleted_experiment(tmp_path: Path) -> None:
    """MLflow keeps its name reserved; the message says what to do."""
    tracker = Tracker(uri_of(tmp_path), "audio-mnist")
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(RunError, match="was deleted in MLflow; restore it"):
        Tracker(uri_of(tmp_path), "audio-mnist")


def test_an_error_does_not_tell_the_password_of_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a person pastes into a report has the address alone."""

    def refuse(uri: str) -> None:
        raise MlflowException(f"API request to {uri}/api failed")

    monkeypatch.setattr(backend, "connect", refuse)
    with pytest.raises(RunError, match=r"API request to http://someone:\*\*\*@host:5432/api failed") as caught:
        Tracker("http://someone:hunter2@host:5432", "audio-mnist")
    assert "hunter2" not in str(caught.value)
