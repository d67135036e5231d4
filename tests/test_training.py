"""A run in this process: what it trains, logs, keeps and leaves when it dies."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
from omegaconf import DictConfig

from audio_mnist import features
from audio_mnist.augment import Augmenter, Draws
from audio_mnist.config import to_plain
from audio_mnist.data.folds import assign_folds
from audio_mnist.data.prepare import PreparedCorpus, prepare
from audio_mnist.data.split import split_clips
from audio_mnist.data.store import WaveformStore
from audio_mnist.errors import ConfigError
from audio_mnist.schema import validate_train
from audio_mnist.system import devices
from audio_mnist.tracking.predictions import FOLD_PREDICTIONS, logged_predictions, probabilities_of
from audio_mnist.tracking.tracker import BEST_CHECKPOINT, RunRecord, Tracker
from audio_mnist.training import datamodule
from audio_mnist.training.classifier import Classifier, load, predict_together
from audio_mnist.training.datamodule import ClipDataModule, ResidentClips, ShuffledBatches
from audio_mnist.training.run import train
from tests.conftest import PROJECT, write_tones

Config = Callable[..., DictConfig]


def only_run(cfg: DictConfig) -> tuple[Tracker, RunRecord]:
    tracker = Tracker(cfg.tracking.uri, cfg.tracking.experiment)
    runs = tracker.search(kind="train")
    assert len(runs) == 1
    return tracker, runs[0]


def prepared(cfg: DictConfig) -> PreparedCorpus:
    return prepare(to_plain(validate_train(cfg))["data"])


def test_train_logs_what_a_run_must_have(tone_config: Config) -> None:
    """Metrics an epoch and once, tags, parameters, checkpoint, config, predictions, picture; FINISHED."""
    cfg = tone_config("trainer.max_epochs=3", "fold=1")
    metrics = train(cfg).metrics
    tracker, run = only_run(cfg)
    assert run.status == "FINISHED"
    assert run.metrics["best/accuracy"] == metrics["best/accuracy"]
    for name in ("train/loss", "train/accuracy", "fold/loss", "fold/accuracy"):
        history = tracker.client.get_metric_history(run.id, name)
        assert [m.step for m in history] == [0, 1, 2], name
    for name in ("best/accuracy", "best/loss", "best/epoch"):
        assert len(tracker.client.get_metric_history(run.id, name)) == 1, name
    assert run.metrics["best/epoch"] == 2  # selection=last
    params = tracker.client.get_run(run.id).data.params
    assert params["trainer.max_epochs"] == "3" and params["feature.name"] == "mel" and params["fold"] == "1"
    assert {"corpus_fingerprint", "fold_fingerprint", "config_fingerprint"} <= set(run.tags)
    paths = {"config.yaml", "fold_predictions.csv", "checkpoints", "figures"}
    assert paths <= {item.path for item in tracker.client.list_artifacts(run.id)}


def test_train_logged_predictions_are_those_of_its_fold(tone_config: Config) -> None:
    """Clip ids of the scored fold, one probability a class, the accuracy that was logged."""
    cfg = tone_config("fold=1", "trainer.max_epochs=2")
    metrics = train(cfg).metrics
    tracker, run = only_run(cfg)
    corpus = prepared(cfg)
    folds = assign_folds(corpus.manifest, count=2, group="none", seed=0)
    table = logged_predictions(tracker, run.id)
    expected = corpus.manifest.iloc[np.flatnonzero(folds.fold_of == 1)]
    assert table["clip_id"].tolist() == expected["clip_id"].tolist()
    assert table["label"].tolist() == expected["label"].tolist()
    assert [c for c in table.columns if c.startswith("p:")] == ["p:high", "p:low", "p:mid"]
    np.testing.assert_allclose(probabilities_of(table).sum(axis=1), 1, atol=1e-6)
    assert (table["predicted"] == table["label"]).mean() == metrics["best/accuracy"]


def test_train_checkpoint_alone_predicts_the_same(tone_config: Config) -> None:
    """Opened with weights_only, it holds class names, rate and length, and gives the logged probabilities."""
    cfg = tone_config("feature=mfcc", "trainer.max_epochs=2")
    train(cfg)
    tracker, run = only_run(cfg)
    corpus = prepared(cfg)
    folds = assign_folds(corpus.manifest, count=2, group="none", seed=0)
    with tracker.artifact(run.id, BEST_CHECKPOINT) as path:
        raw = torch.load(path, weights_only=True)
        assert raw["hyper_parameters"]["class_names"] == ["high", "low", "mid"]
        assert raw["hyper_parameters"]["sample_rate_hz"] == 8000
        classifier = load(path)
    p = classifier.predict_clips(corpus.store, np.flatnonzero(folds.fold_of == 0))
    np.testing.assert_allclose(p, probabilities_of(logged_predictions(tracker, run.id)), atol=1e-6)


def test_train_builds_its_front_end_once(tone_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaders, net and the scored checkpoint share it."""
    built = []
    build = features.build

    def counting(settings: dict, sample_rate_hz: int) -> features.FrontEnd:
        built.append(settings["name"])
        return build(settings, sample_rate_hz)

    monkeypatch.setattr(features, "build", counting)
    train(tone_config("feature=mfcc"))
    assert built == ["mfcc"]


