"""`demo.py` in a real browser: a dropped file, a fake microphone, what it refuses, what it keeps to itself."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio_mnist.errors import ConfigError
from audio_mnist.inference import demo
from audio_mnist.inference.load import load_predictor
from audio_mnist.schema import validate_demo
from tests.conftest import PROJECT, Browser, Trained, composed, run_command
from tests.test_attacks import many_channels

pytestmark = pytest.mark.slow


@contextmanager
def serving(trained: Trained, folder: Path, *overrides: str) -> Iterator[str]:
    """`python demo.py` on a free port; gives the address that it prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    of = f"tracking.uri={trained.uri}", f"model={trained.ensemble}"
    with open(folder / "log.txt", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(PROJECT / "demo.py"), *of, "port=0", *overrides],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
        )
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert "http://127.0.0.1:" in said, (folder / "log.txt").read_text()
            yield said.split(": ", 1)[1].split()[0]
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130  # Ctrl-C ends it, and it says so


@pytest.fixture(scope="module")
def address(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(trained, tmp_path_factory.mktemp("demo"), "max_upload_mb=0.2", "max_clip_s=2.0") as where:
        yield where


def test_dropped_file_gets_the_answer_of_predict(address: str, trained: Trained, browser: Browser) -> None:
    """Label, probabilities, each member's answer, the picture; no other host is contacted."""
    recording = trained.test[0]
    samples, rate_hz = soundfile.read(recording, dtype="float32")
    predictor = load_predictor(trained.tracker, trained.ensemble)
    p = predictor.predict_batch([(samples, rate_hz)])[0]
    with browser.open(address) as tab:
        tab.set_input_files("#clip input[type=file]", recording)
        tab.wait_for_selector("#picture img")
        tab.wait_for_selector("#members >> text=mfcc resnet 2")
        answer = tab.inner_text("#answer").split()
        members = tab.inner_text("#members").split()
    assert predictor.class_names[int(p.argmax())] in answer[:2]
    assert f"{100 * p.max():.0f}%" in answer
    said = predictor.member_probabilities([(samples, rate_hz)])[:, 0]
    for own in said:
        assert predictor.class_names[int(own.argmax())] in members
    assert all(name in members for name in ("mel", "mfcc"))
    assert browser.elsewhere == []


def test_microphone_gets_an_answer(address: str, browser: Browser) -> None:
    """Chromium's own fake device, recorded for a second."""
    with browser.open(address) as tab:
        tab.click("#clip button[aria-label='Record audio']")
        tab.click("#clip .record-button")
        tab.wait_for_timeout(1000)
        tab.click("#clip .stop-button")
        tab.wait_for_selector("#picture img")
        assert "%" in tab.inner_text("#answer")


def test_unusable_uploads_are_refused_with_a_reason(address: str, browser: Browser, tmp_path: Path) -> None:
    """Not audio, too long, too large; the page still works."""
    (tmp_path / "noise.wav").write_bytes(b"not audio at all")
    soundfile.write(tmp_path / "long.wav", np.full(3 * 8000, 0.1), 8000)
    soundfile.write(tmp_path / "large.wav", np.full(200_000, 0.1), 8000)
    for name, reason in (
        ("noise.wav", "This recording cannot be used: not a recording"),
        ("long.wav", "This recording cannot be used: 3.0 s long, more than max_clip_s=2"),
        ("large.wav", "maximum allowed size"),
    ):
        with browser.open(address) as tab:
            tab.set_input_files("#clip input[type=file]", tmp_path / name)
            tab.wait_for_selector(".toast-body")
            assert reason in tab.inner_text(".toast-body"), name


def get(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_files_of_the_computer_stay_there(address: str, trained: Trained) -> None:
    """Neither a file's address nor a path in a request reads anything that was not uploaded."""
    for path in ("/etc/passwd", str(PROJECT / "README.md"), trained.test[0], f"{trained.folder}/mlruns/mlflow.db"):
        assert get(f"{address}gradio_api/file={path}") in (403, 404), path
        body = json.dumps({"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}).encode()
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{address}gradio_api/call/predict", body, headers)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{address}gradio_api/call/predict/{event}", timeout=60) as answer:
            said = answer.read().decode()
        assert "event: error" in said and "event: complete" not in said, path
        assert "root:" not in said


def test_page_listens_on_loopback_alone(address: str) -> None:
    """The port answers on no other address of this computer."""
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    listening = Path("/proc/net/tcp").read_text().split("\n")[1:-1]
    hosts = {line.split()[1].split(":")[0] for line in listening if int(line.split()[1].split(":")[1], 16) == port}
    assert hosts == {"0100007F"}


def test_uploads_are_gone_with_the_page(trained: Trained, tmp_path: Path) -> None:
    """The temporary folder of the uploads is removed."""
    before = set(Path(tempfile.gettempdir()).glob("audio-mnist-demo-*"))
    with serving(trained, tmp_path):
        during = set(Path(tempfile.gettempdir()).glob("audio-mnist-demo-*")) - before
        assert len(during) == 1
    assert not during & set(Path(tempfile.gettempdir()).glob("audio-mnist-demo-*"))
    assert (tmp_path / "log.txt").read_text() == "interrupted\n"


def test_note_says_what_part_of_a_clip_was_used(trained: Trained) -> None:
    """A clip longer than the window: the note names both lengths."""
    predictor = load_predictor(trained.tracker, trained.ensemble)
    samples = np.sin(np.arange(32000) / 3).astype(np.float32)
    answer, table, _, note = demo.answer_of(predictor, samples, 16000)
    assert sum(answer.values()) == pytest.approx(1)
    assert table["member"].tolist() == ["mel resnet 1", "mel resnet 2", "mfcc resnet 1", "mfcc resnet 2"]
    assert "This clip is 2.00 s long; the model uses its middle" in note
    assert demo.answer_of(predictor, samples[:100], 16000)[3] == ""


@pytest.mark.parametrize(
    "override", ["port=70000", "max_upload_mb=0", "max_clip_s=0", "threads=0", "tracking.uri=null"]
)
def test_config_out_of_range(override: str) -> None:
    """One clear error that names the key."""
    with pytest.raises(ConfigError, match=override.split("=")[0]):
        validate_demo(composed(override, name="demo"))


def test_taken_port_and_unknown_model_are_one_clear_error(trained: Trained, address: str, tmp_path: Path) -> None:
    """No traceback, and what to change."""
    port = address.rstrip("/").rsplit(":", 1)[1]
    done = run_command(tmp_path, "demo.py", f"tracking.uri={trained.uri}", f"port={port}")
    assert done.returncode == 1 and f"port={port}: cannot listen there" in done.stderr
    assert "Traceback" not in done.stderr
    done = run_command(tmp_path, "demo.py", f"tracking.uri={trained.uri}", "model=nobody")
    assert done.returncode == 1 and done.stderr.startswith("error: model=nobody: neither a run nor a registered model")


def test_a_small_file_that_decodes_to_gigabytes_is_refused_while_others_are_answered(
    trained: Trained, browser: Browser, tmp_path: Path
) -> None:
    """The FLAC of eight channels at 655,350 Hz, and a good clip in another tab at the same time."""
    heavy = many_channels(tmp_path / "heavy.flac")
    with serving(trained, tmp_path) as where, browser.open(where) as first, browser.open(where) as second:
        first.set_input_files("#clip input[type=file]", heavy)
        second.set_input_files("#clip input[type=file]", trained.test[0])
        second.wait_for_selector("#picture img")
        first.wait_for_selector(".toast-body")
        assert "sample rate 655350 Hz, expected 1000 to 384000" in first.inner_text(".toast-body")
