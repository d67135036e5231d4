"""How Hydra starts the runs of a sweep: one after another, or side by side.

A new launcher is a subclass of `Launcher` and a file in `conf/hydra/launcher/`. Nothing else
changes.
"""

import contextlib
import os
import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import DictConfig, OmegaConf, read_write

from audio_mnist.errors import AudioMnistError
from audio_mnist.sweeps import grouping, workers
from audio_mnist.system import processes

if TYPE_CHECKING:
    from audio_mnist.sweeps.state import Sweep

_END_S = 10.0  # longest wait for workers that are still starting


class Launcher:
    """Base: Hydra runs the jobs one after another in the sweep's process.

    Args:
        config: the sweep's composed config, with its `hydra` part.

    Attributes:
        target: end of `hydra.launcher._target_`.
        groups: whether runs train together.
    """

    registry: ClassVar[list[type["Launcher"]]] = []
    target: ClassVar[str] = ""
    groups: ClassVar[bool] = False

    def __init__(self, config: DictConfig) -> None:
        self._config = config

    def __init_subclass__(cls) -> None:
        Launcher.registry.append(cls)

    @property
    def side_by_side(self) -> int:
        """Runs at a time."""
        return 1

    @property
    def described(self) -> str:
        """How the runs train, for the sweep's first line."""
        return f"{self.side_by_side} at a time"

    @property
    def living(self) -> set[int]:
        """Numbers of jobs that continue after the sweep's end."""
        return set()

    def check(self) -> None:
        """Find out whether runs can be started, before anything is prepared.

        Raises:
            AudioMnistError: they cannot.
        """
        if self._config.trainer.together and not self.groups:
            raise AudioMnistError("trainer.together=true needs hydra/launcher=together")

    def resolve(self, cfg: DictConfig) -> list[str]:
        """Return overrides that fix what a job's own machine would decide otherwise."""
        return []

    def leave_cores(self, threads: int) -> None:
        """Run fewer jobs side by side where one uses more threads than `trainer.threads` says."""

    def start(self, tracking_uri: str | None, jobs: int) -> None:
        """Start worker processes, which import what a training needs while the sweep continues.

        Args:
            tracking_uri: where the runs are tracked, None where they are not.
            jobs: number of runs; further processes would wait for nothing.
        """

    def wait(self) -> None:
        """Wait until the worker processes are ready."""

    def expect(self, sweep: "Sweep") -> None:
        """Get ready for the sweep's jobs, or for no training where all are finished already."""

    def stop(self) -> None:
        """End the worker processes at once, with whatever they do."""


