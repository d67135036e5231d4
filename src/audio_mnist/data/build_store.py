"""Decode, check and resample every clip once -> one store on disk that all runs share."""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Generator
from concurrent.futures.process import BrokenProcessPool
from itertools import repeat
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import soundfile
from filelock import FileLock
from joblib.externals.loky import ProcessPoolExecutor
from tqdm import tqdm

from audio_mnist.config import fingerprint
from audio_mnist.data.decode import Limits, Written, write_clip, write_clips
from audio_mnist.data.store import WaveformStore
from audio_mnist.errors import DataError
from audio_mnist.system import processes

log = logging.getLogger(__name__)
VERSION = 1  # raise it whenever the stored samples would differ
_ALONE_S = 1.0  # about the time that starting processes takes
_BLOCK = 256  # most clips that a process decodes at a time
_SHOWN = 10  # most bad clips that an error names


def build_store(
    manifest: pd.DataFrame, *, sample_rate_hz: int | None, limits: Limits, on_bad_clip: str, cache_dir: Path
) -> tuple[pd.DataFrame, WaveformStore]:
    """Decode the clips of `manifest` once.

    Every file's path, size and modification time and the settings identify the
    store, so a change of any of these builds another. Two processes may ask at
    once.

    Args:
        manifest: columns of `corpora.Corpus.manifest`.
        sample_rate_hz: rate that every clip is resampled to; None takes the most common rate of the files.
        limits: durations that are accepted.
        on_bad_clip: "error", or "skip" to leave unusable clips out and name them.
        cache_dir: folder that stores are kept in.

    Returns:
        The manifest of the clips in the store, in its order, with columns
        content (SHA-256 of the file's bytes) and duration_s added; and the store.

    Raises:
        DataError: clips are unusable, or the store cannot be written.
    """
    stats = [_stat(path) for path in manifest["path"]]
    settings = [VERSION, sample_rate_hz, limits.min_s, limits.max_s]
    key = fingerprint([settings, list(zip(manifest["clip_id"], manifest["path"], stats, strict=True))])
    folder = cache_dir / f"waveforms-{key}"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)
                _build(manifest, sample_rate_hz, limits, on_bad_clip, folder)
    except OSError as error:
        raise DataError(
            f"{folder}: the waveform store cannot be written ({error.strerror or error}); "
            "make room or choose another data.cache_dir"
        ) from None
    table = pd.read_csv(folder / "clips.csv", dtype=str, keep_default_na=False)
    good = _usable(manifest, table["reason"].to_numpy(), on_bad_clip)
    kept = manifest.iloc[good].assign(
        content=table["content"].to_numpy()[good],
        duration_s=table["duration_s"].to_numpy()[good].astype(float),
    )
    kept = kept.reset_index(drop=True)
    _check_copies(kept)
    samples = np.memmap(folder / "samples.f32", dtype=np.float32, mode="r")
    rate_hz = json.loads((folder / "meta.json").read_text())["sample_rate_hz"]
    return kept, WaveformStore(samples, np.load(folder / "offsets.npy"), rate_hz, folder)


def _usable(manifest: pd.DataFrame, reasons: np.ndarray, on_bad_clip: str) -> np.ndarray:
    """Return the rows of usable clips; name the others."""
    bad, good = np.flatnonzero(reasons != ""), np.flatnonzero(reasons == "")
    if len(bad):
        lines = [f"  {manifest['path'].iloc[i]}: {reasons[i]}" for i in bad]
        if on_bad_clip == "error":
            shown = lines[:_SHOWN] + ([f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])
            raise DataError(
                f"{len(bad)} of {len(manifest)} clips cannot be used:\n" + "\n".join(shown) + "\n"
                "repair or remove them, or leave them out with data.on_bad_clip=skip"
            )
        log.warning("left out %d of %d clips (data.on_bad_clip=skip):\n%s", len(bad), len(manifest), "\n".join(lines))
    if len(good) == 0:
        raise DataError(f"none of the {len(manifest)} clips can be used")
    return good


