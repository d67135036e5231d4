"""The commands as a person runs them: a real small sweep of both features, its table, its ensemble, its refusals."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from omegaconf import DictConfig

from audio_mnist import features
from audio_mnist.ensembles.run import ensemble
from audio_mnist.errors import AudioMnistError, RunError
from audio_mnist.scoring import calibration, mixture
from audio_mnist.tracking.predictions import logged_predictions, probabilities_of
from audio_mnist.tracking.tracker import Tracker
from audio_mnist.training.classifier import Classifier
from audio_mnist.training.run import train
from tests.conftest import PROJECT, MlflowServer, composed, free_port, run_command, write_tones
from tests.test_corpora import make_dacon

SWEEP = (
    *("train.py", "feature=mel,mfcc", "fold=0,1", "folds.count=2", "trainer.max_epochs=15"),
    *("data.settings.train_clips=60", "data.settings.test_clips=20", "trainer.accelerator=cpu"),
    "-m",
)


@dataclass(frozen=True)
class Swept:
    """A finished sweep on the embedded corpus."""

    folder: Path
    output: str
    ids: list[str]

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/mlruns/mlflow.db"

    def ensemble(self, *overrides: str) -> DictConfig:
        return composed(*overrides, f"tracking.uri={self.uri}", name="ensemble")

    def tracker(self) -> Tracker:
        return Tracker(self.uri, "audio-mnist")


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match, text
    return match[1]


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Four runs side by side in a fresh folder, from one command."""
    folder = tmp_path_factory.mktemp("project")
    done = run_command(folder, *SWEEP)
    assert done.returncode == 0, done.stdout + done.stderr
    ids = re.search(r"python ensemble.py 'run_ids=\[([0-9a-f,]+)\]'", done.stdout)
    assert ids, done.stdout
    return Swept(folder, done.stdout, ids[1].split(","))


@pytest.fixture
def copied(swept: Swept, tmp_path: Path) -> Swept:
    """The sweep's store again, to be damaged."""
    shutil.copytree(swept.folder / "mlruns", tmp_path / "mlruns")
    database = tmp_path / "mlruns" / "mlflow.db"
    with sqlite3.connect(database) as connection:  # artifact addresses are absolute
        for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
            old, new = (f"{folder}/mlruns" for folder in (swept.folder, tmp_path))
            connection.execute(f"UPDATE {table} SET {column} = REPLACE({column}, ?, ?)", (old, new))
    return Swept(tmp_path, swept.output, swept.ids)


def test_sweep_prints_one_table_and_the_next_command(swept: Swept) -> None:
    """Rows Mel, MFCC and Ensemble with a column a fold; four lines of runs; the ids of all four."""
    assert len(swept.ids) == len(set(swept.ids)) == 4
    for row in ("Mel", "MFCC", "Ensemble"):
        assert re.search(rf"│ {row} +│ 0\.\d{{4}} │ 0\.\d{{4}} │ 0\.\d{{4}} ± 0\.\d{{4}} │", swept.output), swept.output
    assert "n = 60 clips in 2 folds" in swept.output
    assert len(re.findall(r"^(mel|mfcc) fold \d: accuracy", swept.output, re.MULTILINE)) == 4
    assert "mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db" in swept.output


def test_sweep_runs_hang_under_one_parent(swept: Swept) -> None:
    """One FINISHED parent, four FINISHED children that name it, one fold fingerprint for all."""
    tracker = swept.tracker()
    runs = [tracker.get(run_id) for run_id in swept.ids]
    assert all(run is not None and run.status == "FINISHED" for run in runs)
    assert len({run.parent_id for run in runs if run}) == 1
    assert len({run.tags["fold_fingerprint"] for run in runs if run}) == 1
    assert len({run.tags["config_fingerprint"] for run in runs if run}) == 4
    parent = tracker.get(next(run.parent_id for run in runs if run) or "")
    assert parent is not None and parent.status == "FINISHED"


def test_sweep_table_agrees_with_its_runs(swept: Swept) -> None:
    """The printed accuracies are the logged ones, the Ensemble row is the mean of the logged probabilities."""
    tracker = swept.tracker()
    tables = {}
    for run_id in swept.ids:
        run = tracker.get(run_id)
        assert run is not None
        tables[run.name.split()[0], int(run.tags["fold"])] = logged_predictions(tracker, run_id)
        assert f"{run.metrics['best/accuracy']:.4f}" in swept.output
    row = re.search(r"Ensemble +│ (0\.\d{4}) │ (0\.\d{4})", swept.output)
    assert row
    for fold in (0, 1):
        mel, mfcc = (tables[name, fold] for name in ("mel", "mfcc"))
        columns = [f"p:{digit}" for digit in range(10)]
        mean = (mel[columns].to_numpy() + mfcc[columns].to_numpy()) / 2
        accuracy = np.mean(mean.argmax(axis=1) == mel["label"].astype(int))
        assert float(row[fold + 1]) == pytest.approx(accuracy, abs=5e-5)


