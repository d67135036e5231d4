"""Finished work stays finished: runs resume where they stopped, and a sweep is completed by the same command."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from audio_mnist.config import to_plain
from audio_mnist.ensembles.members import latest_sweep
from audio_mnist.system import locks
from audio_mnist.tracking.predictions import logged_predictions
from audio_mnist.tracking.run import MlflowRun
from audio_mnist.tracking.tracker import BEST_CHECKPOINT, RunRecord, Tracker
from audio_mnist.training import callbacks, identity, resume
from audio_mnist.training.classifier import Classifier
from audio_mnist.training.run import train
from tests.conftest import PROJECT, run_command, write_tones


class PowerError(Exception):
    """What a test has happen in mid-run."""


def stop_after(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """The next run breaks when `epoch` is over and its metrics are not logged yet; those not yet sent are lost."""
    plain, plain_end = Classifier.on_train_epoch_end, MlflowRun.end

    def breaking(self: Classifier) -> None:
        plain(self)
        if self.current_epoch == epoch:
            raise PowerError

    def end(self: MlflowRun, status: str) -> None:
        self._waiting.clear()
        plain_end(self, status)

    monkeypatch.setattr(Classifier, "on_train_epoch_end", breaking)
    monkeypatch.setattr(MlflowRun, "end", end)


def train_until(epoch: int, cfg: DictConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that `stop_after` breaks."""
    with monkeypatch.context() as patch:
        stop_after(patch, epoch)
        with pytest.raises(PowerError):
            train(cfg)


def tracker_of(cfg: DictConfig) -> Tracker:
    return Tracker(cfg.tracking.uri, cfg.tracking.experiment)


def training_runs(tracker: Tracker) -> list[RunRecord]:
    return tracker.search(kind="train")


def histories(tracker: Tracker, run: RunRecord) -> dict[str, list[tuple[int, float]]]:
    """Every value of every metric of a run, as (step, value)."""
    return {
        key: sorted((m.step, m.value) for m in tracker.client.get_metric_history(run.id, key)) for key in run.metrics
    }


def weights(tracker: Tracker, run: RunRecord) -> dict[str, torch.Tensor]:
    with tracker.artifact(run.id, BEST_CHECKPOINT) as path:
        return torch.load(path, weights_only=True)["state_dict"]


def assert_same(left: tuple[Tracker, RunRecord], right: tuple[Tracker, RunRecord]) -> None:
    """Bits of weights and predictions, every value of every metric, each once."""
    ours, theirs = weights(*left), weights(*right)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert logged_predictions(left[0], left[1].id).equals(logged_predictions(right[0], right[1].id))
    assert histories(*left) == histories(*right)


