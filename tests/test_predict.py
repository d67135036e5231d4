"""`predict.py`: the ensemble's own probabilities for any recordings, nothing lost, nothing fatal."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from audio_mnist.errors import ConfigError, DataError, RunError
from audio_mnist.inference import recordings
from audio_mnist.inference.load import load_predictor
from audio_mnist.inference.predict import predict
from audio_mnist.tracking.tracker import Tracker
from tests.conftest import Trained, composed, run_command

CLASSES = ["high", "low", "mid"]


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"label": str})


@pytest.mark.parametrize("combine", ["mean", "logit_mean", "vote", "stack"])
def test_predictions_are_the_ensembles_own(trained: Trained, tmp_path: Path, combine: str) -> None:
    """The test clips' probabilities equal those that ensemble.py wrote, however the members are joined."""
    expected = trained.join(combine)
    expected = expected[expected["scored"] == "test"].set_index("clip_id")
    assert predict(trained.config(f"[{','.join(trained.test)}]", tmp_path / "out.csv", "batch_size=4")) == 0
    got = table(tmp_path / "out.csv")
    columns = [f"p:{name}" for name in CLASSES]
    assert len(expected) == len(got) == 6
    by_name = {Path(clip).name + Path(clip).parent.name: row for clip, row in expected.iterrows()}
    for row in got.to_dict("records"):
        path = Path(row["path"])
        same = by_name[path.name + path.parent.name]
        np.testing.assert_allclose([row[c] for c in columns], same[columns].astype(float), atol=1e-5)
        assert row["label"] == same["predicted"]


def test_single_run_predicts(trained: Trained, tmp_path: Path) -> None:
    """A training run's id is a model of one member."""
    predictor = load_predictor(trained.tracker, trained.ids[0])
    assert len(predictor.classifiers) == 1
    predict(trained.config(trained.test[0], tmp_path / "out.csv", f"model={trained.ids[0]}"))
    samples, rate = soundfile.read(trained.test[0], dtype="float32")
    p = table(tmp_path / "out.csv").filter(like="p:").to_numpy()
    np.testing.assert_allclose(p, predictor.predict_batch([(samples, rate)]), atol=1e-5)


def test_unreadable_recordings_are_named_at_the_end(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All the others are predicted; stereo and another rate are taken; the count is returned."""
    audio = tmp_path / "audio"
    audio.mkdir()
    (audio / "a.wav").write_bytes(b"RIFF nothing")
    (audio / "b.flac").write_bytes(b"")
    for number in range(7):
        (audio / f"e{number}.wav").write_bytes(b"")
    samples, rate = soundfile.read(trained.test[0])
    soundfile.write(audio / "c.wav", np.stack([samples, samples], axis=1), rate)
    soundfile.write(audio / "d.wav", samples, 11_025)
    (audio / "notes.txt").write_text("no recording")
    with caplog.at_level("INFO"):
        assert predict(trained.config(audio, tmp_path / "out.csv")) == 9
    assert [Path(path).name for path in table(tmp_path / "out.csv")["path"]] == ["c.wav", "d.wav"]
    assert "9 recordings could not be read" in caplog.text and "a.wav: not a recording" in caplog.text
    assert "  8 recordings: the file is empty" in caplog.text and "    and 3 more" in caplog.text
    named = pd.read_csv(tmp_path / "out.unreadable.csv")
    assert len(named) == 9 and set(named["reason"][1:]) == {"the file is empty (0 bytes)"}
    for path in named["path"]:
        Path(path).unlink()
    assert predict(trained.config(audio, tmp_path / "out.csv")) == 0
    assert not (tmp_path / "out.unreadable.csv").exists()


def test_stopped_prediction_goes_on(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut in mid-line, the same command predicts the rest, and the whole equals an undisturbed one."""
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    predict(trained.config(trained.tones, whole))
    text = whole.read_bytes()
    lines = text.splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:10]) + lines[10][:20])
    decoded = []
    decode = recordings.decode
    monkeypatch.setattr(recordings, "decode", lambda path, limits: (decoded.append(path), decode(path, limits))[1])
    predict(trained.config(trained.tones, cut))
    first = 1  # decoded again: are its rows still what the model says?
    assert cut.read_bytes() == text and len(decoded) == 24 - 9 + first
    predict(trained.config(trained.tones, cut, "resume=false"))
    assert cut.read_bytes() == text and len(decoded) == 24 - 9 + first + 24


