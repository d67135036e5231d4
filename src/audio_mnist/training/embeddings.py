"""Embeddings of a corpus by a pretrained encoder: computed once, on disk, shared by all folds and workers."""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from filelock import FileLock
from torch import Tensor

from audio_mnist.config import fingerprint
from audio_mnist.data.store import WaveformStore
from audio_mnist.data.windows import middle
from audio_mnist.errors import DataError
from audio_mnist.features.encoder import Encoder
from audio_mnist.training.identity import code_version

log = logging.getLogger(__name__)
_AT_A_TIME = 32  # clips
_WHOLE, _CHECKED = 2**27, 2**18  # bytes: of a store that is checked whole; of a block of a larger one


class Embeddings:
    """Copies of clips at several speeds, as an encoder gives them.

    Args:
        values: (n, speeds, C, F, N) float32.
        rows: (n,) sorted manifest rows of the clips.
        speeds: the speeds, in the order of `values`.
    """

    def __init__(self, values: np.ndarray, rows: np.ndarray, speeds: list[float]) -> None:
        self._values, self._rows = values, rows
        self.copies = len(speeds)
        self._neutral = int(np.abs(np.array(speeds) - 1).argmin())

    def gather(self, clips: np.ndarray, share: np.ndarray | None) -> Tensor:
        """Return (B, C, F, N) embeddings.

        Args:
            clips: (B,) manifest rows.
            share: (B,) numbers from 0 to 1 that choose a copy; None takes the copy with the speed nearest to 1.

        Raises:
            ValueError: a clip was not embedded.
        """
        at = np.searchsorted(self._rows, clips).clip(max=len(self._rows) - 1)
        if (self._rows[at] != clips).any():
            raise ValueError(f"clip {clips[self._rows[at] != clips][0]} has no embedding")
        copy = np.full(len(clips), self._neutral)
        if share is not None:
            copy = np.minimum((share * self.copies).astype(np.int64), self.copies - 1)
        return torch.from_numpy(self._values[at, copy])


def embed(
    store: WaveformStore,
    rows: np.ndarray,
    encoder: Encoder,
    described: list[Any],
    length: int,
    device: str = "cpu",
) -> Embeddings:
    """Return the embeddings of clips, from disk where they were computed before.

    They lie beside the store of the waveforms. Waveforms, settings, code and versions of torch identify them. Two
    processes may ask at once.

    Args:
        store: the decoded clips.
        rows: clips to embed.
        encoder: the encoder.
        described: what else its embeddings depend on: its settings, and digests of a person's own modules.
        length: T of the window that clips are centred in, samples.
        device: device type that computes; the encoder is on the CPU before and after.

    Raises:
        DataError: the folder cannot be written.
    """
    rows = np.unique(rows)
    settings, *others = described
    used = {key: value for key, value in settings.items() if key != "path"}
    digest = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
    key = fingerprint([store.path.name, digest, used, others, length, code_version()])
    folder = store.path.parent / f"embeddings-{key}"
    try:
        with FileLock(f"{folder}.lock"):
            if not _is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)
                try:
                    _build(store, rows, encoder.to(device), length, folder, device)
                finally:
                    encoder.cpu()
    except OSError as error:
        raise DataError(
            f"{folder}: embeddings cannot be written ({error.strerror or error}); make room or choose another "
            "data.cache_dir"
        ) from None
    return Embeddings(np.load(folder / "values.npy", mmap_mode="r"), rows, encoder.speeds)


def _build(store: WaveformStore, rows: np.ndarray, encoder: Encoder, length: int, folder: Path, device: str) -> None:
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    for left_behind in folder.parent.glob(f"{folder.name}.*.partial"):
        shutil.rmtree(left_behind)
    partial.mkdir()
    changes = [torchaudio.transforms.Resample(round(100 * speed), 100).to(device) for speed in encoder.speeds]
    log.info("embedding %d clips at %d speeds, once for all folds", len(rows), len(encoder.speeds))
    try:
        values: np.memmap | None = None
        with torch.inference_mode():
            for start in range(0, len(rows), _AT_A_TIME):
                part = slice(start, start + _AT_A_TIME)
                x = torch.from_numpy(store.gather(rows[part], length)).unsqueeze(1).to(device)
                copies = torch.stack([encoder(middle(change(x), length)) for change in changes], dim=1)
                if values is None:
                    shape = (len(rows), *copies.shape[1:])
                    values = np.lib.format.open_memmap(partial / "values.npy", "w+", np.float32, shape)
                    _reserve(partial / "values.npy")
                values[part] = copies.cpu().numpy()
        assert values is not None
        values.flush()
        (partial / "meta.json").write_text(json.dumps({"values.npy": _digest(partial / "values.npy")}))
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    try:
        return json.loads((folder / "meta.json").read_text())["values.npy"] == _digest(folder / "values.npy")
    except (OSError, ValueError, KeyError):
        return False


def _reserve(path: Path) -> None:
    """Take the disk space of a sparse file now: an error here, not a signal in the middle of the work."""
    with open(path, "r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, of a large one that of evenly spaced blocks, and its size."""
    size = path.stat().st_size
    starts = range(0, size, _CHECKED) if size <= _WHOLE else np.linspace(0, size - _CHECKED, 64).astype(int).tolist()
    found = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for start in starts:
            file.seek(start)
            found.update(file.read(_CHECKED))
    return found.hexdigest()