@pytest.mark.parametrize(
    "overrides",
    [
        ["feature=mel"],
        ["feature=mfcc", "optimizer.ema_decay=0.9"],
        pytest.param(["selection=inner", "inner_folds=2", "trainer.early_stopping_patience=6"], marks=pytest.mark.slow),
        ["selection=inner", "inner_folds=2", "optimizer.ema_decay=0.9"],
        pytest.param(
            [
                "selection=fold",
                "optimizer.schedule=none",
                "augment.placement.redraw=false",
                "augment.placement.copies=2",
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param(["trainer.validate_every=3", "optimizer.schedule=cosine"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_interrupted_run_resumes_to_the_same_bits(
    tone_config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    """Stopped twice, in one MLflow run: weights, predictions and metrics are those of a run that was not."""
    whole = tone_config(
        "resume_every_s=0", "trainer.max_epochs=8", *overrides, f"tracking.uri=sqlite:///{tmp_path}/whole/mlflow.db"
    )
    train(whole)
    cfg = tone_config("resume_every_s=0", "trainer.max_epochs=8", *overrides)
    for epoch in (2, 5):
        train_until(epoch, cfg, monkeypatch)
    (stopped,) = training_runs(tracker_of(cfg))
    assert stopped.status == "FAILED" and stopped.tags["error"].startswith("PowerError")
    train(cfg)
    (run,) = training_runs(tracker_of(cfg))
    assert run.id == stopped.id and run.status == "FINISHED" and "error" not in run.tags
    (expected,) = training_runs(tracker_of(whole))
    assert_same((tracker_of(cfg), run), (tracker_of(whole), expected))
    left = [path for path in (tmp_path / "mlruns" / "resume").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert left == []


def test_run_resumes_from_its_last_state_not_from_the_start(
    tone_config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epochs before it are not trained again."""
    cfg = tone_config("resume_every_s=0", "trainer.max_epochs=6")
    train_until(4, cfg, monkeypatch)
    seen = []
    plain = Classifier.on_train_epoch_end
    monkeypatch.setattr(Classifier, "on_train_epoch_end", lambda self: (seen.append(self.current_epoch), plain(self)))
    train(cfg)
    assert seen == [4, 5]


def test_state_without_logged_metrics_is_not_resumed(
    tone_config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process killed between an epoch's state and its metrics, and the next one soon after: no value is lost."""
    cfg = tone_config("resume_every_s=0", "trainer.max_epochs=6")
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.KeepState, "on_train_epoch_start", lambda *_: None)
        patch.setattr(MlflowRun, "flush", lambda run: run._waiting.clear())  # nothing is ever sent
        stop_after(patch, 4)
        with pytest.raises(PowerError):
            train(cfg)
    assert list((tmp_path / "mlruns" / "resume").rglob("pending.ckpt"))
    tracker = tracker_of(cfg)
    (run,) = training_runs(tracker)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowRun, "flush", lambda run: run._waiting.clear())
        stop_after(patch, 0)
        with pytest.raises(PowerError):
            train(cfg)
    train(cfg)
    steps = sorted(m.step for m in tracker.client.get_metric_history(run.id, "train/loss"))
    assert steps == list(range(6))


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_damaged_state_is_left_and_the_run_starts_again(
    tone_config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """The same bits as without it, and a warning that names the file."""
    whole = tone_config(
        "resume_every_s=0", "trainer.max_epochs=4", f"tracking.uri=sqlite:///{tmp_path}/whole/mlflow.db"
    )
    train(whole)
    cfg = tone_config("resume_every_s=0", "trainer.max_epochs=4")
    train_until(2, cfg, monkeypatch)
    (path,) = (tmp_path / "mlruns" / "resume").rglob("last.ckpt")
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "garbage": b"x" * 1000, "empty": b""}[damage])
    said = []
    monkeypatch.setattr(resume.log, "warning", lambda *args: said.append(args[0] % args[1:]))
    train(cfg)
    assert said == [f"{path} is damaged: this run starts again at its first epoch"]
    ((run,), (expected,)) = training_runs(tracker_of(cfg)), training_runs(tracker_of(whole))
    assert_same((tracker_of(cfg), run), (tracker_of(whole), expected))


def test_run_resumes_under_settings_that_change_no_bits(
    tone_config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clips were moved, the state is kept less often, no progress is shown: still one run."""
    cfg = tone_config("resume_every_s=0", "trainer.max_epochs=6")
    train_until(4, cfg, monkeypatch)
    moved = shutil.copytree(Path(cfg.data.root), tmp_path / "moved")
    train(tone_config("trainer.max_epochs=6", f"data.root={moved}", "resume_every_s=3", "trainer.progress_bar=false"))
    (run,) = training_runs(tracker_of(cfg))
    assert run.status == "FINISHED" and [step for step, _ in histories(tracker_of(cfg), run)["train/loss"]] == [
        *range(6)
    ]


def test_resume_false_trains_again(tone_config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of its own beside the broken one, which stays as it is."""
    cfg = tone_config("trainer.max_epochs=2")
    train_until(0, cfg, monkeypatch)
    train(tone_config("trainer.max_epochs=2", "resume=false"))
    assert [run.status for run in training_runs(tracker_of(cfg))] == ["FAILED", "FINISHED"]


def test_other_code_is_another_job(monkeypatch: pytest.MonkeyPatch, tone_config: Callable[..., DictConfig]) -> None:
    """A run of an older version of the package is neither resumed nor taken over."""
    settings = to_plain(tone_config())
    key = identity.job_key(settings, "corpus", "folds")
    assert key == identity.job_key(settings | {"variant": "other name", "resume": False}, "corpus", "folds")
    assert key != identity.job_key(settings | {"seed": 1}, "corpus", "folds")
    assert key != identity.job_key(settings, "other clips", "folds")
    assert key != identity.job_key(settings, "corpus", "other folds")
    assert key != identity.job_key(settings | {"trainer": settings["trainer"] | {"threads": 2}}, "corpus", "folds")
    monkeypatch.setattr(identity, "code_version", lambda: "other")
    assert key != identity.job_key(settings, "corpus", "folds")


def test_other_noise_is_another_job(tmp_path: Path, tone_config: Callable[..., DictConfig]) -> None:
    """A recording replaced in the folder of background noise, under the same name."""
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "a.wav").write_bytes(b"one")
    folder = f"augment.background.folder={tmp_path}/noise"
    on, off = (to_plain(tone_config(folder, f"augment.background.probability={p}")) for p in (0.5, 0.0))
    before = [identity.job_key(settings, "corpus", "folds") for settings in (on, off)]
    (tmp_path / "noise" / "a.wav").write_bytes(b"other")
    after = [identity.job_key(settings, "corpus", "folds") for settings in (on, off)]
    assert before[0] != after[0] and before[1] == after[1]


def test_folder_of_half_trained_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One database has one, however it is named and wherever it is moved; a server's runs belong to a folder."""
    monkeypatch.chdir(tmp_path)

    def of(uri: str, folder: str | None = None) -> dict:
        return {"tracking": {"uri": uri, "experiment": "e"}, "resume_dir": folder}

    relative = of("sqlite:///mlruns/mlflow.db")
    here = resume.resume_dir(relative)
    assert here == resume.resume_dir(of(f"sqlite:///{tmp_path}/mlruns/../mlruns/mlflow.db"))
    assert here.parent == tmp_path / "mlruns" / "resume" and resume.resume_id(relative) == ""
    monkeypatch.chdir(tmp_path.parent)
    moved = resume.resume_dir(relative)
    assert moved != here and moved.name == here.name
    uris = (f"sqlite:///{tmp_path}/a/mlflow.db", f"sqlite:///{tmp_path}/b/mlflow.db", "http://x:1", "http://y:1")
    assert len({resume.resume_dir(of(uri, "shared")) for uri in uris}) == 4
    ids = [resume.resume_id(of("http://x:1", folder)) for folder in (None, "shared", "shared")]
    assert ids[0] != ids[1] == ids[2] != ""
    shutil.move(tmp_path.parent / "shared", tmp_path / "moved")
    assert resume.resume_id(of("http://x:1", str(tmp_path / "moved"))) == ids[1]


def test_run_of_another_machine_is_not_resumed(
    tone_config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may still train there: it stays as it is, and this machine's run is finished."""
    here, elsewhere = (
        tone_config("resume_every_s=0", "trainer.max_epochs=5", f"resume_dir={tmp_path}/{name}")
        for name in ("here", "elsewhere")
    )
    monkeypatch.setattr(resume, "resume_id", lambda settings: settings["resume_dir"])
    train_until(2, here, monkeypatch)
    train_until(3, elsewhere, monkeypatch)
    (first, second) = training_runs(tracker_of(here))
    seen = []
    plain = Classifier.on_train_epoch_end
    monkeypatch.setattr(Classifier, "on_train_epoch_end", lambda self: (seen.append(self.current_epoch), plain(self)))
    train(here)
    assert seen[0] > 0, "it resumes from its own state, not from that of the newer run"
    statuses = {run.id: run.status for run in training_runs(tracker_of(here))}
    assert statuses == {first.id: "FINISHED", second.id: "FAILED"}


def test_run_that_trains_again_holds_its_lock(
    tone_config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """resume=false: no other process resumes it while it lives."""
    cfg = tone_config("resume=false")
    folder = resume.resume_dir(to_plain(cfg))
    seen = []
    plain = Classifier.on_train_epoch_end

    def look(self: Classifier) -> None:
        (run,) = training_runs(tracker_of(cfg))
        seen.append(locks.is_held(folder, run.tags["job"]))
        plain(self)

    monkeypatch.setattr(Classifier, "on_train_epoch_end", look)
    train(cfg)
    (run,) = training_runs(tracker_of(cfg))
    assert seen == [True] and not locks.is_held(folder, run.tags["job"])


SWEEP = (
    *("train.py", "data=folder", "data.root=tones", "feature=mel,mfcc", "fold=0,1", "folds.count=2"),
    *("trainer.batch_size=4", "trainer.accelerator=cpu", "trainer.max_epochs=60", "resume_every_s=0.5", "-m"),
)


def table_of(output: str) -> str:
    """The lines of the sweep's table."""
    return "\n".join(line for line in output.splitlines() if line.startswith(("┃", "│")))


@pytest.mark.slow
def test_same_sweep_again_trains_nothing(tmp_path: Path) -> None:
    """It says so, prints the same table, and adds no run; a larger one trains what is new; resume=false all."""
    write_tones(tmp_path / "tones")
    quick = tuple("trainer.max_epochs=2" if a.startswith("trainer.max_epochs") else a for a in SWEEP)
    first = run_command(tmp_path, *quick)
    assert first.returncode == 0, first.stdout + first.stderr
    again = run_command(tmp_path, *quick)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "4 of them are finished already" in again.stdout and ", 4 of them before" in again.stdout
    assert table_of(again.stdout) == table_of(first.stdout) != ""
    tracker = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist")
    assert len(training_runs(tracker)) == 4
    assert len(tracker.search(kind="sweep")) == 1
    larger = run_command(tmp_path, *quick[:-1], "seed=0,1", "-m")
    assert larger.returncode == 0, larger.stdout + larger.stderr
    assert "4 of them are finished already" in larger.stdout and "8 of 8 runs finished" in larger.stdout
    assert len(training_runs(tracker)) == 8
    assert len(latest_sweep(tracker)[1]) == 8  # what ensemble.py run_ids=latest combines
    anew = run_command(tmp_path, *quick[:-1], "resume=false", "-m")
    assert anew.returncode == 0 and "finished already" not in anew.stdout
    assert len(training_runs(tracker)) == 12


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    script, *rest = arguments
    return subprocess.Popen(
        [sys.executable, str(PROJECT / script), *rest],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # a shell's background jobs, as the tests may be one, ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def assert_whole(folder: Path, runs: int) -> Tracker:
    """No run twice, none RUNNING, one sweep, a consistent database, nothing half-trained left."""
    with sqlite3.connect(folder / "mlruns" / "mlflow.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    tracker = Tracker(f"sqlite:///{folder}/mlruns/mlflow.db", "audio-mnist")
    assert {run.status for run in tracker.search()} == {"FINISHED"}
    assert len(training_runs(tracker)) == len({run.tags["job"] for run in training_runs(tracker)}) == runs
    assert len(tracker.search(kind="sweep")) == 1
    assert list((folder / "mlruns" / "resume").rglob("*.ckpt")) == []
    return tracker


@pytest.mark.slow
def test_sweep_survives_ten_kills(tmp_path: Path) -> None:
    """SIGKILL to all its processes at ten random moments, the command again each time: as if undisturbed."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        folder.mkdir()
        write_tones(folder / "tones")
    whole = run_command(undisturbed, *SWEEP)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    moments = random.Random(0)
    for _ in range(10):
        process = start(killed, *SWEEP)
        time.sleep(moments.uniform(1, 15))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    last = start(killed, *SWEEP)
    output, _ = last.communicate(timeout=400)
    assert last.returncode == 0, output
    assert table_of(output) == table_of(whole.stdout) != ""
    theirs, ours = assert_whole(undisturbed, 4), assert_whole(killed, 4)
    expected = {run.tags["job"]: run for run in training_runs(theirs)}
    for run in training_runs(ours):
        assert_same((ours, run), (theirs, expected[run.tags["job"]]))


@pytest.mark.slow
def test_sweep_resumes_after_ctrl_c(tmp_path: Path) -> None:
    """Once is enough: it ends cleanly with its table, runs are KILLED; the command again finishes them."""
    write_tones(tmp_path / "tones")
    process = start(tmp_path, *SWEEP)
    resume = tmp_path / "mlruns" / "resume"
    deadline = time.monotonic() + 120
    while not list(resume.rglob("last.ckpt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Traceback" not in output and "KILLED" in output
    tracker = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist")
    assert "RUNNING" not in {run.status for run in tracker.search()}
    again = run_command(tmp_path, *SWEEP)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resumes after epoch" in again.stdout
    assert_whole(tmp_path, 4)


@pytest.mark.slow
def test_same_sweep_twice_at_once_trains_each_run_once(tmp_path: Path) -> None:
    """The second waits for the first, then prints the same table."""
    write_tones(tmp_path / "tones")
    quick = tuple("trainer.max_epochs=5" if a.startswith("trainer.max_epochs") else a for a in SWEEP)
    both = [start(tmp_path, *quick) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert table_of(outputs[0]) == table_of(outputs[1]) != ""
    assert sum("another process runs the same sweep: waiting for it" in output for output in outputs) == 1
    assert_whole(tmp_path, 4)


@pytest.mark.slow
def test_run_whose_sweep_was_killed_is_finished_by_its_worker_or_the_next(tmp_path: Path) -> None:
    """SIGKILL to the sweep's first process alone: nothing is trained by two processes."""
    write_tones(tmp_path / "tones")
    process = start(tmp_path, *SWEEP)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "mlruns" / "resume").rglob("last.ckpt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    workers = members_of(process.pid)
    assert workers
    again = start(tmp_path, *SWEEP)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert_whole(tmp_path, 4)
    deadline = time.monotonic() + 60
    while members_of(process.pid):  # they end when their runs do
        assert time.monotonic() < deadline, members_of(process.pid)
        time.sleep(0.5)


def members_of(group: int) -> list[int]:
    """Living training processes of a process group."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
            command = (status.parent / "cmdline").read_text()
        except (OSError, IndexError):  # it has ended
            continue
        # the process that they are forked from is a member too
        if int(fields[2]) == group and fields[0] != "Z" and "forkserver" in command:
            found.append(int(status.parent.name))
    return found


@pytest.mark.slow
def test_same_bits_side_by_side_one_after_another_and_alone(tmp_path: Path) -> None:
    """A sweep as shipped, one run after another, and each run by a command of its own."""
    quick = tuple("trainer.max_epochs=5" if a.startswith("trainer.max_epochs") else a for a in SWEEP)
    ways = {
        "side by side": [(*quick[:-1], "hydra.launcher.n_jobs=2", "-m")],
        "one after another": [(*quick[:-1], "hydra/launcher=basic", "-m")],
        "alone": [
            tuple({"feature=mel,mfcc": f"feature={feature}", "fold=0,1": f"fold={fold}"}.get(a, a) for a in quick[:-1])
            for feature, fold in (("mel", 0), ("mfcc", 1))
        ],
    }
    found = {}
    for way, commands in ways.items():
        folder = tmp_path / way
        folder.mkdir()
        write_tones(folder / "tones")
        for command in commands:
            done = run_command(folder, *command)
            assert done.returncode == 0, done.stdout + done.stderr
        tracker = Tracker(f"sqlite:///{folder}/mlruns/mlflow.db", "audio-mnist")
        found[way] = {run.tags["job"]: (tracker, run) for run in training_runs(tracker)}
    assert [len(runs) for runs in found.values()] == [4, 4, 2]
    for way in ("one after another", "alone"):
        for job, run in found[way].items():
            assert_same(run, found["side by side"][job])


def test_comment_outside_the_training_code_retrains_nothing(tmp_path: Path) -> None:
    """The demo page is edited: the sweep skips all its runs. A net is edited: the runs are other runs."""
    project = tmp_path / "project"
    for name in ("src", "conf", "train.py"):
        source = PROJECT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, project / name)
    write_tones(tmp_path / "tones")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    environment["PYTHONPATH"] = str(project / "src")

    def sweep() -> str:
        command = [sys.executable, str(project / "train.py"), *SWEEP[1:-1], "feature=mel", "trainer.max_epochs=1"]
        command += ["hydra/launcher=basic", "-m"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def edit(name: str) -> None:
        with open(project / "src" / "audio_mnist" / name, "a") as file:
            file.write("# a comment\n")

    assert "finished already" not in sweep()
    edit("inference/demo.py")
    edit("report/tables.py")
    assert "2 of them are finished already" in sweep()
    edit("models/resnet.py")
    assert "finished already" not in sweep()
