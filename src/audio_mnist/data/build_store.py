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
from filelock import FileLock
from joblib.externals.loky import ProcessPoolExecutor
from tqdm import tqdm

from audio_mnist.config import fingerprint
from audio_mnist.data import formats
from audio_mnist.data.copies import first_copies
from audio_mnist.data.decode import Limits, Written, digest, read_header, write_clip, write_clips
from audio_mnist.data.store import WaveformStore
from audio_mnist.errors import DataError, by_cause, counted, listed
from audio_mnist.system import processes

log = logging.getLogger(__name__)
VERSION = 4  # raise it whenever the stored samples, or what is known of them, would differ
_ALONE_S = 1.0  # about the time that starting processes takes
_BLOCK = 256  # most clips that a process decodes at a time
_SHOWN = 10  # most clips that a message lists
_MISSING = 0.01  # least missing share of a recording that is named
_CHEAP_BYTES = 2**26  # a store of this size is checked whole
_CHECKED = 64  # clips that are checked of a larger one


def build_store(
    manifest: pd.DataFrame,
    *,
    sample_rate_hz: int | None,
    limits: Limits,
    on_bad_clip: str,
    cache_dir: Path,
    copies: str = "sound",
    verify: bool = False,
) -> tuple[pd.DataFrame, WaveformStore]:
    """Decode the clips of `manifest` once.

    Every file's path, size, times and inode and the settings identify the store,
    so a change of any of these builds another. Two processes may ask at once. A
    store with other samples than those written is built again.

    Args:
        manifest: columns of `corpora.Corpus.manifest`.
        sample_rate_hz: rate that every clip is resampled to; None takes the most common rate of the training clips.
        limits: durations that are accepted.
        on_bad_clip: "error", or "skip" to leave unusable clips out and name them.
        cache_dir: folder that stores are kept in.
        copies: what makes two clips one recording: "sound", or "samples" for equal samples only.
        verify: whether every stored clip is checked; else all of a small store and a sample of a large one.

    Returns:
        The manifest of the clips in the store, in its order, with three columns
        added: content (SHA-256 of the file's bytes), duration_s, and recording
        (clip_id of the first copy, the clip itself where there is none). And the store.

    Raises:
        DataError: clips are unusable, copies have different labels, or the store cannot be written.
    """
    stats = [_stat(path) for path in manifest["path"]]
    settings: list[object] = [VERSION, sample_rate_hz, limits.min_s, limits.max_s]
    if sample_rate_hz is None:  # the split then decides the rate
        settings.append(manifest["split"].tolist())
    key = fingerprint([settings, list(zip(manifest["clip_id"], manifest["path"], stats, strict=True))])
    folder = cache_dir / f"waveforms-{key}"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _is_whole(folder, verify) or _can_read_more(folder):
                shutil.rmtree(folder, ignore_errors=True)
                _build(manifest, sample_rate_hz, limits, on_bad_clip, folder)
    except OSError as error:
        raise DataError(
            f"{folder}: the waveform store cannot be written ({error.strerror or error}); "
            "make room or choose another data.cache_dir"
        ) from None
    kept = _kept(manifest, _table(folder), on_bad_clip, copies)
    samples = np.memmap(folder / "samples.f32", dtype=np.float32, mode="r")
    rate_hz = json.loads((folder / "meta.json").read_text())["sample_rate_hz"]
    return kept, WaveformStore(samples, np.load(folder / "offsets.npy"), rate_hz, folder)


def _kept(manifest: pd.DataFrame, table: pd.DataFrame, on_bad_clip: str, copies: str) -> pd.DataFrame:
    """Return the manifest of the usable clips with what the store knows of them."""
    good = _usable(manifest, table["reason"].to_numpy(), on_bad_clip)
    first = table["same_sound" if copies == "sound" else "same_samples"].to_numpy()[good].astype(np.int64)
    kept = manifest.iloc[good].assign(
        content=table["content"].to_numpy()[good],
        duration_s=table["duration_s"].to_numpy()[good].astype(float),
        recording=manifest["clip_id"].to_numpy()[first],
    )
    kept = kept.reset_index(drop=True)
    _warn_of_missing(kept["path"], table["missing"].to_numpy()[good].astype(float))
    _check_copies(kept)
    return kept


def _warn_of_missing(paths: pd.Series, missing: np.ndarray) -> None:
    cut = np.flatnonzero(missing >= _MISSING)
    if len(cut):
        shown = listed((f"{paths[i]} lacks {missing[i]:.0%}" for i in cut), _SHOWN)
        count = counted(len(cut), "recording")
        log.warning("%s shorter than the file's header says (%s); copy or download again", count, shown)


def _table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "clips.csv", dtype=str, keep_default_na=False)


