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
    """Audio files of a folder, at any depth, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)


class Written(NamedTuple):
    """What is known of a clip whose samples were written.

    Attributes:
        samples: their number, 0 where the clip cannot be used.
        content: SHA-256 of the file's bytes.
        duration_s: of the recording.
        reason: why it cannot be used, "" where it can.
    """

    samples: int
    content: str
    duration_s: float
    reason: str


def write_clip(path: str, rate_hz: int, limits: Limits, file: IO[bytes]) -> Written:
    """Appends one recording's samples at `rate_hz`, mono float32, to an open file."""
    try:
        samples, content, duration_s = _decode(Path(path), rate_hz, limits)
    except _UnusableError as reason:
        return Written(0, "", 0.0, str(reason))
    file.write(samples.tobytes())
    return Written(len(samples), content, duration_s, "")


def write_clips(paths: list[str], rate_hz: int, limits: Limits, part: Path) -> list[Written]:
    """As `write_clip`, of several into a file of their own."""
    with open(part, "wb") as file:
        return [write_clip(path, rate_hz, limits, file) for path in paths]


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
