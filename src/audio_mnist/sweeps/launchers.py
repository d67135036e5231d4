"""How Hydra starts the runs of a sweep: one after another, or side by side.

A new launcher is a subclass of `Launcher` here and a file in `conf/hydra/launcher/`. Nothing else
changes.
"""

import contextlib
import os
import shutil
import sys
import threading
import time
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf, read_write

from audio_mnist.sweeps import workers
from audio_mnist.system import processes

_END_S = 10.0  # longest wait for workers that are still starting


class Launcher:
    """Base: Hydra runs the jobs one after another in the sweep's process.

    Args:
        config: the sweep's composed config, with its `hydra` part.

    Attributes:
        target: end of `hydra.launcher._target_`.
    """

    registry: ClassVar[list[type["Launcher"]]] = []
    target: ClassVar[str] = ""

    def __init__(self, config: DictConfig) -> None:
        self._config = config

    def __init_subclass__(cls) -> None:
        Launcher.registry.append(cls)

    @property
    def side_by_side(self) -> int:
        """Runs at a time."""
        return 1

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

    def train_nothing(self) -> None:
        """Expect no training: all runs are finished already."""

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

        settings = OmegaConf.to_container(self._config.hydra.launcher, resolve=True)
        assert isinstance(settings, dict)
        options = {str(key): value for key, value in settings.items() if key != "_target_"} | {"backend": "loky"}
        process_joblib_cfg(options)
        self._starting = threading.Thread(target=_start, args=(options, tracking_uri, jobs), daemon=True)
        self._starting.start()

    def wait(self) -> None:
        if self._starting is not None:
            self._starting.join()

    def train_nothing(self) -> None:
        if self._starting is not None:
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
            if reusable_executor._executor is not None:
                processes.kill(reusable_executor._executor)
            if not self._starting.is_alive() or time.monotonic() > deadline:
                return
            self._starting.join(0.1)

    def _run_side_by_side(self, runs: int) -> None:
        with read_write(self._config.hydra):
            self._config.hydra.launcher.n_jobs = runs


def launcher_of(config: DictConfig) -> Launcher:
    """Return the launcher that a sweep's config chooses."""
    target = str(config.hydra.launcher["_target_"])
    return next((kind for kind in Launcher.registry if target.endswith(kind.target)), Launcher)(config)


def _start(options: dict[str, Any], tracking_uri: str | None, jobs: int) -> None:
    from joblib import Parallel, cpu_count, delayed

    count = options["n_jobs"] if options["n_jobs"] > 0 else cpu_count()
    with contextlib.suppress(Exception):  # the launcher starts others, and reports what is wrong
        Parallel(**options)(delayed(workers.get_ready)(os.getpid(), tracking_uri) for _ in range(min(count, jobs)))


def _parallel_runs(accelerator: str, threads: int) -> int:
    """Return how many runs train side by side: one per GPU, else one per core and thread."""
    if accelerator != "cpu" and shutil.which("nvidia-smi"):
        import torch  # slow, so only where there may be a GPU

        if torch.cuda.is_available():
            return torch.cuda.device_count()
    if accelerator != "cpu" and sys.platform == "darwin":
        import torch

        if torch.backends.mps.is_available():
            return 1
    import joblib

    return max(1, joblib.cpu_count() // (threads if isinstance(threads, int) and threads > 0 else 1))


# conf/hydra/launcher/ refers to it
OmegaConf.register_new_resolver("audio_mnist.parallel_runs", _parallel_runs, replace=True)
