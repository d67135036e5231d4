"""A person's own feature, net and augmentation, outside the package."""

import csv
from pathlib import Path

import pandas as pd
import pytest

from audio_mnist import features, models
from audio_mnist.config import load_modules, module_digests
from audio_mnist.errors import ConfigError
from audio_mnist.features.mel import LogMel
from audio_mnist.report.tables import member_labels
from audio_mnist.training import dry_run
from tests.conftest import run_command, write_tones

PARTS = """
import torch
from audio_mnist.augment import Augmentation
from audio_mnist.features import FrontEnd
from audio_mnist.models import Model


class Envelope(FrontEnd):
    name = "envelope"
    title = "Envelope"

    def transform(self, waveform):
        frames = torch.nn.functional.pad(waveform, (0, 16 * self.hop)).unfold(-1, 16 * self.hop, self.hop)
        power = torch.fft.rfft(frames).abs()[..., 1:33].log1p()  # (B, 1, N, 32)
        return power.transpose(-1, -2)[..., : 1 + waveform.shape[-1] // self.hop]


class Linear(Model):
    name = "linear"

    def __init__(self, classes, in_channels, rows, *, dropout: float = 0.0, **base):
        super().__init__(classes, in_channels, rows, **base)
        self.layer = torch.nn.Linear(in_channels * rows, classes)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x):
        return self.layer(self.dropout(self.scaled(x).mean(dim=3).flatten(1)))


class Invert(Augmentation):
    name = "invert"

    def augment(self, x, draws):
        return -x
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder beside the clips: one file of code, a choice for the feature and one for the net."""
    write_tones(tmp_path / "tones")
    for path, text in {
        "own/parts.py": PARTS,
        "own/conf/feature/envelope.yaml": "name: envelope\nhop_ms: 4.0\n",
        "own/conf/model/linear.yaml": "name: linear\ninput_norm: true\ndropout: 0.1\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def test_own_parts_in_a_sweep_an_ensemble_and_a_prediction(own: Path) -> None:
    """Two workers train Envelope and Mel on a net and with an augmentation of one's own; both then predict."""
    done = run_command(
        own,
        *("train.py", "--config-dir", "own/conf", "data=folder", "data.root=tones", "folds.count=2"),
        *("feature=envelope,mel", "model=linear", "fold=0,1", "+augment.invert.probability=0.5"),
        *("modules=[own/parts.py]", "trainer.max_epochs=2", "trainer.batch_size=4", "hydra.launcher.n_jobs=2", "-m"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "│ Envelope │" in done.stdout and "4 of 4 runs finished" in done.stdout
    refused = run_command(own, "ensemble.py", "run_ids=latest")
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert (
        "name=linear: expected one of bcresnet, pooled, resnet, svm, or" in refused.stderr
        and "modules=[FILE.py]" in refused.stderr
    )
    joined = run_command(own, "ensemble.py", "run_ids=latest", "modules=[own/parts.py]")
    assert joined.returncode == 0, joined.stderr
    predicted = run_command(own, "predict.py", "audio=tones", "modules=[own/parts.py]")
    assert predicted.returncode == 0, predicted.stderr
    with open(own / "predictions.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 1 + 24
    assert pd.read_csv(own / "predictions.csv").filter(like="p:").sum(axis=1).sub(1).abs().max() < 1e-4


def test_own_module_that_changed_is_imported_again_and_is_another_run(tmp_path: Path) -> None:
    """As in a notebook: the new class is used, and its text is part of a run's identity."""
    path = tmp_path / "mine.py"
    code = "from audio_mnist.features import FrontEnd\nclass Mine(FrontEnd):\n    name, title = 'mine_{0}', '{0}'\n"
    path.write_text(code.format("one"))
    before = module_digests([str(path)])
    assert features.title_of("mine_one") == "one" and module_digests([str(path)]) == before
    path.write_text(code.format("two"))
    assert module_digests([str(path)]) != before and features.title_of("mine_two") == "two"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, r"mine\.py cannot be imported \(FileNotFoundError"),
        ("import no_such_package", r"mine\.py cannot be imported \(ModuleNotFoundError: No module named 'no_such_pack"),
        ("1 / 0", r"mine\.py cannot be imported \(ZeroDivisionError: division by zero\)"),
        (
            "from audio_mnist.features import FrontEnd\nclass Mel(FrontEnd):\n    name = 'mel'",
            "its name 'mel' is taken by audio_mnist.features.mel.LogMel; choose another",
        ),
    ],
)
def test_own_module_that_cannot_be_used_is_named(tmp_path: Path, code: str | None, message: str) -> None:
    """One clear error with the file and the reason; the built-in feature stays what it was."""
    path = tmp_path / "mine.py"
    if code is not None:
        path.write_text(code)
    with pytest.raises(ConfigError, match=message):
        load_modules([str(path)])
    assert features.FrontEnd.registry["mel"].__module__ == "audio_mnist.features.mel"


def test_own_package_is_known_by_all_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module by name: the text that was imported counts; an edit asks for a restart, also of a file below it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    (tmp_path / "my_package").mkdir()
    for name in ("__init__", "nets"):
        (tmp_path / "my_package" / f"{name}.py").write_text("# empty\n")
    before = module_digests(["my_package"])
    assert module_digests(["my_package"]) == before
    (tmp_path / "my_package" / "nets.py").write_text("# edited\n")
    with pytest.raises(ConfigError, match="my_package changed since it was imported; restart Python"):
        module_digests(["my_package"])


def test_own_feature_does_not_take_the_title_of_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass of LogMel has a row of its own beside Mel; equal titles are told apart by name."""
    monkeypatch.setattr(features.FrontEnd, "registry", dict(features.FrontEnd.registry))

    class MyMel(LogMel):
        name = "my_mel"

    class Other(LogMel):
        name, title = "other_mel", "Mel"

    recipes = {name: {"feature": {"name": name}} for name in ("mel", MyMel.name)}
    assert member_labels(recipes) == {"mel": "Mel", "my_mel": "my_mel"}
    recipes = {name: {"feature": {"name": name}} for name in ("mel", Other.name)}
    assert member_labels(recipes) == {"mel": "Mel (mel)", "other_mel": "Mel (other_mel)"}


def test_own_net_with_any_annotations_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """list[int] and strings as annotations are legal; a net that breaks on the feature is one clear error."""
    monkeypatch.setattr(models.Model, "registry", dict(models.Model.registry))

    class Wide(models.Model):
        name = "wide"

        def __init__(self, classes, in_channels, rows, *, widths: list[int], note: "str | None" = None, **base):
            super().__init__(classes, in_channels, rows, **base)

        def forward(self, x):
            return x.view(1, 7)

    net = models.build({"name": "wide", "widths": [1, 2]}, 3)
    with pytest.raises(ConfigError, match=r"model\.widths=3: expected list"):
        models.build({"name": "wide", "widths": 3}, 3)
    with pytest.raises(ConfigError, match=r"model\.note=3: expected str"):
        models.build({"name": "wide", "widths": [1], "note": 3}, 3)
    front_end = features.build({"name": "mel", "n_mels": 40, "window_ms": 32.0, "hop_ms": 25.6}, 8000)
    message = r"model=wide cannot take feature=mel of shape \(1, 1, 40, 40\) \(RuntimeError"
    with pytest.raises(ConfigError, match=message):
        dry_run.pass_silence(front_end, net, 8000)
