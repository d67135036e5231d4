"""Small made corpora, the real recordings where they are, and the commands as a person runs them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No test reads or leaves anything in the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["AUDIO_MNIST_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real recordings."""
    where = os.environ.get("AUDIO_MNIST_DATA")
    if not where:
        pytest.skip("AUDIO_MNIST_DATA names no folder of real recordings")
    return Path(where).resolve()


def write_tones(root: Path, *, clips: int = 8, speakers: int = 4, rate_hz: int = 8000, seed: int = 0) -> Path:
    """root/CLASS/SPEAKER_N.wav: three classes of noisy tones that a small net can tell apart."""
    rng = np.random.default_rng(seed)
    for label, pitch_hz in (("low", 300), ("mid", 900), ("high", 2500)):
        (root / label).mkdir(parents=True)
        for number in range(clips):
            seconds = rng.uniform(0.15, 0.4)
            t = np.arange(round(seconds * rate_hz)) / rate_hz
            tone = np.sin(2 * np.pi * pitch_hz * rng.uniform(0.9, 1.1) * t) + 0.3 * rng.standard_normal(len(t))
            name = f"s{number % speakers}_{number}.wav"
            soundfile.write(root / label / name, 0.3 * tone, rate_hz, subtype="PCM_16")
    return root


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    """A fresh folder corpus of 24 tones, 3 classes, 4 speakers."""
    return write_tones(tmp_path / "tones")


def composed(*overrides: str, name: str = "train") -> DictConfig:
    """The config that the command line with these overrides has."""
    folder = PROJECT / "conf" / ("predict" if name == "predict" else "")
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose(name, list(overrides))


@pytest.fixture
def tone_config(tones: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """A quick run's config on the tones, tracked in the test's own folder."""

    def make(*overrides: str) -> DictConfig:
        return composed(
            "data=folder",
            f"data.root={tones}",
            "folds.count=2",
            "trainer.max_epochs=1",
            "trainer.batch_size=4",
            "trainer.accelerator=cpu",
            f"tracking.uri=sqlite:///{tmp_path}/mlruns/mlflow.db",
            *overrides,
        )

    return make


def run_command(
    folder: Path, *arguments: str, timeout: float = 400, traced: bool = True
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` as a person runs it, in another folder than the project's.

    With `traced=False` its coverage is not measured: Hydra takes the tracer for
    a debugger and shows full tracebacks.
    """
    script, *rest = arguments
    environment = {key: value for key, value in os.environ.items() if traced or not key.startswith("COVERAGE_")}
    return subprocess.run(
        [sys.executable, str(PROJECT / script), *rest],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
    )
