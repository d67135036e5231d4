"""One run: a job claimed, trained, scored and tracked."""

import contextlib
import errno
import functools
import json
import logging
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, seed_everything

from audio_mnist.data.prepare import PreparedCorpus, prepare
from audio_mnist.errors import ConfigError, PrunedError, RunError
from audio_mnist.system import devices
from audio_mnist.tracking.run import Run
from audio_mnist.tracking.tracker import CONFIG, AnyTracker, connect
from audio_mnist.tracking.uri import without_password
from audio_mnist.training.fit import Parts, build, fit
from audio_mnist.training.job import Job, plan
from audio_mnist.training.resume import Claim, claim, workplace
from audio_mnist.training.score import score

log = logging.getLogger(__name__)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)  # errors that a person can fix


class Trained(NamedTuple):
    """A finished run.

    Attributes:
        run_id: its id.
        metrics: its `best/*` metrics.
    """

    run_id: str
    metrics: dict[str, float]


def train(
    cfg: DictConfig,
    *,
    sweep_dir: Path | None = None,
    parent_id: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> Trained:
    """Train and score one fold as one tracked run.

    Args:
        cfg: the composed config of `conf/train.yaml`.
        sweep_dir: folder that the runs of a sweep share; None for a single run.
        parent_id: the sweep's tracked run.
        callbacks: Lightning callbacks besides the run's own.

    Raises:
        AudioMnistError: something that the caller can fix, before a run was started.
        Exception: whatever broke the run. The run has ended FAILED and holds the traceback.
    """
    if cfg.get("search") and sweep_dir is None:
        raise ConfigError("search needs a sweep: add -m")
    if cfg.trainer.together and sweep_dir is None:
        raise ConfigError("trainer.together=true needs a sweep: add -m")
    job = planned(cfg, sweep_dir)
    devices.set_up_cpu(job.settings["trainer"]["threads"])
    seed_everything(job.settings["seed"], verbose=False)
    parts = build(job, alone=sweep_dir is None)
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:  # a further process of one run on several devices
        with workplace(None, "") as place:
            fit(job, parts, place, None)
        return Trained("", {})
    tracker = connect(job.settings["tracking"]["uri"], job.settings["tracking"]["experiment"])
    with claim(job, tracker) as claimed:
        earlier = claimed.earlier
        if earlier is not None and earlier.status == "FINISHED" and sweep_dir is not None:
            log.info("%s is finished already: run %s", earlier.name, earlier.id)  # since this sweep began
            best = {name: value for name, value in earlier.metrics.items() if name.startswith("best/")}
            return Trained(earlier.id, best)
        run = open_run(tracker, job, claimed, parent_id)
        with ending(run), _device(job, sweep_dir) as parts.options["devices"]:
            metrics = _train_and_score(job, parts, claimed, run, callbacks)
        return Trained(run.id, metrics)


def planned(cfg: DictConfig, sweep_dir: Path | None) -> Job:
    """Plan the job, with as few messages as the runs of a sweep need."""
    _quieten()
    if sweep_dir is None:
        job = plan(cfg)
        for note in job.notes:
            log.info("note: %s", note)
        return job
    for name in ("audio_mnist.data.build_store", "audio_mnist.data.corpora"):  # the sweep reported it once
        logging.getLogger(name).setLevel(logging.ERROR)
    return plan(cfg, prepare=lambda data: _prepared_once(json.dumps([str(sweep_dir), data])))


@functools.lru_cache(1)
def _prepared_once(sweep_and_data: str) -> PreparedCorpus:
    """Prepare the corpus once per worker; later runs of the sweep reuse it."""
    return prepare(json.loads(sweep_and_data)[1])


def _train_and_score(
    job: Job, parts: Parts, claimed: Claim, run: Run, callbacks: Sequence[Callback]
) -> dict[str, float]:
    began = time.monotonic()
    run.log_text(OmegaConf.to_yaml(_shown(job.settings)), CONFIG)
    if job.corpus.left_out:
        run.log_text("\n".join(job.corpus.left_out) + "\n", "left_out.txt")
    before = claimed.workplace.last()[1]
    trainer, checkpoint = fit(job, parts, claimed.workplace, run, callbacks)
    metrics = score(job, run, trainer, checkpoint, parts.classifier.front_end())
    run.end("FINISHED")
    claimed.workplace.clear()
    where = f"fold {job.fold}" + (", inner part" if job.kind == "trial" else "")
    log.info(
        "%s %s: accuracy %.4f, loss %.3f, n = %d, %sin %.0f s, run %s%s",
        *(job.feature, where, metrics["accuracy"], metrics["loss"], len(job.split.fold)),
        f"{trainer.current_epoch} epochs " if trainer.current_epoch > before else "scored ",
        *(time.monotonic() - began, run.id),
        " (optimistic: its epoch or settings were chosen on this fold)" if job.optimistic else "",
    )
    return {f"best/{key}": value for key, value in metrics.items()}


def open_run(tracker: AnyTracker, job: Job, claimed: Claim, parent_id: str | None) -> Run:
    """Open the tracked run: the unfinished one of the same job where there is one, else a new one."""
    settings = _shown(job.settings)
    params = settings | {"data": {k: v for k, v in settings["data"].items() if k != "cache_dir"}}
    earlier = claimed.earlier
    if earlier is not None and earlier.status != "FINISHED":
        return tracker.reopen(earlier.id, params, parent_id)
    return tracker.start(
        f"{job.feature} {settings['model']['name']} fold {job.fold}{', trial' if job.kind == 'trial' else ''}",
        kind=job.kind,
        tags={
            "corpus": job.corpus.name,
            "corpus_fingerprint": job.corpus.fingerprint,
            "fold_fingerprint": job.folds.fingerprint,
            "config_fingerprint": job.config_fingerprint,
            "recipe_fingerprint": job.recipe_fingerprint,
            "job": job.key,
            "classes": ",".join(job.corpus.class_names),
            "fold": str(job.fold),
            "optimistic": str(job.optimistic).lower(),
            "sweep": parent_id or "",
            "variant": settings["variant"],
            "device": job.device,
            "precision": job.precision,
            "feature": job.feature,
            "seed": str(settings["seed"]),
            "resume_id": claimed.resume_id,
        },
        params=params,
        parent_id=parent_id,
    )


def _shown(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings as they may be logged."""
    tracked = settings["tracking"]
    settings = {key: value for key, value in settings.items() if key != "search"}  # its storage may name a password
    return settings | {"tracking": tracked | {"uri": without_password(tracked["uri"]) if tracked["uri"] else None}}


@contextlib.contextmanager
def _device(job: Job, sweep_dir: Path | None) -> Iterator[int | list[int]]:
    """Return Lightning's `devices`; in a sweep on CUDA hold a place on a GPU."""
    asked = job.settings["trainer"]["devices"]
    if sweep_dir is None or job.device != "cuda" or asked != 1:
        yield asked
        return
    with devices.free_gpu(str(sweep_dir), job.settings["trainer"]["runs_per_gpu"]) as number:
        yield [number]


@contextlib.contextmanager
def ending(run: Run) -> Iterator[None]:
    """End the run as FAILED or KILLED, with the reason in it, when the block ends in an error."""
    try:
        with _exiting_on_sigterm():
            yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit | PrunedError)
        with contextlib.suppress(Exception):  # the tracking store itself may be what broke
            run.log_text(without_password(traceback.format_exc()), "traceback.txt")
            run.set_tag("pruned", str(isinstance(error, PrunedError)).lower())
            run.set_tag("error", without_password(f"{type(error).__name__}: {error}"))
        run.end("KILLED" if stopped else "FAILED")
        if isinstance(error, OSError) and error.errno in _DISK:
            raise RunError(
                f"run {run.id} stopped: {error.strerror}{f' ({error.filename})' if error.filename else ''}; "
                "fix that and repeat the command: it resumes from the last kept state"
            ) from None
        raise


@contextlib.contextmanager
def _exiting_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that the run ends as KILLED and does not stay RUNNING."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: Any) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _quieten() -> None:
    """Silence what Lightning prints at every start, but not its warnings of mistakes."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # in this order: loaders copy from memory (ClipDataModule); epochs are logged, steps are not; Lightning uses
    # torch in an old way; a person may choose the CPU; a resumed run has checkpoints
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # on every login node of SLURM
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message="GPU available but not used.*")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")
    # a net of closed form has neither
    warnings.filterwarnings("ignore", message=".*training_step` returned `None`.*")
    warnings.filterwarnings("ignore", message=".*configure_optimizers` returned `None`.*")
