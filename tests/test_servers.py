"""Many processes, one store: sweeps side by side, PostgreSQL behind an MLflow server, a server that goes away."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from audio_mnist.tracking.tracker import Tracker
from tests.conftest import MlflowServer, free_port, run_command, write_tones
from tests.test_resuming import start, table_of, training_runs

pytestmark = pytest.mark.slow
SWEEP = (
    *("train.py", "data=folder", "data.root=tones", "feature=mel,mfcc", "fold=0,1", "folds.count=2"),
    *("trainer.batch_size=4", "trainer.accelerator=cpu"),
)


def test_four_sweeps_at_once_on_a_fresh_folder_lose_nothing(tmp_path: Path) -> None:
    """The database, the experiment and the waveform store are made once, by whoever is first."""
    write_tones(tmp_path / "tones")
    sweeps = [start(tmp_path, *SWEEP, "trainer.max_epochs=2", f"seed={seed}", "-m") for seed in range(4)]
    outputs = [sweep.communicate(timeout=400)[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0] * 4, outputs
    with sqlite3.connect(tmp_path / "mlruns" / "mlflow.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    tracker = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist")
    parents = tracker.search(kind="sweep")
    assert len(parents) == 4 and {run.status for run in tracker.search()} == {"FINISHED"}
    for parent, output in zip(sorted(parents, key=lambda p: p.id), outputs, strict=True):
        assert "4 of 4 runs finished" in output
        runs = tracker.search(kind="train", parent_id=parent.id)
        assert len(runs) == 4
        for run in runs:
            steps = [m.step for m in tracker.client.get_metric_history(run.id, "train/loss")]
            assert sorted(steps) == [0, 1]
            with tracker.artifact(run.id, "checkpoints/best.ckpt") as path:
                assert path.stat().st_size > 100_000


def postgres_tool(name: str) -> str | None:
    """Path of one of PostgreSQL's own programs, which Debian keeps off the search path."""
    beside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(beside[-1]) if beside else shutil.which(name)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """Address of an empty database of a PostgreSQL server of the tests' own."""
    initdb, server = postgres_tool("initdb"), postgres_tool("postgres")
    if not initdb or not server:
        pytest.skip("no PostgreSQL server is installed")
    as_user = []
    folder = Path(tempfile.mkdtemp(prefix="audio-mnist-pg-"))
    if os.geteuid() == 0:  # it refuses to run as root
        as_user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    port = free_port()
    process = None
    try:
        made = subprocess.run(
            [*as_user, initdb, "-D", str(folder / "data"), "-U", "tests", "-A", "trust", "--no-sync"],
            cwd="/",
            capture_output=True,
            text=True,
        )
        assert made.returncode == 0, made.stderr
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-k", str(folder), "-p", str(port)]
        process = subprocess.Popen(
            [*as_user, server, "-D", str(folder / "data"), *options],
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        import psycopg2

        for _ in range(120):
            try:
                psycopg2.connect(host="127.0.0.1", port=port, user="tests", dbname="postgres").close()
                break
            except psycopg2.OperationalError:
                time.sleep(0.25)
        yield f"postgresql+psycopg2://tests@127.0.0.1:{port}/postgres"
    finally:
        if process is not None:
            os.killpg(process.pid, signal.SIGINT)  # a fast shutdown
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    server = MlflowServer(
        folder, "server", "--backend-store-uri", postgres, "--artifacts-destination", f"{folder}/artifacts"
    )
    server.start()
    yield server
    server.stop()


def test_sweep_on_a_postgresql_server_gives_the_same_table(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its ensemble the same scores; the command again trains nothing; the address's password is told to nobody."""
    tables, scores, printed = [], [], ""
    monkeypatch.setenv("STORE", server.address.replace("//", "//someone:hunter2@"))
    write_tones(tmp_path / "tones")
    for uri in ("sqlite:///mlruns/mlflow.db", "${oc.env:STORE}"):
        sweep = (*SWEEP, "trainer.max_epochs=5", f"tracking.uri={uri}", "-m")
        done = run_command(tmp_path, *sweep)
        assert done.returncode == 0, done.stdout + done.stderr
        tables.append(table_of(done.stdout))
        joined = run_command(tmp_path, "ensemble.py", "run_ids=latest", f"tracking.uri={uri}")
        assert joined.returncode == 0, joined.stdout + joined.stderr
        scores.append(table_of(joined.stdout))
        printed += done.stdout + done.stderr + joined.stdout + joined.stderr
    assert tables[0] == tables[1] != "" and scores[0] == scores[1] != ""
    again = run_command(tmp_path, *sweep)
    assert "4 of them are finished already" in again.stdout
    assert "'tracking.uri=${oc.env:STORE}'" in again.stdout and "hunter2" not in printed + again.stdout + again.stderr
    assert f"compare them: {server.address}/#/experiments/" in again.stdout
    tracker = Tracker(server.address, "audio-mnist")
    runs = tracker.client.search_runs([tracker.experiment_id])
    told = [part for run in runs for part in (*run.data.params.values(), *run.data.tags.values())]
    assert any("//someone:***@" in part for part in told) and not any("hunter2" in part for part in told)
    kept = [path.read_bytes() for root in (server.folder, tmp_path) for path in root.rglob("*") if path.is_file()]
    assert any(b"//someone:***@" in content for content in kept)
    assert not any(b"hunter2" in content for content in kept)


def test_server_that_goes_away_for_half_a_minute_costs_nothing(server: MlflowServer, tmp_path: Path) -> None:
    """Killed in mid-run, back after 30 s: every epoch's metrics are there, the run is FINISHED."""
    write_tones(tmp_path / "tones")
    epochs = 600  # tens of seconds: the server goes in their first
    where = f"tracking.uri={server.address}"
    process = start(
        tmp_path,
        *SWEEP[:3],
        "folds.count=2",
        *SWEEP[6:],
        f"trainer.max_epochs={epochs}",
        "trainer.max_steps=null",
        "seed=7",
        where,
    )
    tracker = Tracker(server.address, "audio-mnist")
    deadline = time.monotonic() + 120
    while not (running := [run for run in training_runs(tracker) if run.tags["seed"] == "7" and run.metrics]):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    server.stop()
    time.sleep(30)
    was_waiting = process.poll() is None
    server.start()
    output, _ = process.communicate(timeout=400)
    assert was_waiting and process.returncode == 0, output
    assert re.search(r"mel fold 0: accuracy \d", output)
    run = tracker.get(running[0].id)
    assert run is not None and run.status == "FINISHED"
    for key in ("train/loss", "train/accuracy"):
        steps = sorted(m.step for m in tracker.client.get_metric_history(run.id, key))
        assert steps == list(range(epochs)), key
