"""Resume an interrupted run from its last epoch, with the same bits; never train a finished one twice."""

import contextlib
import logging
import pickle
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from audio_mnist.config import fingerprint
from audio_mnist.errors import RunError
from audio_mnist.system import locks
from audio_mnist.tracking.tracker import BROKEN, AnyTracker, RunRecord
from audio_mnist.training.job import Job

log = logging.getLogger(__name__)
LAST = "last.ckpt"  # the whole state after an epoch; its metrics are in the tracking store
PENDING = "pending.ckpt"  # a newer state; the metrics of its epoch are not logged yet
_SAME_RUN = "another process trains the same run"


@dataclass(frozen=True)
class Workplace:
    """The folder of a run's checkpoints.

    Attributes:
        folder: the folder.
        lasting: whether it outlives a killed process.
    """

    folder: Path
    lasting: bool

    def last(self) -> tuple[Path | None, int]:
        """Return the state to resume from and its number of epochs; None and 0 where none can be read."""
        path = self.folder / LAST
        if not path.exists():
            return None, 0
        try:
            return path, torch.load(path, map_location="cpu", weights_only=True)["epoch"] + 1
        except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
            log.warning("%s is damaged: this run starts again at its first epoch", path)
            path.unlink()
            return None, 0

    def clear(self) -> None:
        """Remove the checkpoints: the run is finished, or there is no run to resume."""
        if self.lasting:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(exist_ok=True)


@dataclass(frozen=True)
class Claim:
    """A run that this process trains and no other.

    Attributes:
        workplace: folder of its checkpoints.
        earlier: the tracked run of the same job that is finished, or that is resumed; None for a new one.
        resume_id: `resume_id` of this machine.
    """

    workplace: Workplace
    earlier: RunRecord | None
    resume_id: str


@contextlib.contextmanager
def claim(job: Job, tracker: AnyTracker) -> Iterator[Claim]:
    """Claim a run for the length of the block; other processes that train the same wait.

    Raises:
        RunError: the folder of the checkpoints cannot be written.
    """
    settings = job.settings
    with contextlib.ExitStack() as stack:
        if not job.resumable and tracker.keeps_runs:
            # nothing is kept, but no other process may resume this run meanwhile
            with contextlib.suppress(RunError):
                stack.enter_context(held(resume_dir(settings), job.key, _SAME_RUN))
        folder = resume_dir(settings) if job.resumable else None
        place = stack.enter_context(workplace(folder, job.key))
        here = resume_id(settings)
        earlier = earlier_run(tracker, job.key, here, job.kind) if job.resumable else None
        if earlier is None or earlier.status == "FINISHED":
            place.clear()
        yield Claim(place, earlier, here)


def earlier_run(tracker: AnyTracker, key: str, here: str, kind: str = "train") -> RunRecord | None:
    """Return the newest finished and usable run of a job, else the newest of this machine, else None."""
    finished = tracker.usable(tracker.search(kind=kind, job=key))
    if finished is not None:
        return finished
    unfinished = [run for run in tracker.search(kind=kind, job=key) if BROKEN not in run.tags]
    here_only = [run for run in unfinished if run.tags.get("resume_id", "") == here]
    return here_only[-1] if here_only else None


def resume_dir(settings: dict[str, Any]) -> Path:
    """Return the folder of one experiment's half-trained runs: in `resume_dir`, or beside the tracking database."""
    uri, experiment = settings["tracking"]["uri"] or "", settings["tracking"]["experiment"]
    database = Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None
    if settings["resume_dir"] is not None:
        key = fingerprint([str(database or uri), experiment])
        return Path(settings["resume_dir"]).expanduser().absolute() / key
    if database is not None:  # which may be moved with the folder
        return database.parent / "resume" / fingerprint([database.name, experiment])
    return Path("mlruns").absolute() / "resume" / fingerprint([uri, experiment])


def resume_id(settings: dict[str, Any]) -> str:
    """Return the id of this machine's resume folder, "" for a SQLite database.

    Runs on a shared server are resumed only where their checkpoints are. The id
    lies in a file of the folder, so neither the machine's name nor the folder's
    matters. Where the folder cannot be written, nothing is resumed.
    """
    if (settings["tracking"]["uri"] or "sqlite").startswith("sqlite"):
        return ""
    folder = resume_dir(settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "id.lock"):
            path = folder / "id"
            if not path.exists():
                path.write_text(uuid.uuid4().hex)
            return path.read_text()
    except OSError:
        return uuid.uuid4().hex


@contextlib.contextmanager
def workplace(folder: Path | None, key: str) -> Iterator[Workplace]:
    """Provide a run's folder for the length of the block; other processes that train the same wait.

    Args:
        folder: where all workplaces are kept; None for a folder that ends with the block.
        key: the run's key.

    Raises:
        RunError: the folder cannot be written.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="audio-mnist-") as temporary:
            yield Workplace(Path(temporary), lasting=False)
        return
    with held(folder, key, _SAME_RUN):
        target = folder / key
        target.mkdir(exist_ok=True)
        yield Workplace(target, lasting=True)
        with contextlib.suppress(OSError):  # not empty: a later process resumes from it
            target.rmdir()


@contextlib.contextmanager
def held(folder: Path, key: str, why: str) -> Iterator[None]:
    """Hold a lock beside half-trained runs, as `locks.held` does.

    Raises:
        RunError: the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.held(folder, key, why))
        except OSError as error:
            raise RunError(
                f"{folder}: half-trained runs cannot be kept there ({error.strerror or error}); "
                "choose another resume_dir, or resume=false"
            ) from None
        yield