class JoblibLauncher(Launcher):
    """Runs side by side in processes of this machine.

    joblib keeps processes from one call to the next. So Hydra's launcher finds
    those that `start` started.
    """

    target = ".JoblibLauncher"

    def __init__(self, config: DictConfig) -> None:
        super().__init__(config)
        self._starting: threading.Thread | None = None

    @property
    def side_by_side(self) -> int:
        return int(OmegaConf.select(self._config, "hydra.launcher.n_jobs", default=1))

    def leave_cores(self, threads: int) -> None:
        asked = self._config.trainer.threads
        if self.side_by_side > 1 and threads > asked:
            self._run_side_by_side(max(1, self.side_by_side * asked // threads))

    def start(self, tracking_uri: str | None, jobs: int) -> None:
        if self.side_by_side == 1:
            return
        from hydra_plugins.hydra_joblib_launcher._core import process_joblib_cfg
        from joblib import cpu_count

        settings = OmegaConf.to_container(self._config.hydra.launcher, resolve=True)
        assert isinstance(settings, dict)
        options = {str(key): value for key, value in settings.items() if key != "_target_"} | {"backend": "loky"}
        process_joblib_cfg(options)
        count = min(options["n_jobs"] if options["n_jobs"] > 0 else cpu_count(), jobs)
        sweep = _fork_server(count, tracking_uri)
        self._starting = threading.Thread(target=_start, args=(options, sweep, count), daemon=True)
        self._starting.start()

    def wait(self) -> None:
        if self._starting is not None:
            self._starting.join()

    def expect(self, sweep: "Sweep") -> None:
        if (
            self._starting is not None
            and sweep.search is None
            and all(job.key in sweep.taken_over for _, job in sweep.jobs)
        ):
            self.stop()
            self._run_side_by_side(1)
            self._starting = None

    def stop(self) -> None:
        if self._starting is None:
            return
        from joblib.externals.loky import reusable_executor

        # joblib tidies up in that thread, and once more when this process ends: the two must not meet
        deadline = time.monotonic() + _END_S
        while True:
            if self._starting.is_alive():
                processes.kill_fork_server()  # else it stays, to collect the workers' ends
            if reusable_executor._executor is not None:
                with contextlib.suppress(AttributeError):  # its processes could not be started: nothing is to end
                    processes.kill(reusable_executor._executor)
            if not self._starting.is_alive() or time.monotonic() > deadline:
                return
            self._starting.join(0.1)

    def _run_side_by_side(self, runs: int) -> None:
        with read_write(self._config.hydra):
            self._config.hydra.launcher.n_jobs = runs


class TogetherLauncher(JoblibLauncher):
    """Runs that differ in fold, seed, feature and model alone train in one process, which augments their clips once.

    `trainer.together` says which do, and whether as one net.
    """

    target = "hydra/launcher=together"  # Hydra's own launcher is joblib's
    groups = True

    def expect(self, sweep: "Sweep") -> None:
        super().expect(sweep)
        named = self.target in self._config.hydra.overrides.hydra
        grouping.replace_launch(sweep, self.side_by_side, tell=named or bool(self._config.trainer.together))


def launcher_of(config: DictConfig) -> Launcher:
    """Return the launcher that a sweep's config chooses."""
    chosen = f"hydra/launcher={config.hydra.runtime.choices.get('hydra/launcher')}"
    target = str(config.hydra.launcher["_target_"])
    kinds = [kind for kind in Launcher.registry if kind.target == chosen or target.endswith(kind.target)]
    return max(kinds, key=lambda kind: kind.target == chosen, default=Launcher)(config)


def _fork_server(count: int, tracking_uri: str | None) -> workers.Sweep:
    """Start the process that `count` workers are forked from; return what they take over.

    In the main thread: C code that reads an environment variable while another
    thread sets one crashes.
    """
    from joblib import cpu_count

    # joblib gives processes that it starts itself the same limits
    threads = str(max(1, cpu_count() // count))
    names = [f"{library}_NUM_THREADS" for library in ("OMP", "OPENBLAS", "MKL", "BLIS")]
    limits = {name: os.environ.get(name, threads) for name in names}
    if sys.platform == "linux":
        with processes.environment(**limits, **{workers.KIND: (tracking_uri or "").partition(":")[0]}):
            processes.fork_from("audio_mnist.sweeps.preload")
    return workers.Sweep({**limits, **os.environ}, os.getcwd(), tracking_uri)


def _start(options: dict[str, Any], sweep: workers.Sweep, count: int) -> None:
    from joblib import Parallel, delayed

    with contextlib.suppress(Exception):  # the launcher starts others, and reports what is wrong
        Parallel(**options)(delayed(workers.get_ready)(sweep) for _ in range(count))


def _parallel_runs(accelerator: str, threads: int, per_gpu: int) -> int:
    """Return how many runs train side by side: `per_gpu` on each GPU, else one per core and thread."""
    import joblib

    on_cpu = max(1, joblib.cpu_count() // (threads if isinstance(threads, int) and threads > 0 else 1))
    if accelerator != "cpu" and shutil.which("nvidia-smi"):
        import torch  # slow, so only where there may be a GPU

        if torch.cuda.is_available():
            return max(torch.cuda.device_count(), min(on_cpu, torch.cuda.device_count() * max(1, per_gpu)))
    if accelerator != "cpu" and sys.platform == "darwin":
        import torch

        if torch.backends.mps.is_available():
            return 1
    return on_cpu


# conf/hydra/launcher/ refers to it
OmegaConf.register_new_resolver("audio_mnist.parallel_runs", _parallel_runs, replace=True)
