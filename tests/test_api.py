"""The Python face: what the commands do, from a notebook."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

import audio_mnist
from audio_mnist.errors import AudioMnistError, ConfigError, DataError, RunError
from audio_mnist.tracking.tracker import Tracker
from tests.conftest import Trained, write_tones

OPTIONS = ["data=folder", "data.root=tones", "folds.count=2", "trainer.max_epochs=2", "trainer.batch_size=4"]


def test_import_takes_no_time_and_imports_nothing_heavy() -> None:
    """`import audio_mnist` loads neither torch nor Hydra nor pandas."""
    code = "import sys, audio_mnist; print(sorted({'torch', 'hydra', 'pandas', 'mlflow', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        audio_mnist.nonsense  # noqa: B018


def test_train_sweep_ensemble_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole study in four calls; the sweep takes the run over that train made."""
    write_tones(tmp_path / "tones")
    monkeypatch.chdir(tmp_path)
    trained = audio_mnist.train(OPTIONS)
    assert trained.columns.tolist() == ["run_id", "feature", "model", "fold", "accuracy", "loss"]
    runs = audio_mnist.sweep([*OPTIONS, "feature=mel,mfcc", "fold=0,1"])
    assert runs["status"].tolist() == ["FINISHED"] * 4 and runs["label"].tolist() == ["Mel", "Mel", "MFCC", "MFCC"]
    first = runs.iloc[0]
    assert first["run_id"] == trained["run_id"][0] and first["loss"] == pytest.approx(trained["loss"][0])
    scores = audio_mnist.ensemble(list(runs["run_id"]))
    assert scores["label"].tolist() == ["Mel", "MFCC", "Ensemble"] and set(scores["n"]) == {24}
    assert all(Path(path).exists() for path in scores.attrs["files"])
    predictor = audio_mnist.load(scores["run_id"][0])
    assert predictor.run_id == audio_mnist.load().run_id
    path = sorted((tmp_path / "tones").rglob("*.wav"))[0]
    samples, rate_hz = soundfile.read(path)
    p = predictor.predict(samples, rate_hz)
    assert p.index.tolist() == ["high", "low", "mid"] and p.sum() == pytest.approx(1)
    table = predictor.predict_files(str(path))
    np.testing.assert_allclose(table.filter(like="p:").iloc[0], p, atol=1e-6)


def test_sweep_returns_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run that cannot be trained is a row with its reason; the other has its score."""
    write_tones(tmp_path / "tones")
    monkeypatch.chdir(tmp_path)
    runs = audio_mnist.sweep([*OPTIONS, "optimizer.lr=1e-3,1e+38", "augment=none", "tracking=none"])
    assert runs["status"].tolist()[0] == "FINISHED"
    assert (runs["status"][1], runs["reason"][1] != "") in [("not run", True), ("FINISHED", False)]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ("fold=9", ConfigError, "fold=9 does not exist: folds.count=5, so fold is 0 to 4"),
        ("feature=nonsense", ConfigError, "feature=nonsense: expected one of gammatone"),
        ("data=folder data.root=gone", DataError, "data.root=.*gone: no such folder"),
    ],
)
def test_train_refuses_as_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: str, error: type, message: str
) -> None:
    """The same messages, as exceptions; nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        audio_mnist.train(overrides)
    assert list(tmp_path.iterdir()) == []


def test_sweep_refuses_as_the_command_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message of the command, without "error:"."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AudioMnistError, match=r"^fold=9 does not exist"):
        audio_mnist.sweep("fold=9")


def test_load_and_ensemble_refuse_as_the_commands_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty store."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"model=latest: no ensemble .*make one with ensemble\.py"):
        audio_mnist.load()
    with pytest.raises(RunError, match="run_ids=latest: no sweep with a finished run"):
        audio_mnist.ensemble()


def test_sweep_stopped_by_ctrl_c_is_closed(tmp_path: Path) -> None:
    """As in a terminal, where the whole process group gets the signal: no run stays RUNNING."""
    write_tones(tmp_path / "tones")
    options = [*OPTIONS[:3], "trainer.batch_size=4", "fold=0,1", "hydra/launcher=basic", "resume_every_s=0"]
    code = f"import audio_mnist; audio_mnist.sweep({[*options, 'trainer.max_epochs=4000', 'trainer.max_steps=null']})"
    command = [sys.executable, "-c", code]
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=default
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert b"KeyboardInterrupt" in errors
    tracker = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist")
    assert {run.status for run in tracker.search(kind="train")} == {"KILLED"}
    assert [run.status for run in tracker.search(kind="sweep")] == ["FAILED"]


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros((2, 800)), r"waveform has shape \(2, 800\): expected \(T,\)"),
        (np.zeros(0), "waveform: it has no samples"),
        (np.zeros(800), "waveform: it is silent"),
        (np.full(800, np.nan), "waveform: it has samples that are NaN or infinite"),
    ],
)
def test_predict_refuses_what_is_no_clip(trained: Trained, waveform: np.ndarray, message: str) -> None:
    """The same checks as of a file."""
    predictor = audio_mnist.load(trained.ensemble, [f"tracking.uri={trained.uri}"])
    with pytest.raises(DataError, match=message):
        predictor.predict(waveform, 8000)


def test_predict_files_with_windows_and_a_bad_file(trained: Trained, tmp_path: Path) -> None:
    """A row per window with its times; the file that cannot be read has the reason and ends nothing."""
    (tmp_path / "bad.wav").write_bytes(b"RIFF nothing")
    predictor = audio_mnist.load(trained.ensemble, f"tracking.uri={trained.uri}")
    table = predictor.predict_files([trained.test[0], tmp_path / "bad.wav"], window_s=0.1)
    good = table[table["error"] == ""]
    assert len(good) >= 2 and good["start_s"].tolist()[:2] == [0.0, 0.05] and good["label"].notna().all()
    assert table["error"].iloc[-1].startswith("not a recording") and pd.isna(table["label"].iloc[-1])


@pytest.mark.slow
def test_notebook_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text pair of docs/notebook.ipynb, cell by cell, with shorter trainings."""
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "notebook.py").read_text()
    assert "trainer.max_steps=300" in text
    text = text.replace("trainer.max_steps=300", "trainer.max_steps=10 trainer.min_epochs=1")
    names: dict = {"__name__": "notebook"}
    exec(compile(text, "docs/notebook.py", "exec"), names)
    assert names["scores"]["label"].tolist()[-1] == "Ensemble"