def test_half_of_a_long_recording_is_predicted_again(trained: Trained, tmp_path: Path) -> None:
    """Its windows that were written before the disk was full do not make the others be missed."""
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    audio = f"[{','.join(trained.test[:2])}]"
    predict(trained.config(audio, whole, "window_s=0.1"))
    lines = whole.read_bytes().splitlines(keepends=True)
    for kept in (lines, lines[:-2], [*lines[:-2], lines[-2][:9]], lines[:3]):
        cut.write_bytes(b"".join(kept))
        predict(trained.config(audio, cut, "window_s=0.1"))
        assert cut.read_bytes() == whole.read_bytes()


def test_middle_of_a_long_recording_is_what_the_whole_has_there(trained: Trained, tmp_path: Path) -> None:
    """What is cut off to save memory changes no answer, resampled or not."""
    predictor = load_predictor(trained.tracker, "latest")
    for rate in (8000, 11_025):
        long = (0.1 * np.random.default_rng(rate).standard_normal(round(9.3 * rate))).astype(np.float32)
        soundfile.write(tmp_path / f"{rate}.wav", long, rate, subtype="FLOAT")
        assert len(recordings._middle(long, rate, 4 * predictor.window_s)) < len(long) / 2
        predict(trained.config(tmp_path / f"{rate}.wav", tmp_path / f"{rate}.csv"))
        p = table(tmp_path / f"{rate}.csv").filter(like="p:").to_numpy()
        np.testing.assert_allclose(p, predictor.predict_batch([(long, rate)]), atol=1e-5)
    assert predictor.window_s <= predictor.used_s < 2 * predictor.window_s
    predictor.classifiers[0].placements = 5
    assert predictor.used_s == np.inf  # spread over all of a clip


def test_output_of_another_model_is_not_touched(trained: Trained, tmp_path: Path) -> None:
    """A csv with other columns is refused by name and kept."""
    output = tmp_path / "out.csv"
    output.write_text("path,label\nx,y\n")
    with pytest.raises(DataError, match=r"out\.csv: it has other columns"):
        predict(trained.config(trained.tones, output))
    assert output.read_text() == "path,label\nx,y\n"


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (["model={0}"], ["model={2}"]),
        (["window_s=0.3"], ["window_s=0.2"]),
        (["window_s=0.1"], ["window_s=0.1", "hop_s=0.1"]),
    ],
    ids=["model", "window_s", "hop_s"],
)
def test_rows_of_another_model_are_not_gone_on_from(
    trained: Trained, tmp_path: Path, before: list[str], now: list[str]
) -> None:
    """Another model of the same classes, or other windows: one file never has rows of both."""
    output = tmp_path / "out.csv"
    predict(trained.config(trained.test[0], output, *(b.format(*trained.ids) for b in before)))
    text = output.read_text()
    other = trained.config(trained.tones, output, *(n.format(*trained.ids) for n in now))
    with pytest.raises(DataError, match=r"out\.csv: this model gives other answers"):
        predict(other)
    assert output.read_text() == text