def test_ensemble_command_scores_out_of_fold_and_test(swept: Swept) -> None:
    """run_ids=latest as typed: table, intervals, paired comparison, files, a tracked run under the same parent."""
    done = run_command(swept.folder, "ensemble.py", "run_ids=latest")
    assert done.returncode == 0, done.stderr
    assert "Ensemble minus best single" in done.stdout and "recordings over" in done.stdout
    assert done.stdout.count("95% interval") >= 3
    tracker = swept.tracker()
    run = tracker.get(found(r"tracked: run (\w+)", done.stdout))
    first = tracker.get(swept.ids[0])
    assert run is not None and first is not None and run.parent_id == first.parent_id
    assert {"oof/accuracy", "oof/accuracy_low", "oof/accuracy_high", "test/accuracy"} <= set(run.metrics)
    table = pd.read_csv(found(r"written: (\S+predictions.csv)", done.stdout), dtype=str)
    oof, test = (table[table["scored"] == kind] for kind in ("out of fold", "test"))
    assert (len(oof), len(test)) == (60, 20)
    assert (oof["predicted"] == oof["label"]).mean() == pytest.approx(run.metrics["oof/accuracy"])
    assert (test["predicted"] == test["label"]).mean() == pytest.approx(run.metrics["test/accuracy"])


def test_ensemble_averages_the_members_by_hand(swept: Swept, tmp_path: Path) -> None:
    """Out of fold, each clip's probabilities are the mean of the two runs that did not train on it."""
    ensemble(swept.ensemble(f"run_ids=[{','.join(swept.ids)}]", "combine=mean", "calibrate=none"), tmp_path)
    written = pd.read_csv(tmp_path / "predictions.csv", dtype={"label": str}).set_index("clip_id")
    columns = [f"p:{digit}" for digit in range(10)]
    logged = pd.concat(logged_predictions(swept.tracker(), run_id) for run_id in swept.ids)
    mean = logged.groupby("clip_id")[columns].mean()
    np.testing.assert_allclose(written.loc[mean.index, columns], mean, atol=1e-5)


@pytest.mark.parametrize("how", ["logit_mean", "vote"])
def test_ensemble_combines_in_other_ways(swept: Swept, tmp_path: Path, how: str) -> None:
    """combine= decides what is written, out of fold (two members) and on the test split (four)."""
    ensemble(swept.ensemble("run_ids=latest", f"combine={how}", "calibrate=none"), tmp_path)
    written = pd.read_csv(tmp_path / "predictions.csv", dtype={"label": str}).set_index("clip_id")
    columns = [f"p:{digit}" for digit in range(10)]
    logged = pd.concat(logged_predictions(swept.tracker(), run_id) for run_id in swept.ids)
    if how == "logit_mean":
        geometric = np.exp(np.log(logged.set_index("clip_id")[columns]).groupby("clip_id").mean())
        expected = geometric.div(geometric.sum(axis=1), axis=0)
        np.testing.assert_allclose(written.loc[expected.index, columns], expected, atol=1e-5)
    else:
        agreed = logged.groupby("clip_id")["predicted"].agg(set).loc[lambda sets: sets.map(len) == 1]
        chosen = written.loc[agreed.index, "predicted"].astype(str)
        assert chosen.tolist() == [next(iter(both)) for both in agreed]