def _build(manifest: pd.DataFrame, sample_rate_hz: int | None, limits: Limits, on_bad_clip: str, folder: Path) -> None:
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    for left_behind in folder.parent.glob(f"{folder.name}.*.partial"):
        shutil.rmtree(left_behind)
    partial.mkdir()
    try:
        paths = manifest["path"].tolist()
        rate_hz = sample_rate_hz or _most_common_rate(paths)
        decoded = _decode_all(paths, rate_hz, limits, partial)
        bar = tqdm(decoded, total=len(paths), desc="decoding", unit="clip", disable=not sys.stderr.isatty())
        with contextlib.closing(decoded):
            table = pd.DataFrame(bar, columns=Written._fields)
        sizes = table.pop("samples")[table["reason"] == ""]
        table.to_csv(partial / "clips.csv", index=False)
        np.save(partial / "offsets.npy", np.cumsum([0, *sizes]))
        if on_bad_clip == "skip" or not (table["reason"] != "").any():
            log.info("decoded %d clips at %d Hz into %s", len(paths), rate_hz, folder)
        meta = {"version": VERSION, "sample_rate_hz": rate_hz, "files": _checksums(partial)}
        (partial / "meta.json").write_text(json.dumps(meta))
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decode_all(paths: list[str], rate_hz: int, limits: Limits, partial: Path) -> Generator[Written, None, None]:
    """Write all clips' samples in order, and yield what else is known of each.

    This process decodes alone for `_ALONE_S`, enough for thousands of short
    clips. Then a pool decodes, one process per core. Threads would be slower
    than one: a short clip releases Python's lock for microseconds at a time.
    """
    began, done = time.monotonic(), 0
    with open(partial / "samples.f32", "wb") as file:
        while done < len(paths) and time.monotonic() - began < _ALONE_S:
            yield write_clip(paths[done], rate_hz, limits, file)
            done += 1
        if done == len(paths):
            return
        cores = joblib.cpu_count()
        size = min(_BLOCK, math.ceil((len(paths) - done) / (4 * cores)))
        blocks = [paths[start : start + size] for start in range(done, len(paths), size)]
        parts = [partial / f"part{number}" for number in range(len(blocks))]
        # a worker whose parent was killed ends after this many idle seconds
        options = {"timeout": 10, "initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
        pool = ProcessPoolExecutor(min(cores, len(blocks)), **options)
        try:
            results = pool.map(write_clips, blocks, repeat(rate_hz), repeat(limits), parts)
            for part, written in zip(parts, results, strict=True):
                with open(part, "rb") as samples:
                    shutil.copyfileobj(samples, file, 2**20)
                part.unlink()
                done += len(written)
                yield from written
        except BaseException as error:
            processes.kill(pool)
            if isinstance(error, BrokenProcessPool):
                raise DataError(
                    "a process that decodes clips died: the machine ran out of memory, or a recording breaks the "
                    f"decoder; look at the few hundred files from {paths[done]} on"
                ) from None
            raise
        pool.shutdown()


def _most_common_rate(paths: list[str]) -> int:
    rates: dict[int, int] = {}
    for path in paths:
        try:
            with soundfile.SoundFile(path) as file:
                rate = file.samplerate
        except (OSError, soundfile.SoundFileError, RuntimeError):
            continue  # decoding reports it with its reason
        rates[rate] = rates.get(rate, 0) + 1
    return max(rates, key=lambda rate: (rates[rate], -rate)) if rates else 16_000


def _stat(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _checksums(folder: Path) -> dict[str, object]:
    """Return the large file's size and the small ones' SHA-256."""
    small = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in ("clips.csv", "offsets.npy")}
    return {"samples.f32": (folder / "samples.f32").stat().st_size, **small}


def _is_whole(folder: Path) -> bool:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        return meta["version"] == VERSION and meta["files"] == _checksums(folder)
    except (OSError, ValueError, KeyError):
        return False


def _check_copies(manifest: pd.DataFrame) -> None:
    copies = manifest[manifest["content"].duplicated(keep=False)]
    if copies.empty:
        return
    labelled = copies[copies["label"] != ""]
    for _, same in labelled.groupby("content"):
        if same["label"].nunique() > 1:
            listed = ", ".join(f"{row.path} ({row.label})" for row in same.itertuples())
            raise DataError(f"byte-identical clips have different labels: {listed}; correct the labels or remove them")
    log.warning(
        "%d clips are byte-identical copies of others; all copies of a clip stay on one side of every split",
        int(copies["content"].duplicated().sum()),
    )
