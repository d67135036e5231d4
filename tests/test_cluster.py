"""Sweeps on a cluster: submitit's local jobs everywhere, a real SLURM where one can be started."""

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from audio_mnist.errors import AudioMnistError
from audio_mnist.sweeps import cluster
from audio_mnist.system import paths
from audio_mnist.tracking.tracker import Tracker
from tests.conftest import PROJECT, composed, run_command, write_tones
from tests.test_resuming import start, table_of, training_runs

TOOLS = ("slurmctld", "slurmd", "sbatch", "munged", "slurmdbd", "mariadbd")
SWEEP = (
    *("train.py", "data=folder", "data.root=tones", "feature=mel,mfcc", "fold=0,1,2,3,4"),
    *("trainer.batch_size=4", "resume_every_s=0"),
)


def launcher(*overrides: str) -> cluster.ClusterLauncher:
    """The launcher of a sweep on SLURM, as the callback builds it."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        config = compose("train", ["hydra/launcher=slurm", *overrides], return_hydra_config=True)
    return cluster.ClusterLauncher(config)


# --- what is decided before any job is submitted


def test_device_and_precision_are_fixed_at_submission() -> None:
    """`auto` becomes what this machine or the asked GPUs say; what was given stays."""
    fixed = launcher().resolve(composed())
    assert fixed[0] == "trainer.accelerator=cpu" and fixed[1].startswith("trainer.precision=")
    assert "auto" not in fixed[1]
    assert launcher("hydra.launcher.gpus_per_node=1").resolve(composed()) == [
        "trainer.accelerator=cuda",
        "trainer.precision=bf16-mixed",
    ]
    assert launcher().resolve(composed("trainer.accelerator=cpu", "trainer.precision=32-true")) == []


def test_jobs_ask_for_the_cores_of_the_run_with_most_threads() -> None:
    """cpus_per_task is trainer.threads, and more in a sweep over threads."""
    one = launcher("trainer.threads=2")
    assert one._settings.cpus_per_task == 2
    one.leave_cores(4)
    assert one._settings.cpus_per_task == 4


def test_sqlite_on_a_network_file_system_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message names the kind of file system and `mlflow server`; without sbatch it says where to start."""
    uri = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(AudioMnistError, match="no command sbatch; start the sweep on a login node"):
        launcher(uri).check()
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    launcher(uri).check()
    monkeypatch.setattr(cluster, "network_file_system", lambda _path: "nfs4")
    with pytest.raises(
        AudioMnistError,
        match=r"network file system \(nfs4\).*mlflow server.*--allowed-hosts .*--cors-allowed-origins .*tracking.uri=http://",
    ):
        launcher(uri).check()
    launcher("tracking.uri=http://127.0.0.1:5000").check()


def test_a_gpu_has_one_name_on_all_machines() -> None:
    """`gpu` is `cuda` on a node and would be `gpu` on a login node: two identities of one run."""
    assert launcher().resolve(composed("trainer.accelerator=gpu"))[0] == "trainer.accelerator=cuda"


def test_network_file_systems_are_told_by_the_innermost_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    """A local disk mounted below a network home counts as local, and the other way round."""
    mounts = "a / ext4 rw\nb /net nfs4 rw\nc /net/me/local\\040disk xfs rw\nd /scratch lustre rw\n"
    mounts += "e /auto autofs rw\nf /auto nfs4 rw\n"  # the later one counts
    monkeypatch.setattr(Path, "read_text", lambda _self: mounts)
    asked_for = ("/x", "/net/me", "/net/me/local disk/a", "/scratch/b", "/auto/x")
    found = [paths.network_file_system(Path(path)) for path in asked_for]
    assert found == ["", "nfs4", "", "lustre", "nfs4"]


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without submitit, one message names the extra."""
    monkeypatch.setattr("audio_mnist.system.devices.find_spec", lambda _name: None)
    with pytest.raises(AudioMnistError, match=r"\[slurm\]"):
        launcher().check()


def test_a_result_that_cannot_be_read_back_stops_no_other_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As an exception of a person's own class; its run has the text. The others are waited for."""
    monkeypatch.setattr(cluster, "_LOOK_S", 0.0)
    watching = launcher()
    results = [tmp_path / "0.pkl", tmp_path / "1.pkl"]
    results[0].write_bytes(b"no pickle")
    results[1].write_bytes(pickle.dumps(("success", None)))
    watching._waiting = {
        n: SimpleNamespace(paths=SimpleNamespace(result_pickle=path)) for n, path in enumerate(results)
    }
    watching._watch(SimpleNamespace())  # ends: no job is waited for
    assert watching._waiting == {}