def test_windows_slide_over_a_long_recording(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each window's row is what the model says of that piece alone; the last one may be shorter."""
    rng, rate = np.random.default_rng(0), 8000
    long = (0.1 * rng.standard_normal(round(2.2 * rate))).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", long, rate, subtype="FLOAT")
    config = trained.config(tmp_path / "long.wav", tmp_path / "out.csv", "window_s=0.5", "hop_s=0.4", "batch_size=2")
    predict(config)
    got = table(tmp_path / "out.csv")
    np.testing.assert_allclose(got["start_s"], [0, 0.4, 0.8, 1.2, 1.6, 2.0], atol=1e-3)
    np.testing.assert_allclose(got["end_s"], [0.5, 0.9, 1.3, 1.7, 2.1, 2.2], atol=1e-3)
    predictor = load_predictor(trained.tracker, "latest")
    pieces = [
        (long[round(s * rate) : round(e * rate)], rate) for s, e in zip(got["start_s"], got["end_s"], strict=True)
    ]
    np.testing.assert_allclose(got.filter(like="p:").to_numpy(), predictor.predict_batch(pieces), atol=1e-5)
    with caplog.at_level("INFO"):
        predict(trained.config(tmp_path / "long.wav", tmp_path / "middle.csv"))
    assert "the model used only the middle of 1 recording much longer than its window" in caplog.text


def test_find_audio(tmp_path: Path) -> None:
    """A file, a folder at any depth, a csv beside its files, a list of all; each recording once."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.wav", "deep/er/a.FLAC"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "list.csv").write_text("path,label\nb.wav,x\n")
    both = [str(tmp_path / "b.wav"), str(tmp_path / "deep/er/a.FLAC")]
    assert recordings.find_audio(str(tmp_path)) == both
    assert recordings.find_audio([str(tmp_path / "list.csv"), str(tmp_path)]) == both
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no recordings found"):
        recordings.find_audio(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="no such file or folder"):
        recordings.find_audio(str(tmp_path / "gone.wav"))


def test_models_that_cannot_predict_are_refused(trained: Trained, tmp_path: Path) -> None:
    """Unknown, empty store, an ensemble of an older version, members that are gone."""
    with pytest.raises(RunError, match="model=0123: neither a run nor a registered model"):
        load_predictor(trained.tracker, "0123")
    with pytest.raises(RunError, match=r"model=latest: no ensemble .*make one with ensemble\.py"):
        load_predictor(Tracker(f"sqlite:///{tmp_path}/mlflow.db", "audio-mnist"), "latest")
    old = trained.tracker.start("old", kind="ensemble", tags={}, params={})
    old.end("FINISHED")
    with pytest.raises(RunError, match=r"ensemble\.json cannot be read .*make the ensemble again"):
        load_predictor(trained.tracker, old.id)
    trained.tracker.client.delete_run(old.id)
    sweep = trained.tracker.start("sweep", kind="sweep", tags={}, params={})
    with pytest.raises(RunError, match="not an ensemble or a training run but a sweep"):
        load_predictor(trained.tracker, sweep.id)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "audio is not set"),
        (["audio=[]"], r"audio=\[\]: expected at least one"),
        (["audio=x", "hop_s=1"], "hop_s=1.0: expected above 0, with window_s"),
        (["audio=x", "window_s=0"], "window_s=0.0"),
        (["audio=x", "tracking.uri=null"], "tracking.uri=None"),
        (["audio=x", "+nonsense=1"], "unknown config key nonsense"),
    ],
)
def test_validate_predict_refuses(overrides: list[str], message: str) -> None:
    """The message names the key."""
    with pytest.raises(ConfigError, match=message):
        predict(composed(*overrides, name="predict"))


def test_command(trained: Trained, tmp_path: Path) -> None:
    """`python predict.py` as a person runs it: the csv, what it says, its exit statuses."""
    done = run_command(tmp_path, "predict.py", f"audio={trained.tones}", f"tracking.uri={trained.uri}")
    assert done.returncode == 0, done.stderr
    assert len(table(tmp_path / "predictions.csv")) == 24
    assert "24 recordings by ensemble of 4" in done.stdout and "s0_0.wav: " not in done.stdout
    one = ("audio=[" + str(trained.tones / "low" / "s0_0.wav") + "]", "output=one.csv", f"tracking.uri={trained.uri}")
    done = run_command(tmp_path, "predict.py", *one)
    row = table(tmp_path / "one.csv").iloc[0]
    shown = re.search(r"low/s0_0.wav: (\w+) \((0|1)\.(\d\d)\)\n", done.stdout)
    assert shown is not None and shown[1] == row["label"], done.stdout
    largest = row.filter(like="p:").astype(float).max()
    assert float(f"{shown[2]}.{shown[3]}") == pytest.approx(largest, abs=0.006)
    timed = run_command(tmp_path, "predict.py", *one[::2], "output=timed.csv", "window_s=0.2")
    assert re.search(r"s0_0.wav, 0.000 to 0.200 s: \w+ \(", timed.stdout), timed.stdout
    (tmp_path / "bad.wav").write_bytes(b"x")
    done = run_command(tmp_path, "predict.py", "audio=bad.wav", "output=o.csv", f"tracking.uri={trained.uri}")
    assert done.returncode == 2 and "bad.wav: not a recording" in done.stdout
    done = run_command(tmp_path, "predict.py", "audio=gone.wav", f"tracking.uri={trained.uri}")
    assert done.returncode == 1 and done.stderr.startswith("error: audio=gone.wav: no such file")