def test_ensemble_calibrates_out_of_fold(swept: Swept, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Each fold's probabilities at the temperature of the others; answers stay; errors and picture are logged."""
    ensemble(swept.ensemble("run_ids=latest", "calibrate=none"), tmp_path / "raw")
    metrics = ensemble(swept.ensemble("run_ids=latest"), tmp_path / "calibrated").metrics
    raw, calibrated = (
        pd.read_csv(tmp_path / name / "predictions.csv", dtype={"label": str, "predicted": str})
        for name in ("raw", "calibrated")
    )
    assert (raw["predicted"] == calibrated["predicted"]).all()
    columns, oof = [f"p:{digit}" for digit in range(10)], raw["scored"] == "out of fold"
    p, truth = raw.loc[oof, columns].to_numpy(), raw.loc[oof, "label"].astype(int).to_numpy()
    fold_of = raw.loc[oof, "fold"].to_numpy()
    for fold in (0, 1):
        t = calibration.fit_temperature(p[fold_of != fold], truth[fold_of != fold])
        expected = calibration.tempered(p[fold_of == fold], t)
        np.testing.assert_allclose(calibrated.loc[oof, columns].to_numpy()[fold_of == fold], expected, atol=1e-4)
    assert metrics["oof/ece_raw"] == pytest.approx(calibration.reliability(p, truth).error, abs=1e-4)
    printed = capsys.readouterr().out
    run_id = re.findall(r"tracked: run (\w+)", printed)[-1]
    with swept.tracker().artifact(run_id, "figures/reliability.png") as path:
        assert path.stat().st_size > 5000
    assert f"after temperature scaling {metrics['oof/ece']:.4f}" in printed


def test_ensemble_stacks_with_weights_of_the_other_folds(
    swept: Swept, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """combine=stack: the printed weights are those of all clips out of fold, each fold is scored with the others'."""
    metrics = ensemble(swept.ensemble("run_ids=latest", "combine=stack", "calibrate=none"), tmp_path).metrics
    logged = {}
    for run_id in swept.ids:
        run = swept.tracker().get(run_id)
        assert run is not None
        logged[run.name.split()[0], int(run.tags["fold"])] = logged_predictions(swept.tracker(), run_id)
    columns = [f"p:{digit}" for digit in range(10)]
    p = {fold: np.stack([logged[name, fold][columns].to_numpy() for name in ("mel", "mfcc")]) for fold in (0, 1)}
    truth = {fold: logged["mel", fold]["label"].astype(int).to_numpy() for fold in (0, 1)}
    written = pd.read_csv(tmp_path / "predictions.csv").set_index("clip_id")
    for fold in (0, 1):
        weights = mixture.fit_weights(p[1 - fold], truth[1 - fold])
        ids = logged["mel", fold]["clip_id"]
        np.testing.assert_allclose(written.loc[ids, columns], mixture.weighted(p[fold], weights), atol=1e-4)
    both = mixture.fit_weights(np.concatenate([p[0], p[1]], axis=1), np.concatenate([truth[0], truth[1]]))
    assert [metrics["weight/Mel"], metrics["weight/MFCC"]] == pytest.approx(both.tolist(), abs=1e-3)
    printed = capsys.readouterr().out
    assert all(re.search(rf"{name} +│ +{metrics[f'weight/{name}']:.3f} ", printed) for name in ("Mel", "MFCC"))


def test_ensemble_scores_the_svm_on_the_same_folds(swept: Swept, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """baseline=svm: one row more in each table, better than chance, compared with the ensemble, and no member of it."""
    metrics = ensemble(swept.ensemble("run_ids=latest", "baseline=svm"), tmp_path).metrics
    printed = capsys.readouterr().out
    row = re.findall(r"SVM \(MFCC statistics\) +│ +(0\.\d{4})", printed)
    assert len(row) == 3 and "Ensemble minus SVM (MFCC statistics), paired on 60 recordings" in printed
    assert float(row[1]) == pytest.approx(metrics["oof/baseline_accuracy"], abs=5e-5)
    assert metrics["oof/baseline_accuracy"] >= 0.15  # of ten classes, learnt from 30 clips
    alone = ensemble(swept.ensemble("run_ids=latest"), tmp_path).metrics
    assert alone["oof/accuracy"] == metrics["oof/accuracy"]


def test_ensemble_feeds_each_member_its_own_feature(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An MFCC member never sees Mel input: what enters each net is its own front end's output, to the bit."""
    seen: dict[str, int] = {"mel": 0, "mfcc": 0}
    forward = Classifier.forward
    last = threading.local()  # batches go side by side
    front_forwards = {name: kind.forward for name, kind in features.FrontEnd.registry.items()}
    for name, kind in features.FrontEnd.registry.items():

        def recording(self, waveform, name=name):
            out = front_forwards[name](self, waveform)
            last.name, last.out = name, out
            return out

        monkeypatch.setattr(kind, "forward", recording)

    def checked(self: Classifier, x: torch.Tensor) -> torch.Tensor:
        assert last.name == self.hparams["feature"]["name"]
        assert last.out is x
        seen[self.hparams["feature"]["name"]] += 1
        return forward(self, x)

    monkeypatch.setattr(Classifier, "forward", checked)
    ensemble(swept.ensemble("run_ids=latest"), tmp_path)
    assert seen["mel"] > 0 and seen["mfcc"] > 0


def test_ensemble_of_one_feature_has_no_comparison(swept: Swept, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A cross-validated single feature is its own out-of-fold score."""
    tracker = swept.tracker()
    mel = [run_id for run_id in swept.ids if (run := tracker.get(run_id)) and run.name.startswith("mel ")]
    metrics = ensemble(swept.ensemble(f"run_ids=[{','.join(mel)}]"), tmp_path).metrics
    printed = capsys.readouterr().out
    assert "Mel" in printed and "Ensemble" not in printed and "oof/gain" not in metrics


def test_ensemble_of_uneven_folds_compares_common_clips(
    swept: Swept, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Where one feature lacks a fold, all are scored on the clips that all have, and the note says so."""
    metrics = ensemble(swept.ensemble(f"run_ids=[{','.join(swept.ids[:3])}]"), tmp_path).metrics
    assert metrics["oof/n"] == 30
    assert "compared on the 30 clips that all scored" in capsys.readouterr().out


def test_ensemble_refuses_runs_with_id_and_reason(swept: Swept, tmp_path: Path) -> None:
    """Unknown, named twice, a sweep, unfinished: all of them in one message."""
    tracker = swept.tracker()
    first = tracker.get(swept.ids[0])
    assert first is not None
    dead = tracker.start("dead", kind="train", tags=first.tags, params={})
    dead.end("FAILED")
    ids = [swept.ids[0], "0" * 32, swept.ids[1], swept.ids[1], first.parent_id, dead.id]
    with pytest.raises(RunError) as caught:
        ensemble(swept.ensemble(f"run_ids=[{','.join(map(str, ids))}]"), tmp_path)
    message = str(caught.value)
    assert message.startswith("4 of the runs cannot join")
    for run_id, reason in (
        ("0" * 32, "unknown"),
        (swept.ids[1], "named twice"),
        (first.parent_id, "not a training run but a sweep"),
        (dead.id, "unfinished: its status is FAILED"),
    ):
        assert re.search(f"{run_id}: {reason}", message), message
    assert not (tmp_path / "predictions.csv").exists()


@pytest.mark.parametrize(
    ("tag", "value", "reason"),
    [
        ("corpus_fingerprint", "feed", "trained on another corpus"),
        ("fold_fingerprint", "feed", "trained on other folds"),
        ("classes", "yes,no", "has other labels"),
        (None, None, "duplicated: the same settings and fold"),
    ],
)
def test_ensemble_refuses_runs_that_do_not_match(
    swept: Swept, tmp_path: Path, tag: str | None, value: str, reason: str
) -> None:
    """Of another corpus, folds or labels, or the same run over again."""
    tracker = swept.tracker()
    first = tracker.get(swept.ids[0])
    assert first is not None
    tags = first.tags if tag is None else first.tags | {tag: value}
    other = tracker.start("other", kind="train", tags={k: v for k, v in tags.items() if k != "kind"}, params={})
    other.end("FINISHED")
    with pytest.raises(RunError, match=f"{other.id}: .*{reason}"):
        ensemble(swept.ensemble(f"run_ids=[{swept.ids[0]},{other.id}]"), tmp_path)


@pytest.mark.parametrize("damage", ["deleted", "halved", "swapped", "forged"])
def test_ensemble_refuses_a_damaged_checkpoint(copied: Swept, tmp_path: Path, damage: str) -> None:
    """Gone, cut in half, another run's, or predictions that it did not make: the run is named."""
    run_id, other = copied.ids[0], copied.ids[1]
    artifacts = tmp_path / "mlruns" / "artifacts"
    path = artifacts / run_id / "artifacts" / "checkpoints" / "best.ckpt"
    if damage == "deleted":
        path.unlink()
    elif damage == "halved":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "swapped":
        shutil.copy(artifacts / other / "artifacts" / "checkpoints" / "best.ckpt", path)
    else:
        predictions = artifacts / run_id / "artifacts" / "fold_predictions.csv"
        table = pd.read_csv(predictions, dtype={"label": str})
        table["p:3"] = table["p:3"] + 0.01
        table.to_csv(predictions, index=False)
    reason = {"deleted": "cannot be read", "halved": "is damaged"}.get(damage, "gives other probabilities")
    with pytest.raises(RunError, match=f"run {run_id}: .*{reason}"):
        ensemble(copied.ensemble("run_ids=latest"), tmp_path / "out")


def test_ensemble_refuses_a_corpus_that_changed(tmp_path: Path) -> None:
    """A clip replaced after training: the fingerprints differ, and the message says so."""
    root = write_tones(tmp_path / "tones")
    options = ["data=folder", f"data.root={root}", "folds.count=2", "trainer.max_epochs=1", "trainer.batch_size=4"]
    uri = f"tracking.uri=sqlite:///{tmp_path}/mlruns/mlflow.db"
    train(composed(*options, uri))
    run = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist").search()[0]
    soundfile.write(root / "low" / "s0_0.wav", 0.1 * np.random.default_rng(9).standard_normal(2000), 8000)
    with pytest.raises(RunError, match="the corpus changed since run"):
        ensemble(composed(f"run_ids=[{run.id}]", uri, name="ensemble"), tmp_path / "out")


def test_ensemble_writes_the_competitions_submission(tmp_path: Path) -> None:
    """data=dacon: file_name,label in the order of sample_submission.csv; no test score without labels."""
    root = make_dacon(tmp_path / "dacon")
    uri = f"tracking.uri=sqlite:///{tmp_path}/mlruns/mlflow.db"
    options = ["data=dacon", f"data.root={root}", "folds.count=2", "trainer.max_epochs=1", "trainer.batch_size=4"]
    for fold in (0, 1):
        train(composed(*options, uri, f"fold={fold}"))
    runs = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist").search()
    ids = ",".join(run.id for run in runs)
    metrics = ensemble(composed(f"run_ids=[{ids}]", uri, name="ensemble"), tmp_path / "out").metrics
    assert "test/accuracy" not in metrics
    submission = pd.read_csv(tmp_path / "out" / "submission.csv", dtype=str)
    assert submission["file_name"].tolist() == ["002.wav", "000.wav", "003.wav", "001.wav"]
    assert set(submission["label"]) <= {"0", "1"}


def test_ensemble_latest_of_nothing(tmp_path: Path) -> None:
    """A fresh store has no sweep."""
    uri = f"tracking.uri=sqlite:///{tmp_path}/mlruns/mlflow.db"
    with pytest.raises(AudioMnistError, match="run_ids=latest: no sweep with a finished run"):
        ensemble(composed("run_ids=latest", uri, name="ensemble"), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.py", "feature=mell"], "error: feature=mell: expected one of gammatone, mel, "),
        (["train.py", "feature=mell", "-m"], "error: feature=mell: expected one of gammatone, mel, "),
        (["train.py", "nothing=1"], "error: unknown config key nothing; python train.py --help lists the keys"),
        (["train.py", "feture=mel", "-m"], "error: unknown config key feture; did you mean feature?"),
        (["train.py", "launcher=slurm"], "error: unknown config key launcher; did you mean hydra/launcher?"),
        (["train.py", "trainer.epochs=2"], "error: unknown config key trainer.epochs; did you mean trainer.m"),
        (["train.py", "data.root=clips"], "error: data.root: no such key with the chosen data; it belongs to data="),
        (["train.py", "fold=0,1"], "error: fold=0,1: several values; add -m to train every combination"),
        (["train.py", "data.root=my clips (2)"], "quote it twice, \"data.root='my clips (2)'\""),
        (["train.py", "data.sample_rate_hz=5"], "error: data.sample_rate_hz=5: expected 1000 to 384000, or null"),
        (["explore.py", "data.clip_s=-1"], "error: data.clip_s=-1.0: expected above 0, or null"),
        (["explore.py", "feature.n_mels=3"], "error: unknown config key feature.n_mels; did you mean features?"),
        (["train.py", "~feature"], "error: feature is not set: give feature=NAME, a file of conf/feature/"),
        (["predict.py", "FOLDER"], "error: FOLDER: expected KEY=VALUE; python predict.py --help lists the keys"),
        (["predict.py", "adio=a.wav"], "error: unknown config key adio; did you mean audio?"),
        (["train.py", "+nothing=1"], "error: unknown config key nothing"),
        (["train.py", "trainer.max_epochs=many"], "error: trainer.max_epochs"),
        (["train.py", "fold=7"], "error: fold=7 does not exist: folds.count=5, so fold is 0 to 4"),
        (["train.py", "fold=0,7", "-m"], "error: fold=7 does not exist"),
        (["train.py", "fold=0,0", "-m"], "error: jobs 0 and 1 have identical settings"),
        (
            ["train.py", "feature=mfcc", "variant=default,unscaled", "resume=false", "-m"],
            "error: jobs 0 and 1 have identical settings",
        ),
        (["train.py", "data=folder", "data.root=nowhere"], "nowhere: no such folder"),
        (["train.py", "data=folder", "data.root=nowhere", "fold=0,1", "-m"], "nowhere: no such folder"),
        (["train.py", "feature.n_mels=0"], "error: feature.n_mels=0"),
        (["train.py", "model.depth=1,0", "-m"], "error: model.depth=0: expected 1 or more"),
        (["train.py", "trainer.devices=2", "fold=0,1", "-m"], "error: trainer.devices=2 in a sweep"),
        (["train.py", "trainer.together=true"], "error: trainer.together=true needs a sweep"),
        (
            ["train.py", "trainer.together=true", "hydra/launcher=basic", "fold=0,1", "-m"],
            "error: trainer.together=true needs hydra/launcher=together",
        ),
        (["train.py", "trainer.precision=nonsense"], "error: trainer.accelerator, devices, strategy or precision"),
        (["train.py", "fold=0,1", "hydra/sweeper=other", "-m"], "error: hydra/sweeper=other: expected one of basic"),
        (["train.py", "tracking.uri=sqlite:////proc/none/mlflow.db"], "error: tracking.uri=sqlite:////proc/none"),
        (["ensemble.py"], "error: run_ids is not set"),
        (["ensemble.py", "run_ids=a,b"], "error: run_ids=a,b: several values; give a list, 'run_ids=[a,b]'"),
        (["ensemble.py", "run_ids=[feed]"], "feed: unknown: no such run"),
        (["ensemble.py", "run_ids=latest", "combine=median"], "error: combine=median"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_commands_answer_a_mistake_in_one_message(tmp_path: Path, arguments: list[str], message: str) -> None:
    """Not zero, what is wrong, no traceback, no run left behind."""
    done = run_command(tmp_path, *arguments)
    assert done.returncode != 0
    assert message in done.stderr, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.rglob("artifacts/*"))


@pytest.mark.parametrize("arguments", [["train.py"], ["train.py", "fold=0,1", "-m"], ["ensemble.py", "run_ids=latest"]])
def test_commands_refuse_a_folder_that_cannot_hold_runs(tmp_path: Path, arguments: list[str]) -> None:
    """A file where mlruns should be: one message, no traceback."""
    (tmp_path / "mlruns").write_text("in the way")
    done = run_command(tmp_path, *arguments)
    assert done.returncode != 0
    assert "mlruns: expected a folder for runs and logs, found a file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["train.py"], ["train.py", "-m"], ["ensemble.py", "run_ids=latest"]])
def test_password_on_the_command_line_is_refused_before_anything_is_written(
    tmp_path: Path, arguments: list[str]
) -> None:
    """It would stay in Hydra's folder of the run; the message says where it belongs, without it."""
    done = run_command(tmp_path, *arguments, "tracking.uri=http://someone:hunter2@127.0.0.1:9")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "MLFLOW_TRACKING_PASSWORD" in done.stderr and "hunter2" not in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_server_that_does_not_answer_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the password, given in a variable, in any file."""
    monkeypatch.setenv("STORE", f"http://someone:hunter2@127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = run_command(tmp_path, "ensemble.py", "run_ids=latest", "tracking.uri=${oc.env:STORE}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "tracking.uri=http://someone:***@127.0.0.1" in done.stderr and "hunter2" not in done.stdout + done.stderr
    kept = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("${oc.env:STORE}" in text for text in kept) and not any("hunter2" in text for text in kept)


@pytest.mark.parametrize("script", ["train.py", "ensemble.py"])
def test_commands_help_imports_nothing_heavy(script: str, tmp_path: Path) -> None:
    """--help neither imports torch nor MLflow."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{script}', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(PROJECT / script)!r}, run_name='__main__')\n"
        "except SystemExit:\n"
        "    pass\n"
        "print('HEAVY', sorted({'torch', 'mlflow', 'pytorch_lightning', 'torchaudio'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_sweep_with_a_failing_job_finishes_the_others(tmp_path: Path) -> None:
    """The failed run has its traceback, the table says which failed, the exit status is not zero."""
    root = write_tones(tmp_path / "tones")
    done = run_command(
        tmp_path,
        *("train.py", "data=folder", f"data.root={root}", "folds.count=2", "trainer.max_epochs=1"),
        *("trainer.batch_size=4", "optimizer.lr=1e-3,1e38", "fold=0,1", "trainer.accelerator=cpu", "-m"),
    )
    assert done.returncode != 0
    assert "2 of 4 runs finished" in done.stdout and done.stdout.count("FAILED, run") == 2
    tracker = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist")
    runs = tracker.search(kind="train")
    assert sorted(run.status for run in runs) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    failed = next(run for run in runs if run.status == "FAILED")
    with tracker.artifact(failed.id, "traceback.txt") as path:
        assert "no finite probability for clip" in path.read_text()
    parents = tracker.search(kind="sweep")
    assert [parent.status for parent in parents] == ["FAILED"]


def test_sweep_survives_the_kill_of_a_worker(tmp_path: Path) -> None:
    """SIGKILL of one worker: what was finished stays, nothing is left RUNNING, the table says what is missing."""
    root = write_tones(tmp_path / "tones", clips=40)
    command = [
        *(sys.executable, str(PROJECT / "train.py"), "data=folder", f"data.root={root}", "feature=mel"),
        *("folds.count=5", "fold=0,1,2,3,4", "trainer.max_epochs=40", "trainer.accelerator=cpu"),
        *("augment=default,none", "-m"),  # two kin: the second one's runs have not begun
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.match(r"mel fold \d: accuracy", line):  # one run is finished, others are under way
            break
    servers = [pid for pid in _descendants(process.pid) if "forkserver" in _command_of(pid)]
    workers = [pid for server in servers[:1] for pid in _descendants(server)]
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    rest, errors = process.communicate(timeout=200)
    output = "".join(lines) + rest
    assert process.returncode != 0
    tracker = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist")
    runs = tracker.search(kind="train")
    statuses = [run.status for run in runs]
    assert set(statuses) <= {"FINISHED", "KILLED"}
    assert statuses.count("FINISHED") >= 1
    assert f"{statuses.count('FINISHED')} of 10 runs finished" in output, output + errors
    assert output.count(": not run") == 10 - len(runs) > 0, output + errors
    assert output.count(": KILLED, run") == statuses.count("KILLED")
    for run in runs:
        if run.status == "FINISHED":
            assert len(logged_predictions(tracker, run.id)) == 24


@pytest.mark.slow
def test_sweep_names_why_a_job_was_not_run(tmp_path: Path) -> None:
    """What only a job itself can find out stands in the sweep's table of what is missing."""
    root = write_tones(tmp_path / "tones")
    done = run_command(
        tmp_path,
        *("train.py", "data=folder", f"data.root={root}", "folds.count=2", "trainer.max_epochs=1"),
        *("trainer.batch_size=4", "trainer.precision=32-true,nonsense", "hydra/launcher=basic", "-m"),
    )
    assert done.returncode != 0
    assert "1 of 2 runs finished" in done.stdout
    assert "not run: trainer.accelerator, devices, strategy or precision is not available" in done.stdout
    assert "n = 12 clips in 1 of 2 folds" in done.stdout


def test_untracked_sweep_prints_its_table_and_keeps_nothing(tmp_path: Path) -> None:
    """tracking=none: the scores are there, no database is, and an ensemble of it is refused by name."""
    root = write_tones(tmp_path / "tones")
    options = ("data=folder", f"data.root={root}", "folds.count=2", "trainer.max_epochs=1", "trainer.batch_size=4")
    done = run_command(tmp_path, "train.py", *options, "tracking=none", "feature=mel,mfcc", "fold=0,1", "-m")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 runs finished" in done.stdout and "note: not tracked" in done.stdout
    assert "combine them" not in done.stdout
    for name in ("Mel", "MFCC"):
        row = next(line for line in done.stdout.splitlines() if name in line.split())
        assert len(re.findall(r"[01]\.\d{4}", row)) == 4  # two folds, mean and spread
    assert not list(tmp_path.rglob("*.db"))
    refused = run_command(tmp_path, "ensemble.py", "run_ids=latest", "tracking=none")
    assert refused.returncode == 1 and "tracking.uri=None: expected" in refused.stderr


@pytest.mark.slow
def test_sweep_is_reported_when_hydra_shows_full_errors(tmp_path: Path) -> None:
    """HYDRA_FULL_ERROR=1 changes the traceback, not the end of the sweep."""
    root = write_tones(tmp_path / "tones")
    command = [sys.executable, str(PROJECT / "train.py"), "data=folder", f"data.root={root}", "folds.count=2"]
    done = subprocess.run(
        [*command, "trainer.max_epochs=1", "trainer.batch_size=4", "trainer.precision=nonsense", "fold=0,1", "-m"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "HYDRA_FULL_ERROR": "1"},
    )
    assert done.returncode != 0 and "0 of 2 runs finished" in done.stdout
    tracker = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist")
    assert [run.status for run in tracker.search()] == ["FAILED"]


def test_ensemble_joins_members_of_two_sample_rates(tmp_path: Path) -> None:
    """Each member gets the clips at its training rate."""
    root = write_tones(tmp_path / "tones")
    uri = f"tracking.uri=sqlite:///{tmp_path}/mlruns/mlflow.db"
    options = ["data=folder", f"data.root={root}", "folds.count=2", "trainer.max_epochs=1", "trainer.batch_size=4"]
    for rate_hz in (8000, 6000):
        train(composed(*options, uri, f"data.sample_rate_hz={rate_hz}"))
    ids = ",".join(run.id for run in Tracker(uri.partition("=")[2], "audio-mnist").search())
    metrics = ensemble(composed(f"run_ids=[{ids}]", uri, name="ensemble"), tmp_path / "out").metrics
    assert metrics["oof/n"] == 12


def test_ensemble_refuses_a_submission_with_gaps(tmp_path: Path) -> None:
    """A test clip that was left out cannot be submitted: it is named, and nothing is written."""
    root = make_dacon(tmp_path / "dacon")
    (root / "test" / "001.wav").write_bytes(b"")
    uri = f"tracking.uri=sqlite:///{tmp_path}/mlruns/mlflow.db"
    options = ["data=dacon", f"data.root={root}", "folds.count=2", "trainer.max_epochs=1", "trainer.batch_size=4"]
    train(composed(*options, uri, "data.on_bad_clip=skip"))
    tracker = Tracker(uri.partition("=")[2], "audio-mnist")
    run = tracker.search()[0]
    with tracker.artifact(run.id, "left_out.txt") as path:
        assert path.read_text() == "test/001.wav\n"
    with pytest.raises(AudioMnistError, match=r"1 clips without a prediction, 001.wav first"):
        ensemble(composed(f"run_ids=[{run.id}]", uri, name="ensemble"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of an MLflow server of the test's own."""
    store = ("--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/art")
    server = MlflowServer(tmp_path, "server", *store)
    try:
        server.start()
        yield server.address
    finally:
        server.stop()


def test_train_and_ensemble_on_a_server(server: str, tmp_path: Path) -> None:
    """An MLflow server in place of SQLite: runs, checkpoints and the ensemble go through it."""
    root = write_tones(tmp_path / "tones")
    options = ["data=folder", f"data.root={root}", "folds.count=2", "trainer.max_epochs=1", "trainer.batch_size=4"]
    for feature in ("mel", "mfcc"):
        train(composed(*options, f"feature={feature}", f"tracking.uri={server}"))
    ids = ",".join(run.id for run in Tracker(server, "audio-mnist").search())
    metrics = ensemble(composed(f"run_ids=[{ids}]", f"tracking.uri={server}", name="ensemble"), tmp_path).metrics
    assert metrics["oof/n"] == 12
    assert not (tmp_path / "mlruns").exists()
    assert list((tmp_path / "art").rglob("best.ckpt"))


def _descendants(pid: int) -> list[int]:
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *_descendants(int(child))]
    return found


def _command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


@pytest.fixture
def variants(tmp_path: Path) -> tuple[Path, str]:
    """A sweep over three variants of a recipe, both features, two folds by speaker; `unscaled` is as MFCCs are."""
    root = write_tones(tmp_path / "tones", clips=12)
    done = run_command(
        tmp_path,
        *("train.py", "data=folder", f"data.root={root}", r"data.settings.speaker_pattern='(?P<speaker>s\d)_'"),
        *("folds.count=2", "variant=default,no_noise,unscaled", "feature=mel,mfcc", "fold=0,1", "trainer.max_epochs=4"),
        *("trainer.batch_size=8", "trainer.accelerator=cpu", "-m"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return tmp_path, done.stdout


def test_sweep_over_variants_prints_paired_differences(variants: tuple[Path, str]) -> None:
    """One row a variant; ensemble accuracy, its difference and log loss are those of the logged predictions."""
    folder, printed = variants
    tracker = Tracker(f"sqlite:///{folder}/mlruns/mlflow.db", "audio-mnist")
    p: dict[str, list[np.ndarray]] = {}
    truth: list[int] = []
    runs = tracker.search(kind="train")
    assert len(runs) == 10  # MFCCs are trained once for default and unscaled
    for fold in ("0", "1"):
        run_of = {(r.tags["variant"], r.tags["feature"]): r for r in runs if r.tags["fold"] == fold}
        for variant, mfcc in (("default", "default"), ("no_noise", "no_noise"), ("unscaled", "default")):
            of_fold = [run_of[variant, "mel"], run_of[mfcc, "mfcc"]]
            tables = [logged_predictions(tracker, run.id) for run in of_fold]
            p.setdefault(variant, []).append(np.mean([probabilities_of(table) for table in tables], axis=0))
        truth += [["high", "low", "mid"].index(label) for label in tables[0]["label"]]
    right = {name: np.concatenate(parts).argmax(axis=1) == truth for name, parts in p.items()}
    loss = {name: calibration.log_loss(np.concatenate(parts), np.array(truth)).mean() for name, parts in p.items()}
    lines = {name: next(line for line in printed.splitlines() if f"│ {name} " in line) for name in right}
    for name, line in lines.items():
        assert f" {right[name].mean():.4f} " in line and f" {loss[name]:.4f} " in line
    difference = 100 * (right["no_noise"].mean() - right["default"].mean())
    assert f"{difference:+.2f} (" in lines["no_noise"]
    assert "n = 36 recordings, the same for all; 95% intervals, for other speakers" in printed


def test_ensemble_takes_seeds_and_any_number_of_features(
    tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Two seeds of one feature and one of three others: four rows, Mel with the weight of two, the mean of all."""
    uri = f"tracking.uri=sqlite:///{tmp_path}/mlruns/mlflow.db"
    settings = ("data=folder", f"data.root={tones}", "folds.count=2", "trainer.accelerator=cpu", "trainer.max_epochs=2")
    small = ("feature.n_bins=40",)
    for fold in (0, 1):
        for overrides in (
            ["seed=0"],
            ["seed=1"],
            ["feature=pcen"],
            ["feature=gammatone"],
            ["feature=spectrogram", *small],
        ):
            train(composed(*settings, uri, f"fold={fold}", *overrides))
    tracker = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist")
    ids = [run.id for run in tracker.search(kind="train")]
    cfg = composed(f"run_ids=[{','.join(ids)}]", "combine=mean", "calibrate=none", uri, name="ensemble")
    ensemble(cfg, tmp_path)
    printed = capsys.readouterr().out
    for label in ("Mel", "PCEN", "Gammatone", "Spectrogram", "Ensemble"):
        assert f"│ {label} " in printed, printed
    assert "│ Mel         │  0.400 │" in printed and "│ PCEN        │  0.200 │" in printed
    written = pd.read_csv(tmp_path / "predictions.csv").set_index("clip_id")
    columns = ["p:high", "p:low", "p:mid"]
    logged = pd.concat(logged_predictions(tracker, run_id) for run_id in ids)
    mean = logged.groupby("clip_id")[columns].mean()
    assert logged.groupby("clip_id").size().eq(5).all()
    np.testing.assert_allclose(written.loc[mean.index, columns], mean, atol=1e-5)