@pytest.mark.parametrize("answer", [KeyboardInterrupt, {0}], ids=["Ctrl-C again", "jobs that remain"])
def test_cancelling_ends(answer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A second Ctrl-C, or jobs that do not end: the sweep leaves, names what may still run, and knows no living job."""
    monkeypatch.setattr(cluster, "_LOOK_S", 0.0)
    monkeypatch.setattr(cluster, "_END_S", 0.0)
    cancelled: list[bool] = []
    leaving = launcher()
    leaving._waiting = {0: SimpleNamespace(cancel=lambda check: cancelled.append(check))}
    monkeypatch.setattr(leaving, "_in_queue", Mock(side_effect=[answer]))
    with caplog.at_level("WARNING"):
        leaving._interrupted(SimpleNamespace())
    assert cancelled == [False] and leaving.living == set()
    assert "cancelled jobs that may still run: 1" in caplog.text


# --- submitit's local jobs


@pytest.mark.slow
def test_local_jobs_give_the_same_table_and_are_not_submitted_twice(tmp_path: Path) -> None:
    """Two runs as submitit's local jobs; the same command again submits none."""
    write_tones(tmp_path / "tones")
    command = [*SWEEP[:3], "feature=mel", "fold=0,1", *SWEEP[5:], "trainer.max_epochs=2"]
    first = run_command(tmp_path, *command, "hydra/launcher=submitit_local", "-m")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "as submitit's local jobs" in first.stdout and "2 of 2 runs finished" in first.stdout
    before = len(list(tmp_path.glob("mlruns/hydra/*/.submitit/*")))
    again = run_command(tmp_path, *command, "hydra/launcher=submitit_local", "-m")
    assert again.returncode == 0 and "2 of them are finished already" in again.stdout
    assert len(list(tmp_path.glob("mlruns/hydra/*/.submitit/*"))) == before
    here = run_command(tmp_path, *command, "tracking.uri=sqlite:///here/mlflow.db", "-m")
    assert table_of(here.stdout) == table_of(first.stdout) != ""


# --- a real SLURM


@pytest.fixture(scope="module")
def slurm() -> Iterator[str]:
    """Path of the config of a SLURM of the tests' own, with two virtual nodes."""
    missing = [tool for tool in TOOLS if not shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin")]
    if missing or os.geteuid() != 0:
        pytest.skip(f"no SLURM can be started: {', '.join(missing) or 'not root'}")
    folder = tempfile.mkdtemp(prefix="slurm-", dir="/tmp")  # a socket's path must be short
    os.chmod(folder, 0o755)  # MariaDB runs as another user
    script = str(PROJECT / "tests" / "slurm.sh")
    environment = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
    with open(f"{folder}/start.log", "w") as log:
        started = subprocess.run(
            [script, "start", folder], env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
    try:
        assert started.returncode == 0, Path(f"{folder}/start.log").read_text()
        os.environ["SLURM_CONF"] = f"{folder}/slurm.conf"
        yield os.environ["SLURM_CONF"]
    finally:
        os.environ.pop("SLURM_CONF", None)
        subprocess.run([script, "stop", folder], capture_output=True, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def asked(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def wait_for(condition: Callable[[], object], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.5)


def running(node: str) -> list[str]:
    """SLURM's jobs that run on a node."""
    return asked("squeue", "-h", "-r", "-t", "R", "-w", node, "-p", "main", "-o", "%i")


def processes_of(job: str) -> list[int]:
    """Ids of the Python processes of a job of an array."""
    array, _, task = job.partition("_")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        wanted = {f"SLURM_ARRAY_JOB_ID={array}".encode(), f"SLURM_ARRAY_TASK_ID={task}".encode()}
        if wanted <= set(environment) and b"submitit.core._submit" in command and b"srun" not in command:
            found.append(int(folder.name))
    return found


def trains(tracker: Tracker) -> bool:
    """Whether a run is in the middle of its training."""
    return any(run.status == "RUNNING" and run.metrics for run in tracker.search(kind="train"))


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
@pytest.mark.timeout(1200)
def test_a_sweep_on_slurm_survives_all_and_gives_the_table_of_one_machine(tmp_path: Path) -> None:
    """Ctrl-C once; a node pre-empted; a job killed and named; then the same command finishes, each run once."""
    write_tones(tmp_path / "tones", clips=10)
    quick = (*SWEEP, "trainer.max_epochs=12")
    here = run_command(tmp_path, *quick, "tracking.uri=sqlite:///here/mlflow.db", "-m")
    assert here.returncode == 0, here.stdout + here.stderr
    tracker = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist")
    command = (*quick, "hydra/launcher=slurm", "-m")

    # Ctrl-C cancels the jobs
    first = start(tmp_path, *command)
    wait_for(lambda: trains(tracker), "a run that trains")
    first.send_signal(signal.SIGINT)
    output = first.communicate(timeout=300)[0]
    assert first.returncode == 130 and "cancelling" in output, output
    assert asked("squeue", "-h", "-p", "main", "-o", "%i") == [], output
    assert "RUNNING" not in {run.status for run in tracker.search()}, output

    # a node is pre-empted, and a job on the other one is killed
    second = start(tmp_path, *command)
    wait_for(lambda: running("n0") and running("n1") and trains(tracker), "runs on both nodes")
    asked("sbatch", "-p", "urgent", "-w", "n0", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")
    victim = running("n1")[0]
    wait_for(lambda: processes_of(victim), "the victim's process")
    for process in processes_of(victim):
        os.kill(process, signal.SIGKILL)
    output = second.communicate(timeout=500)[0]
    assert second.returncode == 1 and "9 of 10 runs finished" in output, output
    assert re.search(rf"SLURM job {victim} ended as \w+ without a result", output), output
    assert "RUNNING" not in {run.status for run in tracker.search()}, output

    # the same command trains what is missing
    third = run_command(tmp_path, *command)
    assert third.returncode == 0 and "10 of 10 runs finished" in third.stdout, third.stdout + third.stderr
    assert table_of(third.stdout) == table_of(here.stdout) != ""
    assert asked("squeue", "-h", "-p", "main", "-o", "%i") == []
    runs = training_runs(tracker)
    assert len(runs) == len({run.tags["job"] for run in runs}) == 10
    assert {run.status for run in tracker.search()} == {"FINISHED"}
    jobs = len(asked("sacct", "-X", "-n", "-o", "JobID"))
    again = run_command(tmp_path, *command)
    assert again.returncode == 0 and len(asked("sacct", "-X", "-n", "-o", "JobID")) == jobs  # nothing submitted


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_jobs_that_were_left_are_joined(tmp_path: Path) -> None:
    """With leave_jobs=true, Ctrl-C leaves the jobs; the same command waits for them and submits none."""
    write_tones(tmp_path / "tones", clips=10)
    command = (*SWEEP[:3], "feature=mel", "fold=0,1", *SWEEP[5:], "trainer.max_epochs=150", "hydra/launcher=slurm")
    command = (*command, "hydra.launcher.leave_jobs=true", "-m")
    tracker = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist")
    first = start(tmp_path, *command)
    wait_for(lambda: trains(tracker), "a run that trains")
    first.send_signal(signal.SIGINT)
    output = first.communicate(timeout=300)[0]
    assert first.returncode == 130 and "left in the cluster: 2 jobs; the same command joins them" in output, output
    jobs = len(asked("sacct", "-X", "-n", "-o", "JobID"))
    second = run_command(tmp_path, *command)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "joined 2 jobs of an earlier command, not submitted again" in second.stdout
    assert "2 of 2 runs finished" in second.stdout
    assert len(asked("sacct", "-X", "-n", "-o", "JobID")) == jobs
    assert [run.status for run in training_runs(tracker)] == ["FINISHED"] * 2


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_a_sweep_inside_an_allocation_of_two_tasks_trains(tmp_path: Path) -> None:
    """`sbatch -n 2` of the plain command: Lightning does not take SLURM's tasks for its own."""
    write_tones(tmp_path / "tones")
    command = f"{sys.executable} {PROJECT / 'train.py'} " + " ".join(
        (*SWEEP[1:3], "feature=mel", "fold=0,1", "trainer.max_epochs=2", "trainer.batch_size=4", "-m")
    )
    asked("sbatch", "-W", "-n", "2", "-o", str(tmp_path / "out.txt"), "-D", str(tmp_path), "--wrap", command)
    output = (tmp_path / "out.txt").read_text()
    assert "2 of 2 runs finished" in output and "srun" not in output, output