def test_train_learns_the_tones(tone_config: Config, tmp_path: Path) -> None:
    """Three tones far apart are told apart almost always after 100 steps."""
    root = write_tones(tmp_path / "more", clips=30)
    cfg = tone_config(f"data.root={root}", "trainer.max_epochs=20", "trainer.batch_size=8", "augment=none")
    assert train(cfg).metrics["best/accuracy"] >= 0.9


def test_train_twice_gives_the_same_bits(tone_config: Config, tmp_path: Path) -> None:
    """Weights and predictions of two runs of one config are equal to the bit."""
    states = []
    for name in ("a", "b"):
        cfg = tone_config(f"tracking.uri=sqlite:///{tmp_path}/{name}/mlflow.db", "trainer.max_epochs=2")
        train(cfg)
        tracker, run = only_run(cfg)
        with tracker.artifact(run.id, BEST_CHECKPOINT) as path:
            state = torch.load(path, weights_only=True)["state_dict"]
        with tracker.artifact(run.id, FOLD_PREDICTIONS) as path:
            states.append((state, path.read_bytes()))
    assert all(torch.equal(value, states[1][0][key]) for key, value in states[0][0].items())
    assert states[0][1] == states[1][1]


@pytest.mark.parametrize("selection", ["inner", "fold"])
def test_train_keeps_the_epoch_of_least_monitored_loss(tone_config: Config, selection: str) -> None:
    """inner watches its selection set, fold the scored fold, which is tagged optimistic."""
    cfg = tone_config("trainer.max_epochs=5", f"selection={selection}", "inner_folds=3")
    metrics = train(cfg).metrics
    tracker, run = only_run(cfg)
    monitored = "selection/loss" if selection == "inner" else "fold/loss"
    losses = [m.value for m in tracker.client.get_metric_history(run.id, monitored)]
    assert run.metrics["best/epoch"] == int(np.argmin(losses))
    if selection == "fold":
        assert metrics["best/loss"] == pytest.approx(min(losses), rel=1e-3)
    assert run.tags["optimistic"] == str(selection == "fold").lower()


