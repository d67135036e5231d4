"""Small synthetic corpora, the real recordings where they exist, and the commands as a person runs them."""

import csv
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import soundfile
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from tests.forked import Commands

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request

PROJECT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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
    folder = PROJECT / "conf" / (name if name in ("predict", "demo") else "")
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


_commands = functools.cache(Commands)


def run_command(folder: Path, *arguments: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` as a person runs it, in another folder than the project's, but with its imports done."""
    script, *rest = arguments
    return _commands().run(folder, PROJECT / script, *rest, timeout=timeout)


def free_port() -> int:
    """A port of this computer that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class MlflowServer:
    """`mlflow server` or `mlflow ui`, which can be stopped and started again at its address.

    Args:
        folder: that it is started in.
        arguments: of the command.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        port = str(free_port())
        self.address, self.folder = f"http://127.0.0.1:{port}", folder
        self._command = [sys.executable, "-m", "mlflow", *arguments, "--host", "127.0.0.1", "--port", port]
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it, and return when it answers."""
        self._process = subprocess.Popen(
            [*self._command, "--workers", "1"],
            cwd=self.folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=1)
                return
            except OSError:
                time.sleep(0.5)
        raise AssertionError("the MLflow server does not answer")

    def stop(self) -> None:
        """End it at once, as if the machine had gone."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)
            self._process = None


class Trained:
    """Two features, two folds, their stacked ensemble, and test clips that none of them saw."""

    def __init__(self, folder: Path) -> None:
        from audio_mnist.tracking.tracker import Tracker, newest
        from audio_mnist.training.run import train

        self.folder, self.tones = folder, write_tones(folder / "tones")
        paths = sorted(self.tones.rglob("*.wav"))
        with open(folder / "clips.csv", "w", newline="") as file:
            rows = [(p, p.parent.name, "test" if p.stem[-1] in "67" else "train") for p in paths]
            csv.writer(file).writerows([("path", "label", "split"), *rows])
        self.test = [str(path) for path, _, split in rows if split == "test"]
        self.uri = f"sqlite:///{folder}/mlruns/mlflow.db"
        for feature in ("mel", "mfcc"):
            for fold in (0, 1):
                train(
                    composed(
                        *("data=csv", f"data.manifest={folder}/clips.csv", "folds.count=2", "trainer.max_epochs=3"),
                        *("trainer.batch_size=4", "trainer.accelerator=cpu", f"tracking.uri={self.uri}"),
                        *(f"feature={feature}", f"fold={fold}"),
                    )
                )
        self.tracker = Tracker(self.uri, "audio-mnist")
        self.ids = [run.id for run in self.tracker.search(kind="train")]
        self.join("stack")
        ensemble = newest(self.tracker.search(kind="ensemble"))
        assert ensemble is not None
        self.ensemble = ensemble.id  # of all four; other tests may make newer ones

    def join(self, combine: str, *overrides: str) -> pd.DataFrame:
        from audio_mnist.ensembles.run import ensemble

        ids = f"run_ids=[{','.join(self.ids)}]"
        cfg = composed(ids, f"combine={combine}", f"tracking.uri={self.uri}", *overrides, name="ensemble")
        ensemble(cfg, self.folder / combine)
        return pd.read_csv(self.folder / combine / "predictions.csv", dtype={"label": str})

    def config(self, audio: object, output: Path, *overrides: str) -> DictConfig:
        return composed(f"audio={audio}", f"output={output}", f"tracking.uri={self.uri}", *overrides, name="predict")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained once for all tests that only read it, or add ensembles to it."""
    return Trained(tmp_path_factory.mktemp("trained"))


class Browser:
    """Headless Chromium with a fake microphone.

    Attributes:
        elsewhere: addresses of other hosts than this computer that pages asked for.
    """

    def __init__(self, chromium: object) -> None:
        self._chromium, self.elsewhere = chromium, []

    @contextmanager
    def open(self, address: str) -> Iterator["Page"]:
        """A new tab; its waits end after a minute."""
        context = self._chromium.new_context(viewport={"width": 1500, "height": 1100}, permissions=["microphone"])
        try:
            tab = context.new_page()
            tab.set_default_timeout(60_000)
            tab.on("request", self._note)
            tab.goto(address)
            yield tab
        finally:
            context.close()

    def _note(self, request: "Request") -> None:
        if not request.url.startswith(("http://127.0.0.1", "file:", "data:", "blob:")):
            self.elsewhere.append(request.url)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One for all tests; they are skipped where there is no Chromium."""
    if not CHROMIUM:
        pytest.skip("no Chromium")
    from playwright.sync_api import sync_playwright

    quiet = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync")
    fake = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-component-update", *quiet, *fake]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield Browser(chromium)
        chromium.close()
