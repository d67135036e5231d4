"""An ensemble as an ONNX graph, as a registered model, behind a server: always the same probabilities."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import soundfile
import torch

from audio_mnist.errors import ConfigError, RunError
from audio_mnist.inference.load import load_predictor
from audio_mnist.inference.predict import predict
from audio_mnist.inference.predictor import Predictor
from audio_mnist.schema import validate_ensemble
from audio_mnist.scoring.mixture import Mixture
from audio_mnist.serving import onnx_graph, register
from audio_mnist.system import devices
from audio_mnist.tracking.registry import MODEL
from audio_mnist.tracking.tracker import newest
from tests.conftest import Trained, composed, run_command


@pytest.mark.parametrize("combine", ["mean", "logit_mean", "vote", "stack"])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_graph_joins_members_as_the_mixture_does(combine: str, temperature: float) -> None:
    """Five members of two recipes, in torch and in numpy."""
    p = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0)).mul(3).softmax(dim=2)
    mixture = Mixture(("a", "a", "b", "b", "b"), combine, {"a": 0.3, "b": 0.7}, temperature)
    np.testing.assert_allclose(onnx_graph._mixed(mixture, p).numpy(), mixture(p.numpy()), atol=1e-6)


def windows_of(session: onnxruntime.InferenceSession, clips: list[tuple[np.ndarray, int]]) -> dict[str, np.ndarray]:
    """What the metadata asks for, made here from its words alone."""
    import soxr

    described = json.loads(session.get_modelmeta().custom_metadata_map["audio_mnist"])
    inputs = {}
    for window in described["windows"]:
        rows = []
        for samples, own_hz in clips:
            x = (
                samples
                if own_hz == window["sample_rate_hz"]
                else soxr.resample(samples, own_hz, window["sample_rate_hz"])
            )
            slack = window["samples"] - len(x)
            shift = int(np.rint(abs(slack) * window["place"]))
            row = np.zeros(window["samples"], np.float32)
            if slack >= 0:
                row[shift : shift + len(x)] = x
            else:
                row[:] = x[shift : shift + window["samples"]]
            rows.append(row)
        inputs[window["name"]] = np.stack(rows)
    return inputs


def noises(rates_hz: tuple[int, ...] = (8000, 8000, 11025, 16000)) -> list[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(900 + 2500 * i).astype(np.float32), hz) for i, hz in enumerate(rates_hz)]


def test_graph_alone_under_onnxruntime_equals_the_predictor(trained: Trained, tmp_path: Path) -> None:
    """Two features, one of them at another rate and at two placements; one clip, several, silence."""
    loaded = load_predictor(trained.tracker, "latest")
    mel, mfcc = (next(c for c in loaded.classifiers if c.hparams.feature["name"] == name) for name in ("mel", "mfcc"))
    placed = type(mel)(**dict(mel.hparams) | {"views": {"placements": 2, "speeds": [1.0, 1.1]}}).eval()
    slow = dict(mfcc.hparams) | {"sample_rate_hz": 6000, "clip_samples": 2000}
    predictor = Predictor("x", "", (mel, placed, type(mfcc)(**slow).eval()), Mixture(tuple("abc"), "mean", {}, 0.5))
    onnx_graph.export(predictor, tmp_path / "graph.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "graph.onnx")
    assert len(session.get_inputs()) == 4  # mel's centre, its two other places, the other rate
    for clips in (noises(), noises()[:1], [(np.zeros(4000, np.float32), 8000)] * 2):
        p, members = session.run(["probabilities", "members"], windows_of(session, clips))
        np.testing.assert_allclose(members, predictor.member_probabilities(clips), atol=1e-5)
        np.testing.assert_allclose(p, predictor.predict_batch(clips), atol=1e-5)


@pytest.fixture(scope="module")
def registered(trained: Trained) -> Trained:
    trained.join("stack", "register=tones")
    return trained


def test_registered_model_holds_a_graph_and_text_alone(registered: Trained) -> None:
    """Nothing in it is pickled, and its code names no module of this package."""
    run = newest(registered.tracker.search(kind="ensemble"))
    assert run is not None
    with registered.tracker.artifact(run.id, MODEL) as folder:
        files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        assert files == {
            *("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "pyfunc.py", "artifacts/ensemble.onnx")
        }
        code = (folder / "pyfunc.py").read_text()
        needs = {line.split("==")[0] for line in (folder / "requirements.txt").read_text().split()}
    assert "import audio_mnist" not in code and "from audio_mnist" not in code
    assert needs == {"mlflow", "numpy", "pandas", "soxr", "onnxruntime"}


def test_predict_finds_a_registered_model_by_name_alias_and_version(registered: Trained, tmp_path: Path) -> None:
    """The newest version, the alias, a version by number, with or without models:/."""
    run = newest(registered.tracker.search(kind="ensemble"))
    assert run is not None
    first = registered.tracker.client.get_model_version("tones", "1").run_id
    for name in ("tones", "tones@champion", "models:/tones@champion"):
        assert load_predictor(registered.tracker, name).run_id == run.id
    assert load_predictor(registered.tracker, "models:/tones/1").run_id == first
    output = tmp_path / "p.csv"
    assert predict(registered.config(registered.test[0], output, "model=tones@champion")) == 0
    assert len(pd.read_csv(output)) == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tones@nobody", "tones has no such version; it has 1, @champion"),
        ("tones/99", "tones has no such version; it has 1, @champion"),
        ("frequencies", "neither a run nor a registered model"),
        ("a'b", "neither a run nor a registered model"),
    ],
)
def test_predict_says_which_versions_there_are(registered: Trained, model: str, message: str) -> None:
    """An unknown name, alias or version."""
    with pytest.raises(RunError, match=message):
        load_predictor(registered.tracker, model)


def test_register_moves_the_alias_to_a_new_version(trained: Trained) -> None:
    """The same name twice: two versions, the alias at the second."""
    predictor = load_predictor(trained.tracker, trained.ids[0])
    assert register.register(trained.tracker, predictor, "again", "best") == 1
    other = load_predictor(trained.tracker, trained.ids[1])
    assert register.register(trained.tracker, other, "again", "best") == 2
    assert load_predictor(trained.tracker, "again@best").run_id == trained.ids[1]


@pytest.mark.parametrize("name", ["a b", "1digit", "../x", "a/b", "a@b", ""])
def test_register_refuses_names_that_cannot_be_looked_up(name: str) -> None:
    """Before anything is predicted."""
    with pytest.raises(ConfigError, match=f"register={name}: expected a letter"):
        register.check(name)


@pytest.mark.parametrize("alias", ["latest", "a b", "1"])
def test_register_refuses_aliases_that_mlflow_would(alias: str) -> None:
    """latest is MLflow's own."""
    with pytest.raises(ConfigError, match=f"alias={alias}: expected letters"):
        validate_ensemble(composed("run_ids=latest", f"alias='{alias}'", name="ensemble"))


