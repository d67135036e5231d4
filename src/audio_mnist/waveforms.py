"""Decode, check and resample every clip once -> one store on disk that all runs share."""

import hashlib
import io
import itertools
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import soxr
from filelock import FileLock
from tqdm import tqdm

from audio_mnist.config import fingerprint
from audio_mnist.errors import DataError
from audio_mnist.store import WaveformStore

log = logging.getLogger(__name__)
VERSION = 1  # raise it whenever the stored samples would differ
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au"}
_BLOCK = 256  # clips decoded ahead of the writer


@dataclass(frozen=True)
class Limits:
    """What a clip must keep to.

    Attributes:
        min_s: shortest duration, s.
        max_s: longest duration, s.
        group: of the config keys that set them, for messages.
    """

    min_s: float
    max_s: float
    group: str = "data."


class _UnusableError(Exception):
    """Why one clip cannot be used."""


class _Bytes(io.BytesIO):
    """A file in memory for libsndfile, which a damaged header sends to places before its start."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return -1  # an error to libsndfile


def build_store(
    manifest: pd.DataFrame, *, sample_rate_hz: int | None, limits: Limits, on_bad_clip: str, cache_dir: Path
) -> tuple[pd.DataFrame, WaveformStore]:
    """The clips of `manifest`, decoded once.

    The store is looked up by every file's path, size and modification time and
    by the settings, so a change of any of these builds another. Two processes may ask at once.

    Args:
        manifest: columns of `corpora.Corpus.manifest`.
        sample_rate_hz: every clip is resampled to it; None is the rate that
            most clips have.
        limits: durations that are accepted.
        on_bad_clip: "error", or "skip" to leave unusable clips out, by name.
        cache_dir: stores are its subfolders.

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
    meta = json.loads((folder / "meta.json").read_text())
    table = pd.read_csv(folder / "clips.csv", dtype=str, keep_default_na=False)
    reasons = table["reason"].to_numpy()
    bad = np.flatnonzero(reasons != "")
    if len(bad):
        lines = [f"  {manifest['path'].iloc[i]}: {reasons[i]}" for i in bad]
        if on_bad_clip == "error":
            shown = lines[:10] + ([f"  and {len(lines) - 10} more"] if len(lines) > 10 else [])
            raise DataError(
                f"{len(bad)} of {len(manifest)} clips cannot be used:\n" + "\n".join(shown) + "\n"
                "mend or remove them, or leave them out with data.on_bad_clip=skip"
            )
        log.warning("left out %d of %d clips (data.on_bad_clip=skip):\n%s", len(bad), len(manifest), "\n".join(lines))
    good = np.flatnonzero(reasons == "")
    if len(good) == 0:
        raise DataError(f"none of the {len(manifest)} clips can be used")
    offsets = np.load(folder / "offsets.npy")
    store = WaveformStore(
        np.memmap(folder / "samples.f32", dtype=np.float32, mode="r"), offsets, meta["sample_rate_hz"], folder
    )
    kept = manifest.iloc[good].assign(
        content=table["content"].to_numpy()[good],
        duration_s=table["duration_s"].to_numpy()[good].astype(float),
    )
    kept = kept.reset_index(drop=True)
    _check_copies(kept)
    return kept, store


