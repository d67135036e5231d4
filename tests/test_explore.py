"""`explore.py`: its numbers are the corpus', its pictures are there, what is wrong is named."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audio_mnist import cli, features
from audio_mnist.config import to_plain
from audio_mnist.data.prepare import prepare
from audio_mnist.explore.describe import describe, summary
from audio_mnist.report import plots
from audio_mnist.tracking.tracker import Tracker
from tests.conftest import composed, run_command, write_tones


@pytest.fixture
def odd_tones(tones: Path) -> Path:
    """The tones with a copy, a nearly silent, a clipped and an unreadable clip, and one at another rate."""
    first = sorted((tones / "low").glob("*.wav"))[0]
    (tones / "low" / "s9_copy.wav").write_bytes(first.read_bytes())
    quiet, clipped, other = 0.1 * np.random.default_rng(5).standard_normal((3, 2000))
    soundfile.write(tones / "mid" / "s9_quiet.wav", 0.002 * quiet, 8000)
    soundfile.write(tones / "mid" / "s9_clipped.wav", np.clip(20 * clipped, -1, 1), 8000)
    soundfile.write(tones / "high" / "s9_rate.wav", other, 11_025)
    (tones / "high" / "s9_bad.wav").write_bytes(b"RIFF")
    return tones


def test_describe_finds_what_is_wrong_with_clips(odd_tones: Path) -> None:
    """Copies, nearly silent and clipped clips, and each file's own rate."""
    data = to_plain(composed("data=folder", f"data.root={odd_tones}", "data.on_bad_clip=skip"))["data"]
    table = describe(prepare(data)).set_index("clip_id")
    assert table.index[table["duplicate"]].tolist() in (["low/s9_copy.wav"], ["low/s0_0.wav"])
    assert table.index[table["quiet"]].tolist() == ["mid/s9_quiet.wav"]
    assert table.index[table["clipped"]].tolist() == ["mid/s9_clipped.wav"]
    assert table["native_hz"].to_dict()["high/s9_rate.wav"] == 11_025
    assert (table["native_hz"] == 8000).sum() == len(table) - 1


def test_summary_says_that_training_would_stop(tones: Path) -> None:
    """Four speakers do not make five folds; where the folds can be cut nothing is said."""
    pattern = "data.settings.speaker_pattern='(?P<speaker>s.)_'"
    corpus = prepare(to_plain(composed("data=folder", f"data.root={tones}", pattern))["data"])
    folds = {"count": 5, "group": "auto", "seed": 0, "from": "auto"}
    text = summary(corpus, describe(corpus), folds)
    assert "training stops on this corpus: folds.count=5" in text, text
    assert "training stops" not in summary(corpus, describe(corpus), folds | {"count": 4})