def test_train_with_last_never_looks_at_the_fold(tone_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other labels in the scored fold give the same weights: it is scored, never used."""

    def weights(uri_name: str) -> dict[str, torch.Tensor]:
        cfg = tone_config("trainer.max_epochs=2", f"tracking.uri=sqlite:///{tone_config().data.root}/{uri_name}.db")
        train(cfg)
        tracker, run = only_run(cfg)
        with tracker.artifact(run.id, BEST_CHECKPOINT) as path:
            return torch.load(path, weights_only=True)["state_dict"]

    honest = weights("a/a")
    original = PreparedCorpus.targets

    def lying(self: PreparedCorpus) -> np.ndarray:
        targets = original(self)
        scored = assign_folds(self.manifest, count=2, group="none", seed=0).fold_of == 0
        targets[scored] = (targets[scored] + 1) % 3
        return targets

    monkeypatch.setattr(PreparedCorpus, "targets", lying)
    assert all(torch.equal(value, honest[key]) for key, value in weights("b/b").items())


def test_train_early_stopping_ends_the_run_early(tone_config: Config) -> None:
    """With patience 1 and a learning rate that destroys, not all 40 epochs are trained."""
    cfg = tone_config(
        "selection=inner",
        "inner_folds=3",
        "trainer.early_stopping_patience=1",
        "trainer.max_epochs=40",
        "optimizer.lr=1.0",
    )
    train(cfg)
    tracker, run = only_run(cfg)
    assert len(tracker.client.get_metric_history(run.id, "train/loss")) < 40


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("the net fell over"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_train_that_dies_ends_with_its_traceback(
    tone_config: Config, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str
) -> None:
    """A dead run is FAILED or KILLED, never RUNNING, and says why."""

    def fall(*_args: object, **_kwargs: object) -> None:
        raise error

    monkeypatch.setattr(Classifier, "training_step", fall)
    cfg = tone_config()
    with pytest.raises((type(error), SystemExit)):
        train(cfg)
    tracker, run = only_run(cfg)
    assert run.status == status
    with tracker.artifact(run.id, "traceback.txt") as path:
        assert "Traceback" in path.read_text()


def test_datamodule_gives_features_on_the_device(tone_config: Config) -> None:
    """A loader yields (B, 1, F, N) and class numbers; the last incomplete batch is left out."""
    cfg = validate_train(tone_config("augment=none"))
    corpus = prepared(cfg)
    split = split_clips(
        corpus.manifest, assign_folds(corpus.manifest, count=2, group="none", seed=0), fold=0, selection="last"
    )
    plain = to_plain(cfg)
    data = ClipDataModule(
        corpus,
        split,
        front_end=features.build(plain["feature"], corpus.store.sample_rate_hz),
        augment=plain["augment"],
        batch_size=5,
        seed=0,
    )
    loader = data.train_dataloader()
    batches = list(loader)
    assert [len(targets) for _, targets in batches] == [5, 5] and len(loader) == 2
    for rows, (x, targets) in zip(loader.sampler, batches, strict=True):
        np.testing.assert_array_equal(corpus.targets()[rows.clips], targets)
        assert x.ndim == 4 and x.shape[:3] == (5, 1, 40)
    scored = torch.cat([targets for _, targets in data.val_dataloader()[0]])
    np.testing.assert_array_equal(scored.numpy(), corpus.targets()[split.fold])


def test_shuffled_batches_are_a_function_of_seed_and_epoch() -> None:
    """An epoch is the same whether or not those before it were drawn; others differ."""
    sampler = ShuffledBatches(np.arange(100), 10, seed=3)

    def draw(epoch: int) -> list[np.ndarray]:
        sampler.set_epoch(epoch)
        return [np.concatenate([rows.clips, rows.placement]) for rows in sampler if rows.placement is not None]

    first = draw(4)
    draw(0)
    np.testing.assert_array_equal(first, draw(4))
    assert not np.array_equal(first, draw(5))
    assert sorted(np.concatenate([rows.clips for rows in sampler])) == list(range(100))


@pytest.mark.parametrize("augment", [{}, {"speed": 1.0}, {"spec_augment": 1.0}])
@pytest.mark.parametrize("budget", [0, datamodule.KEPT_BYTES])
def test_kept_features_equal_computed_ones(
    tone_config: Config, monkeypatch: pytest.MonkeyPatch, budget: int, augment: dict[str, float]
) -> None:
    """Features that are kept, in training and in validation, equal those of the waveforms to rounding."""
    monkeypatch.setattr(datamodule, "KEPT_BYTES", budget)
    overrides = [f"augment.{key}.probability={value}" for key, value in augment.items()]
    placement = ("augment.placement.copies=3", "augment.placement.redraw=false")
    cfg = validate_train(tone_config("augment=none", *placement, *overrides))
    corpus, plain = prepared(cfg), to_plain(cfg)
    folds = assign_folds(corpus.manifest, count=2, group="none", seed=0)
    split = split_clips(corpus.manifest, folds, fold=0, selection="last")
    data = ClipDataModule(
        corpus,
        split,
        front_end=features.build(plain["feature"], corpus.store.sample_rate_hz),
        augment=plain["augment"],
        batch_size=5,
        seed=0,
    )
    rate = corpus.store.sample_rate_hz
    front_end, augmenter = features.build(plain["feature"], rate), Augmenter(plain["augment"], rate)
    for loader in (data.train_dataloader(), data.val_dataloader()[0]):
        for rows, (x, _) in zip(loader.sampler, loader, strict=True):
            augmenter.train(rows.placement is not None)
            waveforms = torch.from_numpy(
                corpus.store.gather(rows.clips, corpus.clip_samples, rows.placement)
            ).unsqueeze(1)
            draws = Draws([0, 0, 2], 3 * len(corpus.store), x.device)
            expected = augmenter(waveforms, front_end, draws if rows.slots is None else draws.at(rows.slots))
            torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
    kept = {name for name, features in data._kept.items() if features is not None}
    assert kept == (set() if not budget else {"scored 0"} if "speed" in augment else {"train", "scored 0"})


def test_resident_clips_are_placed_as_from_the_store() -> None:
    """The gather on a device gives the same samples as the one in memory, longer and shorter clips alike."""
    rng = np.random.default_rng(0)
    sizes = np.array([1, 7, 40, 41, 64, 100])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    store = WaveformStore(rng.standard_normal(offsets[-1]).astype(np.float32), offsets, 8000, Path())
    resident = ResidentClips(store, torch.device("cpu"))
    indices = np.repeat(np.arange(len(sizes)), 20)
    for place in (None, rng.random(len(indices)), np.zeros(len(indices)), np.ones(len(indices))):
        np.testing.assert_array_equal(resident.gather(indices, 40, place), store.gather(indices, 40, place))


def test_predict_clips_batch_equals_singles(tone_config: Config) -> None:
    """The batch size changes nothing but the speed."""
    cfg = tone_config()
    train(cfg)
    tracker, run = only_run(cfg)
    corpus = prepared(cfg)
    with tracker.artifact(run.id, BEST_CHECKPOINT) as path:
        classifier = load(path)
    rows = np.arange(len(corpus.store))
    together, alone = (classifier.predict_clips(corpus.store, rows, batch_size=size) for size in (24, 1))
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_train_on_two_processes(tone_config: Config, tmp_path: Path) -> None:
    """trainer=ddp: one tracked run, its clips shared by two processes."""
    cfg = tone_config()
    done = subprocess.run(
        [
            *(sys.executable, str(PROJECT / "train.py"), "data=folder", f"data.root={cfg.data.root}", "folds.count=2"),
            *("trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.batch_size=4"),
            f"tracking.uri={cfg.tracking.uri}",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "MASTER_ADDR": "127.0.0.1"},
    )
    assert done.returncode == 0, done.stderr
    _, run = only_run(cfg)
    assert run.status == "FINISHED" and "best/accuracy" in run.metrics


def test_train_on_clips_shorter_than_a_window(tone_config: Config) -> None:
    """A clip window of 0.05 s, half the front end's, trains and predicts."""
    assert "best/accuracy" in train(tone_config("data.clip_s=0.05")).metrics


def test_predict_clips_refuses_another_rate(tone_config: Config) -> None:
    """A store at another rate than the net's is a mistake, not a prediction."""
    cfg = tone_config()
    train(cfg)
    tracker, run = only_run(cfg)
    with tracker.artifact(run.id, BEST_CHECKPOINT) as path:
        classifier = load(path)
    with pytest.raises(ValueError, match="clips at 4000 Hz, but this net was trained at 8000 Hz"):
        classifier.predict_clips(prepared(tone_config("data.sample_rate_hz=4000")).store, np.arange(2))


def test_run_metrics_are_json_plain(tone_config: Config) -> None:
    """What train returns can be written down: names and floats."""
    assert set(json.loads(json.dumps(train(tone_config()).metrics))) == {
        "best/accuracy",
        "best/balanced_accuracy",
        "best/loss",
        "best/macro_f1",
    }


def weights_of(cfg: DictConfig) -> dict[str, torch.Tensor]:
    tracker, run = only_run(cfg)
    with tracker.artifact(run.id, BEST_CHECKPOINT) as path:
        return torch.load(path, weights_only=True)["state_dict"]


def test_train_with_augmentation_changes_the_weights_and_repeats(tone_config: Config, tmp_path: Path) -> None:
    """All augmentations on: finite, other weights than without, the same bits twice."""
    on = [f"augment.{name}.probability=0.9" for name in ("speed", "filter", "noise", "gain", "spec_augment", "mixup")]
    states = []
    for name, overrides in (("off", []), ("a", on), ("b", on)):
        cfg = tone_config(f"tracking.uri=sqlite:///{tmp_path}/{name}/mlflow.db", *overrides)
        assert np.isfinite(train(cfg).metrics["best/loss"])
        states.append(weights_of(cfg))
    off, first, second = states
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert not torch.equal(off["net.output.weight"], first["net.output.weight"])


@pytest.mark.parametrize("selection", ["last", "fold"])
def test_train_with_averaged_weights_keeps_the_average(tone_config: Config, tmp_path: Path, selection: str) -> None:
    """ema_decay near 1 keeps weights near the first ones; without it they moved on. The checkpoint stays small."""
    size, moved = {}, {}
    for decay in ("0.999", "null"):
        cfg = tone_config(
            *(f"tracking.uri=sqlite:///{tmp_path}/{decay}/mlflow.db", f"selection={selection}", "optimizer.lr=0.01"),
            *(f"optimizer.ema_decay={decay}", "trainer.max_epochs=4", "optimizer.schedule=none", "fold=0"),
        )
        train(cfg)
        torch.manual_seed(cfg.seed)
        plain = to_plain(cfg)
        first = Classifier(
            model=plain["model"],
            feature=plain["feature"],
            class_names=["high", "low", "mid"],
            sample_rate_hz=8000,
            clip_samples=3200,
            optimizer=plain["optimizer"],
        ).state_dict()
        kept = weights_of(cfg)
        moved[decay] = float((kept["net.stem.0.weight"] - first["net.stem.0.weight"]).norm())
        tracker, run = only_run(cfg)
        with tracker.artifact(run.id, BEST_CHECKPOINT) as path:
            size[decay] = path.stat().st_size
    assert moved["0.999"] < 0.6 * moved["null"]
    assert size["0.999"] < 1.1 * size["null"]


@pytest.mark.parametrize(("limits", "epochs"), [((6, 1), 2), ((4, 3), 3), ((100, 1), 5), ((5, 1), 2)])
def test_train_shortens_epochs_to_max_steps(tone_config: Config, limits: tuple[int, int], epochs: int) -> None:
    """12 clips in batches of 4 are 3 steps an epoch: max_steps shortens to whole epochs, min_epochs bounds that."""
    steps, least = limits
    cfg = tone_config("trainer.max_epochs=5", f"trainer.max_steps={steps}", f"trainer.min_epochs={least}")
    train(cfg)
    tracker, run = only_run(cfg)
    assert len(tracker.client.get_metric_history(run.id, "fold/loss")) == epochs


def test_placements_average_the_predictions(tone_config: Config) -> None:
    """views.placements=3 is the mean of three places; the checkpoint remembers it."""
    cfg = tone_config("views.placements=3", "views.speeds=[1.0]")
    train(cfg)
    tracker, run = only_run(cfg)
    corpus, rows = prepared(cfg), np.arange(24)
    with tracker.artifact(run.id, BEST_CHECKPOINT) as path:
        classifier = load(path)
    assert classifier.placements == 3
    together = classifier.predict_clips(corpus.store, rows)
    singles = []
    for place in (1 / 6, 0.5, 5 / 6):
        waveforms = torch.from_numpy(corpus.store.gather(rows, corpus.clip_samples, np.full(24, place))).unsqueeze(1)
        with torch.inference_mode():
            singles.append(classifier(classifier.front_end()(waveforms)).softmax(dim=1).numpy())
    np.testing.assert_allclose(together, np.mean(singles, axis=0), atol=1e-6)
    assert not np.allclose(singles[0], singles[2], atol=1e-4)


def test_speeds_average_the_predictions(tone_config: Config) -> None:
    """views.speeds is the mean over the clip resampled about the window's middle."""
    cfg = tone_config("views.speeds=[0.9,1.0]")
    train(cfg)
    tracker, run = only_run(cfg)
    corpus, rows = prepared(cfg), np.arange(24)
    with tracker.artifact(run.id, BEST_CHECKPOINT) as path:
        classifier = load(path)
    waveforms = torch.from_numpy(corpus.store.gather(rows, corpus.clip_samples)).unsqueeze(1)
    length = corpus.clip_samples
    slow = torchaudio.functional.resample(waveforms, 9, 10)  # more samples: the same clip, lower and longer
    spare = slow.shape[-1] - length
    assert spare > 0
    slow = slow[..., spare // 2 : spare // 2 + length]
    with torch.inference_mode():
        said = [classifier(classifier.front_end()(x)).softmax(dim=1).numpy() for x in (slow, waveforms)]
    np.testing.assert_allclose(classifier.predict_clips(corpus.store, rows), np.mean(said, axis=0), atol=1e-5)
    assert not np.allclose(*said, atol=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_train_clips_gradients(tone_config: Config, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In either arithmetic the norm of all gradients is what trainer.gradient_clip_val allows."""
    norms = []

    def look(self: Classifier, _optimizer: torch.optim.Optimizer) -> None:  # those of the step before
        gradients = [p.grad.square().sum() for p in self.parameters() if p.grad is not None]
        norms.extend([float(torch.stack(gradients).sum().sqrt())] if gradients else [])

    monkeypatch.setattr(Classifier, "on_before_zero_grad", look)
    train(tone_config("trainer.gradient_clip_val=1e-3", f"trainer.precision={precision}"))
    assert norms and norms == pytest.approx([1e-3] * len(norms), rel=1e-2)


def test_predict_together_is_each_by_itself(tone_config: Config) -> None:
    """Members that share a front end, and one that does not."""
    corpus = prepared(tone_config())
    common = {"class_names": list("abc"), "sample_rate_hz": 8000, "clip_samples": corpus.clip_samples, "optimizer": {}}
    mel, mfcc = (to_plain(tone_config(f"feature={name}"))["feature"] for name in ("mel", "mfcc"))
    net = {"name": "resnet"}
    classifiers = [Classifier(model=net, feature=feature, **common) for feature in (mel, mfcc, mel)]
    rows = np.arange(11)
    together = predict_together(classifiers, corpus.store, rows, batch_size=4)
    for classifier, p in zip(classifiers, together, strict=True):
        np.testing.assert_allclose(p, classifier.predict_clips(corpus.store, rows), atol=1e-6)
    assert not np.allclose(together[0], together[2], atol=1e-4)
    side_by_side = predict_together(classifiers, corpus.store, rows, batch_size=4, threads=3)
    np.testing.assert_array_equal(side_by_side, together)
    with pytest.raises(IndexError):  # what breaks in a thread is not lost
        predict_together(classifiers, corpus.store, np.array([10**6] * 3), batch_size=1, threads=3)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=bcresnet"],
        ["model.sub_bands=5"],
        ["feature=pcen"],
        ["feature=gammatone"],
        ["feature=spectrogram", "feature.n_bins=40"],
        ["feature.deltas=2"],
        ["feature=mel_original"],
        ["feature=mfcc_original", "feature.n_mels=64"],
        ["optimizer.schedule=cosine"],
    ],
    ids=" ".join,
)
def test_every_choice_trains_and_loads(tone_config: Config, overrides: list[str]) -> None:
    """One epoch, and the checkpoint alone gives the logged predictions."""
    cfg = tone_config(*overrides)
    train(cfg)
    tracker, run = only_run(cfg)
    corpus = prepared(cfg)
    folds = assign_folds(corpus.manifest, count=2, group="none", seed=0)
    with tracker.artifact(run.id, BEST_CHECKPOINT) as path:
        p = load(path).predict_clips(corpus.store, np.flatnonzero(folds.fold_of == 0))
    np.testing.assert_allclose(p, probabilities_of(logged_predictions(tracker, run.id)), atol=1e-6)


def test_train_refuses_a_net_that_the_feature_does_not_fit(tone_config: Config) -> None:
    """Before a run is started."""
    cfg = tone_config("model=bcresnet", "feature.n_mels=20")
    with pytest.raises(ConfigError, match=r"model\.sub_bands=5 does not divide|33 rows or more"):
        train(cfg)
    assert not Path(cfg.tracking.uri.removeprefix("sqlite:///")).exists()


def test_compile_needs_a_compiler(tone_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one the message says so before anything is trained."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"trainer\.compile=true: no C\+\+ compiler found"):
        train(tone_config("trainer.compile=true"))


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++ to compile with")
def test_compiled_net_trains_and_its_checkpoint_loads(tone_config: Config) -> None:
    """The same names in the checkpoint as without; the loaded net reproduces what was logged."""
    cfg = tone_config("trainer.compile=true", "augment=none")
    train(cfg)
    tracker, run = only_run(cfg)
    logged = logged_predictions(tracker, run.id)
    corpus = prepared(cfg)
    with tracker.artifact(run.id, BEST_CHECKPOINT) as path:
        classifier = load(path)
    ids = corpus.manifest["clip_id"].tolist()
    rows = np.array([ids.index(clip_id) for clip_id in logged["clip_id"]])
    p = classifier.predict_clips(corpus.store, rows)
    np.testing.assert_allclose(p, probabilities_of(logged), atol=1e-5)


@pytest.mark.parametrize(
    ("capabilities", "asked", "expected"),
    [
        ({"amx_bf16": True}, "auto", "bf16-mixed"),
        ({"avx512_bf16": True}, "auto", "bf16-mixed"),
        ({"avx512_f": True, "amx_bf16": False}, "auto", "32-true"),
        ({"amx_bf16": True}, "32-true", "32-true"),
        ({}, "bf16-mixed", "bf16-mixed"),
    ],
)
def test_precision_is_what_the_processor_computes(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], asked: str, expected: str
) -> None:
    """bfloat16 where it is native and nothing else was asked for."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert devices.precision(asked, "cpu") == expected
