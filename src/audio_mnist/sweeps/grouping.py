"""Jobs that train together: cut into groups, each group one task of a worker."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import open_dict

from audio_mnist.sweeps import state, view, workers
from audio_mnist.sweeps.compose import SharingLoader

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

    from audio_mnist.sweeps.state import Sweep
    from audio_mnist.training.job import Job

log = logging.getLogger(__name__)
_MOST = 10  # runs of one group: as one net, their activations are in memory at once


def groups_of(kinds: Sequence[tuple[str, str] | None], seeds: Sequence[int], at_once: int) -> list[list[int]]:
    """Cut jobs into groups of one kin, enough for all workers. Each group has its share of each family.

    Args:
        kinds: kin and family of each job, as `kin_and_family` returns them; None for a job that stays alone.
        seeds: the jobs' random seeds; those of one seed share more.
        at_once: number of workers.

    Returns:
        Numbers of the jobs of each group.

    >>> groups_of([("clips", "mel")] * 5 + [("clips", "mfcc")] * 5, [0] * 10, 2)
    [[0, 1, 2, 5, 6], [3, 4, 7, 8, 9]]
    >>> groups_of([("clips", "mel")] * 4, [0, 1, 0, 1], 2)
    [[0, 2], [1, 3]]
    """
    by_kin: dict[str, dict[str, list[int]]] = {}
    groups = [[number] for number, kind in enumerate(kinds) if kind is None]
    for number, kind in enumerate(kinds):
        if kind is not None:
            by_kin.setdefault(kind[0], {}).setdefault(kind[1], []).append(number)
    together = len(kinds) - len(groups)
    for families in by_kin.values():
        jobs = sum(map(len, families.values()))
        # a kin of two jobs or more for each worker keeps all workers busy for the same time
        workers = at_once if jobs >= 2 * at_once else -(-at_once * jobs // together)
        rounds = -(-jobs // (_MOST * workers))
        parts: list[list[int]] = [[] for _ in range(min(jobs, workers * rounds))]
        first = 0  # the part that gets one job more, where a family cannot be cut evenly
        for numbers in families.values():
            numbers.sort(key=lambda number: seeds[number])  # all families alike, so that a part has few seeds
            least, more = divmod(len(numbers), len(parts))
            sizes = [least + ((place - first) % len(parts) < more) for place in range(len(parts))]
            for part, own in zip(parts, np.split(numbers, np.cumsum(sizes)[:-1]), strict=True):
                part += own.tolist()
            first += more
        groups += [part for part in parts if part]
    return sorted(groups, key=min)  # a job that repeats an earlier one comes after it


def reasons_alone(settings: dict[str, Any]) -> list[str]:
    """Return what keeps a run from training together with others; [] where nothing does.

    Args:
        settings: the run's whole config.
    """
    from audio_mnist.training.job import obstacles

    needs = {
        "trainer.together=null or true": settings["trainer"]["together"] is not False,
        "resume=true and a tracking store": settings["resume"] and settings["tracking"]["uri"] is not None,
    }
    return [f"needs {what}" for what, met in needs.items() if not met] + obstacles(settings)


def kin_and_family(job: "Job") -> tuple[str, str]:
    """Return two names: a job's kin and its family.

    Jobs of one kin can train together, on the same augmented waveforms. Those of one family also have the same feature
    and nets of one shape. An encoder takes no augmented waveforms, so its jobs are no kin of others.

    Args:
        job: the planned run.
    """
    from audio_mnist.augment import Placement
    from audio_mnist.features import FrontEnd
    from audio_mnist.features.encoder import Encoder
    from audio_mnist.training.batches import ShuffledBatches

    settings = job.settings
    place = Placement.of(settings["augment"])
    batches = ShuffledBatches(job.split.train, settings["trainer"]["batch_size"], settings["seed"], place)
    same = f"{job.corpus.fingerprint} {job.folds.fingerprint} {len(batches)} {batches.batch_size}"
    is_encoder = issubclass(FrontEnd.registry[job.feature], Encoder)
    return f"{same} {job.family if is_encoder else job.kin}", f"{same} {job.family}"


def replace_launch(sweep: "Sweep", at_once: int, *, tell: bool) -> None:
    """Let Hydra's joblib launcher start groups, not single jobs.

    Args:
        sweep: the sweep; its jobs have Hydra's numbers.
        at_once: groups side by side.
        tell: whether to say which runs train alone, and why.
    """
    from hydra.core.singleton import Singleton
    from hydra.core.utils import configure_log, setup_globals
    from hydra_plugins.hydra_joblib_launcher import _core
    from joblib import Parallel, cpu_count, delayed

    def launch(launcher: Any, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> "list[JobReturn]":
        setup_globals()
        configure_log(launcher.config.hydra.hydra_logging, launcher.config.hydra.verbose)
        settings = launcher.joblib | {"backend": "loky"}
        _core.process_joblib_cfg(settings)
        jobs = [sweep.jobs[initial_job_idx + number].job for number in range(len(job_overrides))]
        keys = [job.key for job in jobs]  # variants may give one job twice: the second one waits for the first
        reasons = [", ".join(reasons_alone(job.settings)) for job in jobs]
        for feature, reason in dict.fromkeys((j.feature, r) for j, r in zip(jobs, reasons, strict=True) if r and tell):
            log.info("%s: not trained together: %s", feature, reason)
        alone = [
            bool(reason) or key in sweep.taken_over or key in keys[:number]
            for number, (key, reason) in enumerate(zip(keys, reasons, strict=True))
        ]
        kinds = [None if by_itself else kin_and_family(job) for by_itself, job in zip(alone, jobs, strict=True)]
        seeds = [job.settings["seed"] for job in jobs]
        numbered = [(initial_job_idx + number, list(overrides)) for number, overrides in enumerate(job_overrides)]
        context = (launcher.hydra_context, launcher.config, launcher.task_function, Singleton.get_state(), os.getpid())
        done = Parallel(**settings)(
            delayed(run_group)([numbered[number] for number in group], *context)
            for group in groups_of(kinds, seeds, at_once if at_once > 0 else cpu_count())
        )
        results = {number: result for group in done for number, result in group}
        return [results[number] for number, _ in numbered]

    _core.launch = launch


def run_group(
    jobs: Sequence[tuple[int, list[str]]],
    hydra_context: Any,
    config: Any,
    task_function: Any,
    singletons: Any,
    sweep_pid: int,
) -> "list[tuple[int, JobReturn]]":
    """Train a group's jobs together; then let Hydra run each, which finds it trained and scores it."""
    from hydra.core.singleton import Singleton
    from hydra.core.utils import setup_globals
    from hydra_plugins.hydra_joblib_launcher._core import execute_job

    if len(jobs) > 1:
        setup_globals()
        Singleton.set_state(singletons)
        if os.getpid() != sweep_pid:
            workers.end_with_sweep()
        _train(jobs, hydra_context, config, quiet=os.getpid() != sweep_pid and view.VARIABLE in os.environ)
    context = replace(hydra_context, config_loader=SharingLoader(hydra_context.config_loader))
    return [
        (number, execute_job(number, overrides, context, config, task_function, singletons))
        for number, overrides in jobs
    ]


def _train(jobs: Sequence[tuple[int, list[str]]], hydra_context: Any, config: Any, *, quiet: bool) -> None:
    from hydra.core.utils import configure_log

    loader = SharingLoader(hydra_context.config_loader)
    composed = [loader.load_sweep_config(config, overrides) for _, overrides in jobs]
    folder = Path(config.hydra.sweep.dir)
    with open_dict(composed[0]):
        composed[0].hydra.job.id = composed[0].hydra.job.num = jobs[0][0]
        composed[0].hydra.runtime.output_dir = str(folder)
    configure_log(composed[0].hydra.job_logging)
    if quiet:
        view.leave_terminal()
    for cfg in composed:
        with open_dict(cfg):
            del cfg["hydra"]
    with workers.busy:
        try:
            from audio_mnist.training.together import train_together

            train_together(composed, [folder / str(number) for number, _ in jobs], folder, state.parent_of(folder))
        except Exception as error:
            log.warning("cannot train together (%s: %s); each run trains alone", type(error).__name__, error)
