"""An interrupted run goes on from its last epoch, as if it had not stopped; a finished one is not trained twice."""

import contextlib
import functools
import hashlib
import logging
import pickle
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from audio_mnist.config import fingerprint, recipe
from audio_mnist.data.decode import recordings_in
from audio_mnist.errors import RunError
from audio_mnist.system import devices

log = logging.getLogger(__name__)
LAST = "last.ckpt"  # in a run's workplace: the whole state after an epoch whose metrics are in the tracking store
PENDING = "pending.ckpt"  # the state after the epoch before this one's first step


@functools.cache
def code_version() -> str:
    """Of what a training's bits depend on beside settings and clips: this package's text, torch and its companions."""
    digest = hashlib.sha256()
    here = Path(__file__).parents[1]
    for path in sorted(here.rglob("*.py")):
        digest.update(f"{path.relative_to(here)}\0".encode() + path.read_bytes())
    versions = [metadata.version(name) for name in ("torch", "torchaudio", "pytorch-lightning", "numpy")]
    return fingerprint([digest.hexdigest(), versions])


def job_key(settings: dict[str, Any], corpus_fingerprint: str, fold_fingerprint: str) -> str:
    """What two runs share that give the same bits on one machine: settings, clips, noise, folds, precision and code."""
    chosen = settings["trainer"]
    precision = devices.precision(chosen["precision"], chosen["accelerator"])
    recordings = [fingerprint(_noise(settings["augment"])), corpus_fingerprint]
    return fingerprint([recipe(settings), *recordings, fold_fingerprint, str(precision), code_version()])


def _noise(augment: dict[str, Any]) -> list[list]:
    """Path, size and time of each recording that `augment.background` plays."""
    own = augment.get("background") or {}
    if not own.get("probability") or not own.get("folder"):
        return []
    stats = [(path, path.stat()) for path in recordings_in(Path(own["folder"]).expanduser())]
    return [[str(path), status.st_size, status.st_mtime_ns] for path, status in stats]


@dataclass(frozen=True)
class Workplace:
    """Where a run keeps what it would go on from.

    Attributes:
        folder: its checkpoints.
        lasting: whether they stay there when the process is killed.
    """

    folder: Path
    lasting: bool

    def last(self) -> tuple[Path | None, int]:
        """State to go on from and the epochs that it has, None and 0 where there is none that can be read."""
        path = self.folder / LAST
        if not path.exists():
            return None, 0
        try:
            return path, torch.load(path, map_location="cpu", weights_only=True)["epoch"] + 1
        except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
            log.warning("%s is damaged: this run starts at its first epoch again", path)
            path.unlink()
            return None, 0

    def clear(self) -> None:
        """Removes them: the run is finished, or there is none that could go on."""
        if self.lasting:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(exist_ok=True)


def resume_dir(settings: dict[str, Any]) -> Path:
    """Folder of the workplaces of one experiment: in `resume_dir`, or beside the tracking database."""
    uri, experiment = settings["tracking"]["uri"] or "", settings["tracking"]["experiment"]
    database = Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None
    if settings["resume_dir"] is not None:
        own = fingerprint([str(database or uri), experiment])
        return Path(settings["resume_dir"]).expanduser().absolute() / own
    if database is not None:  # which may be moved with the folder
        return database.parent / "resume" / fingerprint([database.name, experiment])
    return Path("mlruns").absolute() / "resume" / fingerprint([uri, experiment])


def place(settings: dict[str, Any]) -> str:
    """Whose unfinished runs are, of a store that several computers may have: the id of `resume_dir`, else "".

    The folder has it in a file, so that neither the computer's name nor the
    folder's matters. Where it cannot be written, nothing is gone on with.
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
def workplace(folder: Path | None, key: str, why: str) -> Iterator[Workplace]:
    """A run's own folder for the length of the block; other processes that train the same wait.

    Args:
        folder: of all workplaces; None for one that goes with the block.
        key: of the run.
        why: as of `held`.

    Raises:
        RunError: the folder cannot be written.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="audio-mnist-") as temporary:
            yield Workplace(Path(temporary), lasting=False)
        return
    with held(folder, key, why):
        own = folder / key
        own.mkdir(exist_ok=True)
        yield Workplace(own, lasting=True)
        with contextlib.suppress(OSError):  # not empty: to be gone on from
            own.rmdir()


@contextlib.contextmanager
def held(folder: Path, key: str, why: str) -> Iterator[None]:
    """The lock of `key`, for the length of the block; it goes with its process, however that ends.

    Args:
        folder: of the locks.
        key: what is locked.
        why: said where it is held by another process, which is waited for.

    Raises:
        RunError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{key}.lock")
        try:
            lock.acquire(timeout=0.1)
        except Timeout:
            log.info("%s: waiting for it", why)
            lock.acquire()
    except OSError as error:
        raise RunError(
            f"{folder}: half-trained runs cannot be kept there ({error.strerror or error}); "
            "choose another resume_dir, or resume=false"
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path, key: str) -> bool:
    """Whether a living process holds the lock of `key`."""
    path = folder / f"{key}.lock"
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
