"""Disks that are full or read-only, files cut in half, folders that were moved: one clear error, nothing lost."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig

from audio_mnist.data import build_store
from audio_mnist.errors import RunError
from audio_mnist.inference.load import load_predictor
from audio_mnist.inference.predict import predict
from audio_mnist.tracking.tracker import Tracker
from audio_mnist.training.run import train
from tests.conftest import Trained, run_command, write_tones
from tests.test_resuming import start, training_runs

RUN = (
    *("train.py", "data=folder", "data.root=tones", "folds.count=2"),
    *("trainer.batch_size=4", "trainer.accelerator=cpu", "resume_every_s=0.5"),
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 MiB of its own; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a disk for the test")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Takes all that is left."""
    path = disk / "filled"
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            pass
    return path


@pytest.mark.slow
def test_disk_that_fills_up_in_mid_run_loses_nothing(small_disk: Path) -> None:
    """One error and no traceback; with room again the same command resumes and the run is whole."""
    write_tones(small_disk / "tones")
    epochs = 400
    command = (*RUN, f"trainer.max_epochs={epochs}")
    process = start(small_disk, *command)
    deadline = time.monotonic() + 120
    while not list((small_disk / "mlruns").rglob("last.ckpt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    filled = fill(small_disk)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert "error: " in output and "Traceback" not in output, output
    assert "No space left on device" in output or "disk is full" in output, output
    filled.unlink()
    again = run_command(small_disk, *command)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resumes after epoch" in again.stdout
    tracker = Tracker(f"sqlite:///{small_disk}/mlruns/mlflow.db", "audio-mnist")
    (run,) = training_runs(tracker)
    assert run.status == "FINISHED"
    steps = [m.step for m in tracker.client.get_metric_history(run.id, "train/loss")]
    assert sorted(steps) == list(range(epochs))


@pytest.mark.slow
def test_full_and_read_only_disks_are_one_clear_error(small_disk: Path) -> None:
    """From the start: no traceback, and what cannot be written."""
    write_tones(small_disk / "tones")
    (small_disk / "mlruns" / "hydra").mkdir(parents=True)
    filled = fill(small_disk)
    done = run_command(small_disk, *RUN, "trainer.max_epochs=1")
    assert done.returncode == 1 and "error: " in done.stderr, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    filled.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = run_command(small_disk, *RUN, "trainer.max_epochs=1")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done.stderr
    assert "error: " in done.stderr and "cannot be written" in done.stderr, done.stderr
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


def test_predictions_on_a_full_disk(small_disk: Path, trained: Trained) -> None:
    """One error that names the output; with room again the same command completes it."""
    output = small_disk / "p.csv"
    filled = fill(small_disk)
    with pytest.raises(Exception, match=r"output=.*p.csv: cannot be written \(No space left on device\)"):
        predict(trained.config(trained.tones, output))
    filled.unlink()
    assert predict(trained.config(trained.tones, output)) == 0
    assert len(output.read_text().splitlines()) == 25


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_database_cut_short_is_one_clear_error(
    tone_config: Callable[..., DictConfig], tmp_path: Path, share: float
) -> None:
    """Nothing is written to it, and nothing is made in its place."""
    cfg = tone_config()
    train(cfg)
    path = tmp_path / "mlruns" / "mlflow.db"
    for beside in ("mlflow.db-wal", "mlflow.db-shm"):
        (tmp_path / "mlruns" / beside).unlink(missing_ok=True)
    content = path.read_bytes()
    cut = content[: int(len(content) * share)] or b"not a database"
    path.write_bytes(cut)
    with pytest.raises(RunError, match="the tracking store cannot be used"):
        train(cfg)


def test_store_of_another_version_is_not_read(
    tone_config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    """A cache written by an older version stays where it is; another is built beside it."""
    cfg = tone_config()
    train(cfg)
    before = set(cache_dir.glob("waveforms-*"))
    monkeypatch.setattr(build_store, "VERSION", build_store.VERSION + 1)
    train(cfg)
    (new,) = {path for path in set(cache_dir.glob("waveforms-*")) - before if path.is_dir()}
    assert f'"version": {build_store.VERSION}' in (new / "meta.json").read_text()


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_moved_or_copied_project_keeps_its_runs(
    tone_config: Callable[..., DictConfig], tmp_path: Path, how: str
) -> None:
    """MLflow's addresses are absolute: they follow the folder, and new runs are kept in the new one."""
    train(tone_config())
    old, new = tmp_path / "mlruns", tmp_path / "elsewhere" / "mlruns"
    shutil.copytree(old, new)
    if how == "moved":
        shutil.rmtree(old)
    uri = f"sqlite:///{new}/mlflow.db"
    (run,) = training_runs(Tracker(uri, "audio-mnist"))
    if how == "copied":  # what is read is the copy's own
        shutil.rmtree(old / "artifacts")
    assert load_predictor(Tracker(uri, "audio-mnist"), run.id).class_names == ["high", "low", "mid"]
    train(tone_config(f"tracking.uri={uri}", "seed=1"))
    assert len(list((new / "artifacts").glob("*/artifacts/checkpoints/best.ckpt"))) == 2
    assert not list((old / "artifacts").glob("*/artifacts/checkpoints/best.ckpt"))
