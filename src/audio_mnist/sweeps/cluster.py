"""Runs of a sweep as jobs of a SLURM cluster, through submitit.

Hydra's submitit launcher submits every job and then waits for one after another. `ClusterLauncher`
replaces that part: it submits what is not finished, joins jobs that an earlier command left, and
watches all of them at once.
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from filelock import FileLock
from omegaconf import DictConfig, read_write

from audio_mnist.errors import AudioMnistError, ConfigError, counted
from audio_mnist.sweeps import state
from audio_mnist.sweeps.launchers import Launcher
from audio_mnist.system.paths import network_file_system
from audio_mnist.training import progress

if TYPE_CHECKING:
    from submitit import Job

log = logging.getLogger(__name__)
_LOOK_S = 1.0  # between two looks for results
_ASK_S = 10.0  # between two questions to the cluster
# a job in another state than these has ended: after the grace of its state it is dead
_LIVING = ("READY", "PENDING", "RUNNING", "REQUEUED", "REQUEUE_HOLD", "COMPLETING", "SUSPENDED", "RESIZING")
_LAST_S = 15.0  # its result may still be on its way
_GRACE_S = {"PREEMPTED": 60.0, "UNKNOWN": 60.0, "NODE_FAIL": 60.0}  # queued again, or too new to be known
_END_S = 180.0  # longest wait for cancelled jobs; over 60 s was seen on a busy machine
# settings that submitit has for every kind of cluster
_SHARED = (
    *("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name"),
    "stderr_to_stdout",
)
_JOBS_FILE = "cluster.json"  # beside the half-trained runs: job key -> its job in the cluster


class ClusterLauncher(Launcher):
    """Runs as jobs of SLURM.

    Args:
        config: the sweep's composed config.
    """

    target = ".SlurmLauncher"
    cluster: ClassVar[str] = "slurm"

    def __init__(self, config: DictConfig) -> None:
        super().__init__(config)
        self._settings = config.hydra.launcher
        self._fixed: list[list[str]] = []  # of each job, what `resolve` added
        self._waiting: dict[int, Job] = {}  # job number -> job that has not ended

    @property
    def described(self) -> str:
        """Description of where the runs train."""
        partition = self._settings.get("partition")
        return "as jobs of SLURM" + (f", partition {partition}" if partition else "")

    @property
    def side_by_side(self) -> int:
        """Runs at a time, at most."""
        return int(self._settings.get("array_parallelism") or 4)

    def check(self) -> None:
        """Find out whether jobs can be submitted, and whether they could write what is tracked.

        Raises:
            AudioMnistError: the extra or the cluster is missing, or the database lies on a network file system.
        """
        from audio_mnist.system.devices import require_packages

        super().check()
        require_packages("slurm", "submitit", "hydra_plugins.hydra_submitit_launcher")
        if self.cluster != "slurm":
            return
        if shutil.which("sbatch") is None:
            raise AudioMnistError("hydra/launcher=slurm: no command sbatch; start the sweep on a login node of SLURM")
        uri = str(self._config.tracking.uri or "")
        if uri.startswith("sqlite:///"):
            path = Path(uri.removeprefix("sqlite:///")).absolute()
            kind = network_file_system(path)
            if kind:
                raise AudioMnistError(
                    f"tracking.uri={uri}: the database lies on a network file system ({kind}), where jobs of several "
                    "nodes would damage it. Start `mlflow server --backend-store-uri "
                    f"{uri} --host 0.0.0.0 --allowed-hosts 'THAT_MACHINE:5000,localhost:5000' --cors-allowed-origins "
                    "http://THAT_MACHINE:5000` on one machine, and give tracking.uri=http://THAT_MACHINE:5000"
                )

    def resolve(self, cfg: DictConfig) -> list[str]:
        """Fix device and precision here, once: nodes that differ would make runs of other identities."""
        from audio_mnist.system import devices

        accelerator, precision = cfg.trainer.accelerator, cfg.trainer.precision
        gpus = bool(self._settings.get("gpus_per_node"))
        fixed = []
        if accelerator in ("auto", "gpu"):  # a login node without a GPU would take "gpu" for another device
            accelerator = "cuda" if gpus or accelerator == "gpu" else "cpu"
            fixed.append(f"trainer.accelerator={accelerator}")
        if precision == "auto":
            # a login node has no GPU to ask
            precision = "bf16-mixed" if accelerator == "cuda" else devices.precision("auto", accelerator)
            fixed.append(f"trainer.precision={precision}")
        self._fixed.append(fixed)
        return fixed

    def leave_cores(self, threads: int) -> None:
        """Ask for as many cores as the run with most threads needs."""
        if (self._settings.get("cpus_per_task") or threads) < threads:
            with read_write(self._config.hydra):
                self._settings.cpus_per_task = threads

    def expect(self, sweep: state.Sweep) -> None:
        """Replace Hydra's way to launch."""
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher

        def launch(hydra_launcher: Any, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list:
            return self._launch(sweep, hydra_launcher, job_overrides, initial_job_idx)

        BaseSubmititLauncher.launch = launch

    @property
    def living(self) -> set[int]:
        """Numbers of the jobs that this launcher left in the cluster."""
        return set(self._waiting)

    def _launch(self, sweep: state.Sweep, hydra_launcher: Any, overrides: Sequence[Sequence[str]], first: int) -> list:
        todo = [n for n in range(first, first + len(overrides)) if not state.is_taken_over(sweep.folder, n)]
        logging.getLogger("submitit").setLevel(logging.ERROR)
        try:
            with self._jobs_file(sweep) as known, self._signals_wait():
                joined = self._joined(sweep, todo, known)
                new = [number for number in todo if number not in joined]
                jobs = self._submit(hydra_launcher, [[*overrides[n - first], *self._fixed[n]] for n in new], new)
                self._waiting = joined | dict(zip(new, jobs, strict=True))
                for number, job in zip(new, jobs, strict=True):
                    known[sweep.jobs[number].job.key] = {
                        "id": job.job_id,
                        "folder": str(job.paths._folder),
                        "output": str(sweep.folder / str(number)),
                        "sweep": sweep.run_id,
                    }
            if sweep.view is not None:
                for number in joined:
                    sweep.view.move(number, sweep.elsewhere[number])
            if joined:
                log.info("joined %s of an earlier command, not submitted again", counted(len(joined), "job"))
            self._watch(sweep)
        except AudioMnistError as error:
            sys.exit(f"error: {error}")
        except BaseException:
            self._interrupted(sweep)
            raise
        return []

    def _submit(self, hydra_launcher: Any, overrides: list[list[str]], numbers: list[int]) -> "list[Job]":
        import submitit
        from hydra.core.singleton import Singleton

        if not numbers:
            return []
        settings = {key: value for key, value in hydra_launcher.params.items() if value is not None}
        settings.pop("leave_jobs", None)
        folder, timeouts = settings.pop("submitit_folder"), settings.pop("max_num_timeout", None)
        options = {} if timeouts is None else {f"{self.cluster}_max_num_timeout": timeouts}
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=self.cluster, **options)
            executor.update_parameters(**{k if k in _SHARED else f"{self.cluster}_{k}": v for k, v in settings.items()})
            return executor.map_array(
                hydra_launcher,
                overrides,
                ["hydra.sweep.dir"] * len(numbers),
                numbers,
                [f"job_id_for_{number}" for number in numbers],
                [Singleton.get_state()] * len(numbers),
            )
        except (
            submitit.core.utils.FailedJobError,
            NameError,
            TypeError,
            RuntimeError,
            subprocess.SubprocessError,
        ) as e:
            raise ConfigError(
                f"hydra/launcher={self.cluster}: the cluster refused the jobs ({_last_line(e)})"
            ) from None

    def _joined(self, sweep: state.Sweep, todo: list[int], known: dict[str, dict[str, str]]) -> "dict[int, Job]":
        """Return the jobs of an earlier command that are still in the cluster."""
        entries = {n: known[sweep.jobs[n].job.key] for n in todo if sweep.jobs[n].job.key in known}
        found = {number: self._job(entry["folder"], entry["id"]) for number, entry in entries.items()}
        if not found:
            return {}
        states, queued = self._states(found), self._in_queue(found)
        living = {
            number: job
            for number, job in found.items()
            if not job.paths.result_pickle.exists() and (number in queued or states[number] in _LIVING)
        }
        sweep.elsewhere |= {number: Path(entries[number]["output"]) for number in living}
        return living

    def _job(self, folder: str, job_id: str) -> "Job":
        import submitit

        kind = submitit.SlurmJob if self.cluster == "slurm" else submitit.LocalJob
        return kind(folder, job_id)

    def _watch(self, sweep: state.Sweep) -> None:
        """Wait for all jobs at once; write the reason of one that died into its folder."""
        from submitit.core.utils import pickle_load

        asked, ended, states = time.monotonic(), dict[int, float](), dict[int, str]()
        while self._waiting:
            time.sleep(_LOOK_S)
            now = time.monotonic()
            for number, job in list(self._waiting.items()):
                if job.paths.result_pickle.exists():
                    del self._waiting[number]
                    try:
                        outcome, result = pickle_load(job.paths.result_pickle)
                    except Exception:  # an exception of a person's own class may not be read back; its run has the text
                        continue
                    if outcome == "error":  # before Hydra could run it
                        self._died(sweep, number, job, f"failed ({_last_line(result)})")
                elif number in ended and now - ended[number] > _GRACE_S.get(states[number], _LAST_S):
                    del self._waiting[number]
                    self._died(sweep, number, job, f"ended as {states[number]} without a result")
            if now - asked > _ASK_S and self._waiting:
                asked = now
                states = self._states(self._waiting)
                queued = self._in_queue(self._waiting)
                over = [n for n, state in states.items() if state not in _LIVING and n not in queued]
                ended = {number: ended.get(number, now) for number in over}

    def _died(self, sweep: state.Sweep, number: int, job: "Job", how: str) -> None:
        """Tell the table, the terminal and the live view why a job has no result."""
        name = f"{'SLURM' if self.cluster == 'slurm' else 'local'} job {job.job_id}"
        reason = sweep.died[number] = f"{name} {how}; its log: {job.paths.stderr}"
        log.warning("%s: %s", sweep.jobs[number].overrides, reason)
        folder = sweep.folder_of(number)
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)  # it may have died before Hydra could
            progress.write(folder, state="failed", reason=reason)

    def _states(self, jobs: "dict[int, Job]") -> dict[int, str]:
        """Ask the cluster once for the states of all jobs, such as PENDING, RUNNING or CANCELLED."""
        if self.cluster == "slurm" and jobs:
            watcher = next(iter(jobs.values())).watcher
            watcher.clear()  # else a job that was queued again keeps its old state
            watcher.update()
            return {number: watcher.get_state(job.job_id, "cache").split()[0] for number, job in jobs.items()}
        return {number: job.state for number, job in jobs.items()}

    def _in_queue(self, jobs: "dict[int, Job]") -> set[int]:
        """Return the numbers of the jobs that wait, run or end; the accounting may know a queued job as PREEMPTED."""
        if self.cluster != "slurm":
            return {n for n, job in jobs.items() if job.state in _LIVING}
        listed = subprocess.run(["squeue", "-h", "-r", "--me", "-o", "%i"], capture_output=True, text=True)
        if listed.returncode:  # the controller does not answer
            return set(jobs)
        return {number for number, job in jobs.items() if job.job_id in listed.stdout.split()}

    def _interrupted(self, sweep: state.Sweep) -> None:
        """Cancel the jobs and wait for their end, or leave them where the config says so."""
        if not self._waiting:
            return
        if self._settings.get("leave_jobs"):
            joins = "the same command joins them again" if sweep.resume_dir else "with resume=false nothing joins them"
            log.info("left in the cluster: %s; %s", counted(len(self._waiting), "job"), joins)
            return
        jobs = counted(len(self._waiting), "job")
        log.info("cancelling %s; press Ctrl-C again to leave without waiting", jobs)
        deadline, left = time.monotonic() + _END_S, set(self._waiting)
        try:
            with contextlib.suppress(KeyboardInterrupt):  # asked for a second time: they end by themselves
                with self._signals_wait():
                    for job in self._waiting.values():
                        job.cancel(check=False)
                while (left := self._in_queue(self._waiting)) and time.monotonic() < deadline:
                    time.sleep(_LOOK_S)
        finally:
            self._waiting = {}
        if left:
            log.warning("cancelled jobs that may still run: %d", len(left))

    @contextlib.contextmanager
    def _jobs_file(self, sweep: state.Sweep) -> Iterator[dict[str, dict[str, str]]]:
        """Read and write, under a lock, which jobs are in the cluster; kept where runs can be resumed."""
        if sweep.resume_dir is None:
            yield {}
            return
        path = sweep.resume_dir / _JOBS_FILE
        with FileLock(f"{path}.lock"):
            try:
                known = json.loads(path.read_text())
            except (OSError, ValueError):
                known = {}
            try:
                yield known
            finally:
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps(known))
                os.replace(partial, path)

    @contextlib.contextmanager
    def _signals_wait(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM wait: a job between its submission and our record of it would be lost."""
        signals = {signal.SIGINT, signal.SIGTERM} if self.cluster == "slurm" else set()  # local jobs would inherit it
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class LocalClusterLauncher(ClusterLauncher):
    """Runs as processes that submitit starts on this machine, all at once: a cluster for tests."""

    target = ".LocalLauncher"
    cluster = "local"

    @property
    def described(self) -> str:
        """Description of where the runs train."""
        return "as submitit's local jobs"


def _last_line(error: Exception | str) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