def decode_folder(folder: Path, rate_hz: int, *, key: str) -> list[np.ndarray]:
    """All recordings of a folder, at any depth, in the order of their names.

    Args:
        folder: that is searched.
        rate_hz: they are resampled to it.
        key: of the config, for the message.

    Returns:
        (T_i,) float32 each, held in memory.

    Raises:
        DataError: no such folder, no recording in it, or one that cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{key}={folder}: no such folder")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not paths:
        raise DataError(f"{key}={folder}: no recordings found (wav, flac, ogg, mp3)")
    recordings = []
    for path in paths:
        samples, _, _, reason = _try_decode(str(path), rate_hz, Limits(0.0, float("inf")))
        if samples is None:
            raise DataError(f"{key}: {path}: {reason}")
        recordings.append(samples)
    return recordings


def _build(manifest: pd.DataFrame, sample_rate_hz: int | None, limits: Limits, on_bad_clip: str, folder: Path) -> None:
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    for left_behind in folder.parent.glob(f"{folder.name}.*.partial"):
        shutil.rmtree(left_behind)
    partial.mkdir()
    try:
        paths = manifest["path"].tolist()
        rate_hz = sample_rate_hz or _commonest_rate(paths)
        rows, sizes = [], [0]
        with open(partial / "samples.f32", "wb") as file:
            progress = tqdm(total=len(paths), desc="decoding", unit="clip", disable=not sys.stderr.isatty())
            for samples, content, duration_s, reason in _decoded(paths, rate_hz, limits):
                if samples is not None:
                    file.write(samples.tobytes())
                    sizes.append(len(samples))
                rows.append((content, duration_s, reason))
                progress.update()
            progress.close()
        table = pd.DataFrame(rows, columns=["content", "duration_s", "reason"])
        table.to_csv(partial / "clips.csv", index=False)
        np.save(partial / "offsets.npy", np.cumsum(sizes))
        if on_bad_clip == "skip" or not (table["reason"] != "").any():
            log.info("decoded %d clips at %d Hz into %s", len(paths), rate_hz, folder)
        meta = {"version": VERSION, "sample_rate_hz": rate_hz, "files": _checksums(partial)}
        (partial / "meta.json").write_text(json.dumps(meta))
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decoded(paths: list[str], rate_hz: int, limits: Limits) -> Iterator[tuple]:
    """In order, from a pool of threads (decoding and resampling release the lock), a block ahead at most."""
    remaining: Iterable[str] = iter(paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while block := list(itertools.islice(remaining, _BLOCK)):
            yield from pool.map(lambda path: _try_decode(path, rate_hz, limits), block)


def _try_decode(path: str, rate_hz: int, limits: Limits) -> tuple[np.ndarray | None, str, float, str]:
    try:
        samples, content, duration_s = _decode(Path(path), rate_hz, limits)
    except _UnusableError as reason:
        return None, "", 0.0, str(reason)
    return samples, content, duration_s, ""


def decode(path: str, limits: Limits) -> tuple[np.ndarray | None, int, str]:
    """One recording at its own rate.

    Returns:
        (T,) float32 mono and its rate in Hz, or None, 0 and why it cannot be used.
    """
    try:
        _, samples, native_hz = _read(Path(path), limits)
    except _UnusableError as reason:
        return None, 0, str(reason)
    return samples.astype(np.float32, copy=False), native_hz, ""


def _decode(path: Path, rate_hz: int, limits: Limits) -> tuple[np.ndarray, str, float]:
    encoded, samples, native_hz = _read(path, limits)
    duration_s = len(samples) / native_hz
    if native_hz != rate_hz:
        samples = soxr.resample(samples, native_hz, rate_hz, quality="HQ")
        if len(samples) == 0:
            raise _UnusableError(f"nothing is left of it at {rate_hz} Hz")
    return samples.astype(np.float32, copy=False), hashlib.sha256(encoded).hexdigest(), duration_s


def _read(path: Path, limits: Limits) -> tuple[bytes, np.ndarray, int]:
    """(bytes of the file, (T,) samples of its mean channel, rate in Hz)."""
    try:
        encoded = path.read_bytes()
    except FileNotFoundError:
        raise _UnusableError("no such file") from None
    except OSError as error:
        raise _UnusableError(f"cannot be read ({error.strerror})") from None
    if not encoded:
        raise _UnusableError("the file is empty (0 bytes)")
    try:
        with soundfile.SoundFile(_Bytes(encoded)) as file:
            native_hz = file.samplerate
            if file.frames > limits.max_s * native_hz:
                raise _UnusableError(
                    f"{file.frames / native_hz:.1f} s long, more than {limits.group}max_clip_s={limits.max_s:g}; "
                    "cut it or raise that"
                )
            samples = file.read(dtype="float32", always_2d=True)
            samples = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)  # a mean costs half a decoding
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise _UnusableError(f"not a recording that libsndfile reads ({_reason(error)})") from None
    if len(samples) == 0:
        raise _UnusableError("it has no samples")
    if not np.isfinite(samples).all():
        raise _UnusableError("it has samples that are NaN or infinite")
    duration_s = len(samples) / native_hz
    if duration_s < limits.min_s:
        raise _UnusableError(
            f"{len(samples)} samples ({duration_s:.4f} s), less than {limits.group}min_clip_s={limits.min_s:g}"
        )
    if not samples.any():
        raise _UnusableError("it is silent: every sample is zero")
    return encoded, samples, native_hz


def _reason(error: Exception) -> str:
    """libsndfile's own words, without the memory address of what was opened."""
    return str(getattr(error, "error_string", error)).strip().rstrip(".")


def _commonest_rate(paths: list[str]) -> int:
    rates: dict[int, int] = {}
    for path in paths:
        try:
            rate = soundfile.info(path).samplerate
        except (OSError, soundfile.SoundFileError, RuntimeError):
            continue  # reported with its reason when it is decoded
        rates[rate] = rates.get(rate, 0) + 1
    return max(rates, key=lambda rate: (rates[rate], -rate)) if rates else 16_000


def _stat(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _checksums(folder: Path) -> dict[str, object]:
    """The big file's size, the small ones' SHA-256."""
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