def _usable(manifest: pd.DataFrame, reasons: np.ndarray, on_bad_clip: str) -> np.ndarray:
    """Return the rows of usable clips; name the others."""
    bad, good = np.flatnonzero(reasons != ""), np.flatnonzero(reasons == "")
    if len(bad):
        causes = by_cause(dict(zip(manifest["path"].to_numpy()[bad], reasons[bad], strict=True)), "clips")
        if on_bad_clip == "error":
            raise DataError(
                f"{len(bad)} of {len(manifest)} clips cannot be used:\n{causes}\n"
                "repair or remove them, or leave them out with data.on_bad_clip=skip"
            )
        log.warning("left out %d of %d clips (data.on_bad_clip=skip):\n%s", len(bad), len(manifest), causes)
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
        # a test clip decides nothing
        rate_hz = sample_rate_hz or _most_common_rate(manifest.loc[manifest["split"] == "train", "path"].tolist())
        decoded = _decode_all(paths, rate_hz, limits, partial)
        bar = tqdm(decoded, total=len(paths), desc="decoding", unit="clip", disable=not sys.stderr.isatty())
        with contextlib.closing(decoded):
            table = pd.DataFrame(bar, columns=Written._fields)
        sizes = table.pop("samples")[table["reason"] == ""]
        offsets = np.cumsum([0, *sizes])
        np.save(partial / "offsets.npy", offsets)
        _find_copies(table, partial, offsets, rate_hz)
        table.to_csv(partial / "clips.csv", index=False)
        if on_bad_clip == "skip" or not (table["reason"] != "").any():
            log.info("decoded %d clips at %d Hz into %s", len(paths), rate_hz, folder)
        meta = {"version": VERSION, "sample_rate_hz": rate_hz, "files": _checksums(partial)}
        (partial / "meta.json").write_text(json.dumps(meta))
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _find_copies(table: pd.DataFrame, partial: Path, offsets: np.ndarray, rate_hz: int) -> None:
    """Add the row numbers of each clip's first copy: with equal samples, and with the same sound."""
    good = np.flatnonzero(table["reason"] == "")
    equal = alike = np.empty(0, dtype=np.int64)
    if len(good):
        samples = np.memmap(partial / "samples.f32", dtype=np.float32, mode="r")
        sounds = table["sound"].to_numpy()[good]
        equal, alike = first_copies(lambda i: samples[offsets[i] : offsets[i + 1]], rate_hz, sounds)
    for name, first in (("same_samples", equal), ("same_sound", alike)):
        table[name] = -1
        table.loc[good, name] = good[first]


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
        # where the parent was killed, a worker ends after this many idle seconds
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
        header = read_header(path)
        if header is not None:  # else decoding reports it with its reason
            rates[header.rate_hz] = rates.get(header.rate_hz, 0) + 1
    return max(rates, key=lambda rate: (rates[rate], -rate)) if rates else 16_000


def _stat(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _checksums(folder: Path) -> dict[str, object]:
    """Return the large file's size and the small ones' SHA-256."""
    small = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in ("clips.csv", "offsets.npy")}
    return {"samples.f32": (folder / "samples.f32").stat().st_size, **small}


def _is_whole(folder: Path, verify: bool) -> bool:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta["version"] != VERSION or meta["files"] != _checksums(folder):
            return False
        damaged = _damaged(folder, meta["sample_rate_hz"], verify)
    except (OSError, ValueError, KeyError):
        return False
    if damaged:
        log.warning("%s: the stored samples of %s changed since they were decoded; decoding again", folder, damaged)
    return not damaged


def _can_read_more(folder: Path) -> bool:
    """Tell whether clips were left out that PyAV, installed since then, may read."""
    return formats.is_installed() and any(formats.HINT in reason for reason in _table(folder)["reason"])


def _damaged(folder: Path, rate_hz: int, verify: bool) -> str:
    """Name a stored clip with other samples than those written, "" where none was found."""
    table, offsets = _table(folder), np.load(folder / "offsets.npy")
    stored = table["stored"].to_numpy()[table["reason"] == ""]
    samples = np.memmap(folder / "samples.f32", dtype=np.float32, mode="r")
    checked = np.arange(len(stored))
    if not verify and samples.nbytes > _CHEAP_BYTES:
        checked = np.sort(np.random.default_rng().choice(checked, min(_CHECKED, len(checked)), replace=False))
    for i in checked:
        if digest(samples[offsets[i] : offsets[i + 1]], rate_hz) != stored[i]:
            return f"clip {i + 1} of {len(stored)}"
    return ""


def _check_copies(manifest: pd.DataFrame) -> None:
    copies = manifest[manifest["recording"].duplicated(keep=False)]
    if copies.empty:
        return
    labelled = copies[copies["label"] != ""]
    for _, same in labelled.groupby("recording", sort=False):
        if same["label"].nunique() > 1:
            one_of_each = ~same["label"].duplicated()
            rows = pd.concat([same[one_of_each], same[~one_of_each]]).itertuples()
            which = listed((f"{row.path} ({row.label})" for row in rows), _SHOWN)
            if same["content"].nunique() == 1:
                raise DataError(
                    f"byte-identical clips have different labels: {which}; correct them or remove the clips"
                )
            raise DataError(
                f"clips that are one recording in several forms have different labels: {which}; correct the labels or "
                "remove the clips. Where they are different recordings, set data.copies=samples"
            )
    later = copies[copies["recording"].duplicated()]
    shown = [f"{row.clip_id} of {row.recording}" for row in later.itertuples()]
    log.warning(
        "%s with the sound of another (%s); copies stay on one side of every split and are scored once",
        *(counted(len(shown), "clip"), listed(shown, _SHOWN)),
    )