def test_register_names_the_packages_that_it_lacks() -> None:
    """And how to get them."""
    with pytest.raises(ConfigError, match=r"not installed: no_such_package; pip install -e '\.\[serve\]'"):
        devices.require_packages("serve", "json", "no_such_package")


@pytest.fixture(scope="module")
def server(registered: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of `mlflow models serve`, as the README has it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("mlflow"), "models", "serve", "-m", "models:/tones@champion"]
    folder = tmp_path_factory.mktemp("server")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    # the server's own interpreter is found on the path
    environment |= {
        "MLFLOW_TRACKING_URI": registered.uri,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with open(folder / "log.txt", "wb") as log:
        process = subprocess.Popen(
            [*command, "--env-manager", "local", "-p", str(port)],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline, (folder / "log.txt").read_text()
                    time.sleep(0.3)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def post(address: str, body: object) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.slow
def test_server_answers_as_predict_does(server: str, registered: Trained, tmp_path: Path) -> None:
    """The same files at 8, 11.025 and 16 kHz: labels equal, probabilities to 1e-5."""
    paths = list(registered.test[:3])
    for number, (samples, rate_hz) in enumerate(noises()):
        soundfile.write(tmp_path / f"{number}.wav", samples, rate_hz, subtype="FLOAT")
        paths.append(str(tmp_path / f"{number}.wav"))
    output = tmp_path / "p.csv"
    assert predict(registered.config(f"[{','.join(paths)}]", output, "model=tones@champion")) == 0
    expected = pd.read_csv(output, dtype={"label": str}).set_index("path")
    rows = []
    for path in paths:
        samples, rate_hz = soundfile.read(path, dtype="float32")
        rows.append({"waveform": samples.tolist(), "sample_rate_hz": rate_hz})
    status, answer = post(server, {"dataframe_records": rows})
    assert status == 200
    for path, said in zip(paths, answer["predictions"], strict=True):
        assert said.pop("label") == expected.loc[path, "label"]
        assert sum(said.values()) == pytest.approx(1, abs=1e-5)
        for column, p in said.items():
            assert p == pytest.approx(expected.loc[path, column], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"waveform": [], "sample_rate_hz": 8000}, "waveform has shape (0,)"),
        ({"waveform": [0.1], "sample_rate_hz": 0}, "sample_rate_hz=0, expected 1000 to 384000"),
        ({"waveform": [0.1]}, "missing inputs ['sample_rate_hz']"),
        ({"waveform": ["a"], "sample_rate_hz": 8000}, "Failed to convert column waveform"),
        ({"waveform": "file:///etc/passwd", "sample_rate_hz": 8000}, "Failed to convert column waveform"),
        ({"waveform": [[0.1, 0.2]], "sample_rate_hz": 8000}, "Failed to convert column waveform"),
        ({"waveform": [float("nan")], "sample_rate_hz": 8000}, "not finite"),
        ({"waveform": [1e300], "sample_rate_hz": 8000}, "not finite"),
        ({"waveform": [0.0] * 480_001, "sample_rate_hz": 8000}, "60.0 s, expected at most 60 s"),
    ],
)
def test_server_refuses_a_bad_request_with_400_and_a_reason(server: str, row: dict, reason: str) -> None:
    """And still answers good ones."""
    status, answer = post(server, {"dataframe_records": [row]})
    assert status == 400
    assert reason in answer["message"]
    assert "Traceback" not in json.dumps(answer)
    assert post(server, {"dataframe_records": [{"waveform": [0.1, -0.1] * 400, "sample_rate_hz": 8000}]})[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize("body", [b"{garbage", b"[]", b"", b'{"rows": 1}'])
def test_server_refuses_what_is_no_request_with_400(server: str, body: bytes) -> None:
    """Not JSON, or not a request's JSON."""
    assert post(server, body)[0] == 400


@pytest.mark.slow
def test_ensemble_command_registers_and_says_how_to_serve(trained: Trained, tmp_path: Path) -> None:
    """The whole command line."""
    done = run_command(
        tmp_path,
        "ensemble.py",
        f"run_ids=[{','.join(trained.ids[:2])}]",
        "register=said",
        f"tracking.uri={trained.uri}",
    )
    assert done.returncode == 0, done.stderr
    assert "registered: said version 1, alias champion" in done.stdout
    assert f"MLFLOW_TRACKING_URI={trained.uri} mlflow models serve -m models:/said@champion" in done.stdout
    assert load_predictor(trained.tracker, "said").class_names == ["high", "low", "mid"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"dataframe_records": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"dataframe_records": [{"waveform": [' + b"9" * 5000 + b'], "sample_rate_hz": 8000}]}', 400),
        (b'{"dataframe_records": [{"waveform": [' + b"0.125, " * 12_000_000 + b'1], "sample_rate_hz": 8000}]}', 413),
    ],
)
def test_server_refuses_deep_long_and_large_requests(server: str, body: bytes, status: int) -> None:
    """Nested a hundred thousand deep, a number of 5,000 digits, 84 MB; others are answered as before."""
    request = urllib.request.Request(server, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = answer.status
    except urllib.error.HTTPError as error:
        found = error.code
    except (ConnectionError, urllib.error.URLError):  # the server closed while the body was still sent
        found = 413
    assert found == status
    assert post(server, {"dataframe_records": [{"waveform": [0.1, -0.1] * 400, "sample_rate_hz": 8000}]})[0] == 200
