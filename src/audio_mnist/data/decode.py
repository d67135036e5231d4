"""One recording -> its samples, checked, or why it cannot be used."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import soundfile
import soxr

from audio_mnist.errors import DataError

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au"}


@dataclass(frozen=True)
class Limits:
    """Durations that are accepted.

    Attributes:
        min_s: shortest duration, s.
        max_s: longest duration, s.
        group: prefix of the config keys that set them, for messages.
    """

    min_s: float
    max_s: float
    group: str = "data."


class _UnusableError(Exception):
    """One clip cannot be used; the message says why."""


class _Bytes(io.BytesIO):
    """A file in memory for libsndfile. A damaged header makes it seek before the start."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return -1  # an error to libsndfile


def decode(path: str, limits: Limits) -> tuple[np.ndarray | None, int, str]:
    """Decode one recording at the file's sample rate.

    Returns:
        (T,) float32 mono, its rate in Hz and "". Where it cannot be used: None, 0 and the reason.
    """
    try:
        _, samples, native_hz = _read(Path(path), limits)
    except _UnusableError as reason:
        return None, 0, str(reason)
    return samples.astype(np.float32, copy=False), native_hz, ""


def decode_folder(folder: Path, rate_hz: int, *, key: str) -> list[np.ndarray]:
    """Decode all recordings of a folder, at any depth, in the order of their names.

    Args:
        folder: the folder.
        rate_hz: sample rate that they are resampled to.
        key: config key that names the folder, for the message.

    Returns:
        (T_i,) float32 each, held in memory.

    Raises:
        DataError: there is no such folder, no recording in it, or one that cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{key}={folder}: no such folder")
    paths = recordings_in(folder)
    if not paths:
        raise DataError(f"{key}={folder}: no recordings found (wav, flac, ogg, mp3)")
    recordings = []
    for path in paths:
        try:
            recordings.append(_decode(path, rate_hz, Limits(0.0, float("inf")))[0])
        except _UnusableError as reason:
            raise DataError(f"{key}: {path}: {reason}") from None
    return recordings


def recordings_in(folder: Path) -> list[Path]:
    """List the audio files of a folder, at any depth, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)


class Written(NamedTuple):
    """Result of writing one clip.

    Attributes:
        samples: their number, 0 where the clip cannot be used.
        content: SHA-256 of the file's bytes.
        duration_s: duration of the recording.
        reason: why it cannot be used, "" where it can.
    """

    samples: int
    content: str
    duration_s: float
    reason: str


def write_clip(path: str, rate_hz: int, limits: Limits, file: IO[bytes]) -> Written:
    """Append one recording's samples at `rate_hz`, mono float32, to an open file."""
    try:
        samples, content, duration_s = _decode(Path(path), rate_hz, limits)
    except _UnusableError as reason:
        return Written(0, "", 0.0, str(reason))
    file.write(samples.tobytes())
    return Written(len(samples), content, duration_s, "")


def write_clips(paths: list[str], rate_hz: int, limits: Limits, part: Path) -> list[Written]:
    """Write several recordings into one file, as `write_clip` does."""
    with open(part, "wb") as file:
        return [write_clip(path, rate_hz, limits, file) for path in paths]


def check_samples(samples: np.ndarray, rate_hz: int, limits: Limits) -> str:
    """Say why (T,) samples cannot be used, "" where they can.

    >>> check_samples(np.zeros(8000, dtype=np.float32), 8000, Limits(0.01, 60.0))
    'it is silent: every sample is zero'
    """
    if len(samples) == 0:
        return "it has no samples"
    if not np.isfinite(samples).all():
        return "it has samples that are NaN or infinite"
    duration_s = len(samples) / rate_hz
    if duration_s < limits.min_s:
        return f"{len(samples)} samples ({duration_s:.4f} s), less than {limits.group}min_clip_s={limits.min_s:g}"
    if duration_s > limits.max_s:
        return _too_long(duration_s, limits)
    return "" if samples.any() else "it is silent: every sample is zero"


def _too_long(duration_s: float, limits: Limits) -> str:
    return f"{duration_s:.1f} s long, more than {limits.group}max_clip_s={limits.max_s:g}; cut it or raise that limit"


def _decode(path: Path, rate_hz: int, limits: Limits) -> tuple[np.ndarray, str, float]:
    encoded, samples, native_hz = _read(path, limits)
    duration_s = len(samples) / native_hz
    if native_hz != rate_hz:
        samples = soxr.resample(samples, native_hz, rate_hz, quality="HQ")
        if len(samples) == 0:
            raise _UnusableError(f"nothing is left of it at {rate_hz} Hz")
    return samples.astype(np.float32, copy=False), hashlib.sha256(encoded).hexdigest(), duration_s


def _read(path: Path, limits: Limits) -> tuple[bytes, np.ndarray, int]:
    """Return the file's bytes, the (T,) mean of its channels, and its rate in Hz."""
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
            if file.frames > limits.max_s * native_hz:  # before anything is decoded
                raise _UnusableError(_too_long(file.frames / native_hz, limits))
            samples = file.read(dtype="float32", always_2d=True)
            samples = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)  # a mean costs half a decoding
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise _UnusableError(f"not a recording that libsndfile reads ({_reason(error)})") from None
    reason = check_samples(samples, native_hz, limits)
    if reason:
        raise _UnusableError(reason)
    return encoded, samples, native_hz


def _reason(error: Exception) -> str:
    """Return libsndfile's words, without the memory address of the file."""
    return str(getattr(error, "error_string", error)).strip().rstrip(".")