def test_explore_command(odd_tones: Path, tmp_path: Path) -> None:
    """As a person runs it: the table, the pictures in the run's folder and in MLflow."""
    pattern = "data.settings.speaker_pattern='(?P<speaker>s.)_'"
    done = run_command(
        tmp_path, "explore.py", "data=folder", f"data.root={odd_tones}", pattern, "feature=mel,mfcc", "augment=default"
    )
    assert done.returncode == 0, done.stderr
    rows = {line.split()[1]: line.split("│")[2:] for line in done.stdout.splitlines() if line.startswith("│")}
    cells = {name: [cell.strip() for cell in row] for name, row in rows.items()}
    assert cells["mid"][:3] == ["10", "0", "5"] and cells["mid"][6:9] == ["0", "1", "1"]
    assert cells["all"][:3] == ["28", "0", "5"] and cells["low"][6] == "1"
    assert "8000 Hz (27 clips), 11025 Hz (1 clips)" in done.stdout
    assert "unusable (named above): 1 clips; training stops on them" in done.stdout and "s9_bad.wav" in done.stdout
    names = {"clip", "examples_mel", "augmented_mel", "examples_mfcc", "augmented_mfcc", "durations", "classes"}
    folder = next((tmp_path / "mlruns" / "hydra").iterdir())
    assert {path.stem for path in folder.glob("*.png")} == names
    assert all(path.stat().st_size > 10_000 for path in folder.glob("*.png"))
    tracker = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist")
    run = tracker.search(kind="explore")[0]
    assert run.status == "FINISHED" and run.metrics["duplicates"] == 1
    artifacts = {Path(item.path).stem for item in tracker.client.list_artifacts(run.id, "figures")}
    assert artifacts == names


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["features=[nonsense]"], "features: nonsense is none of gammatone, mel"),
        (["label=nonsense"], "label=nonsense: no training clip has it; the corpus has high, low, mid"),
        (["clip=nonsense"], "clip=nonsense: the corpus has no clip of that id, such as high/"),
        (["examples=0"], "examples=0: expected 1 to 100"),
        (["data.root=/nonexistent"], "data.root=/nonexistent"),
    ],
)
def test_explore_refuses(tones: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    """One line that names the key and what there is."""
    root = [] if any(o.startswith("data.root") for o in overrides) else [f"data.root={tones}"]
    done = run_command(tmp_path, "explore.py", "data=folder", *root, *overrides)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and message in done.stderr
    assert "Traceback" not in done.stderr


def test_explore_arguments() -> None:
    """`feature=mel,mfcc` needs no -m here."""
    assert cli.explore_arguments(["data=fsdd", "feature=mel,mfcc"]) == ["data=fsdd", "features=[mel,mfcc]"]


def test_spectrograms_have_real_axes() -> None:
    """A tone of 1 kHz from 0.5 s on: the brightest place is there on both axes."""
    settings = to_plain(composed("feature=mel"))["feature"]
    front_end = features.build(settings, 8000)
    t = np.arange(8000) / 8000
    clip = (np.sin(2 * np.pi * 1000 * t) * (t >= 0.5)).astype(np.float32)
    figure = plots.anatomy(clip, 8000, {"mel": front_end}, "tone")
    axis = figure.axes[1]
    image = axis.images[0]
    x = np.asarray(image.get_array())
    row = int(x.mean(axis=1).argmax())
    assert abs(front_end.row_values()[row] - 1000) < 60
    left, right, bottom, top = image.get_extent()
    seconds = left + (np.arange(x.shape[1]) + 0.5) * (right - left) / x.shape[1]
    onset = seconds[int((x[row] > x[row].max() - 10).argmax())]
    assert abs(onset - 0.5) < 0.03 and (bottom, top) == (-0.5, 39.5)
    assert axis.get_ylabel() == "frequency (Hz)" and figure.axes[-1].get_ylabel() == "dB"
    figure.canvas.draw()
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["2k", "1k", "500", "200"]
    at_1k = axis.get_yticks()[labels.index("1k")]
    assert abs(np.interp(at_1k, np.arange(40), front_end.row_values()) - 1000) < 10


@pytest.mark.parametrize("name", ["mel", "mfcc", "pcen", "gammatone", "spectrogram", "mel_original", "mfcc_original"])
def test_grid_of_every_feature(name: str) -> None:
    """Each shipped feature can be drawn; its rows are as many as its values."""
    front_end = features.build(to_plain(composed(f"feature={name}"))["feature"], 20_000)
    x = front_end(0.1 * torch.randn(5, 1, 20_000))[:, 0].numpy()
    assert len(front_end.row_values()) == x.shape[1]
    assert len(plots.grid(x, front_end, name).axes) == 9  # two rows of four, and the colours


def test_explore_without_augmentation_and_tracking(tmp_path: Path) -> None:
    """No augmented pictures, no database."""
    write_tones(tmp_path / "tones", clips=2)
    done = run_command(tmp_path, "explore.py", "data=folder", f"data.root={tmp_path / 'tones'}", "tracking=none")
    assert done.returncode == 0, done.stderr
    folder = next((tmp_path / "mlruns" / "hydra").iterdir())
    assert not list(folder.glob("augmented*")) and not list(tmp_path.rglob("*.db"))
