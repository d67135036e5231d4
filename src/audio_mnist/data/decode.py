"""One recording -> its samples, checked, or why it cannot be used."""

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import soundfile
import soxr

from audio_mnist.data import formats
from audio_mnist.errors import DataError

RATES_HZ = (1000, 384_000)  # least and greatest sample rate
MIN_CLIP_S = 0.01  # shortest clip that is answered, s; the default of data.min_clip_s
MAX_FRAMES = 3600 * 48_000  # most samples of one recording: an hour at 48 kHz, 0.7 GB decoded
MAX_VALUES = 2 * MAX_FRAMES  # most samples of all its channels
PEAK = 2.0**31  # largest sample: full scale of 32-bit integers; features of larger ones overflow
STILL = 2.0**-23  # least change within a clip: one step of 24-bit audio
_STREAMED = 2**31 - 2**16  # sizes from here on are placeholders of a program that could not seek back
_BLOCK = 2**18  # frames that are decoded at a time
_IN_MEMORY = 2**26  # largest file that is read as a whole, bytes
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au"} | formats.SUFFIXES


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


class _File(io.FileIO):
    """A large file on disk for libsndfile, with the same guard."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OSError):
            return -1


def decode(path: str, limits: Limits) -> tuple[np.ndarray | None, int, str]:
    """Decode one recording at the file's sample rate.

    Returns:
        (T,) float32 mono, its rate in Hz and "". Where it cannot be used: None, 0 and the reason.
    """
    try:
        _, samples, native_hz, _ = _read(Path(path), limits)
    except _UnusableError as reason:
        return None, 0, str(reason)
    return samples, native_hz, ""


class Header(NamedTuple):
    """Facts that a recording's header gives.

    Attributes:
        frames: samples of one channel, as the header has them.
        rate_hz: sample rate.
    """

    frames: int
    rate_hz: int


def read_header(path: str) -> Header | None:
    """Read a recording's header, None where there is none that libsndfile, or PyAV, reads."""
    try:
        with _File(path) as opened:
            try:
                with soundfile.SoundFile(opened) as file:
                    return Header(file.frames, file.samplerate)
            except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError):
                opened.seek(0)
                found = formats.header(opened) if formats.is_installed() else None
                return None if found is None else Header(*found)
    except OSError:
        return None


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
            _, samples, native_hz, _ = _read(path, Limits(0.0, float("inf")))
            recordings.append(_resampled(samples, native_hz, rate_hz))
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
        sound: digest of the decoded samples and their rate; equal for lossless copies in other containers.
        stored: digest of the samples as they were written.
        duration_s: duration of the recording.
        missing: share of the recording that its header has and the file lacks, 0 to 1.
        reason: why it cannot be used, "" where it can.
    """

    samples: int
    content: str
    sound: str
    stored: str
    duration_s: float
    missing: float
    reason: str


def write_clip(path: str, rate_hz: int, limits: Limits, file: IO[bytes]) -> Written:
    """Append one recording's samples at `rate_hz`, mono float32, to an open file."""
    try:
        content, native, native_hz, missing = _read(Path(path), limits)
        samples = _resampled(native, native_hz, rate_hz)
    except _UnusableError as reason:
        return Written(0, "", "", "", 0.0, 0.0, str(reason))
    file.write(samples.tobytes())
    sound = digest(native, native_hz)
    stored = sound if samples is native else digest(samples, rate_hz)
    return Written(len(samples), content, sound, stored, len(native) / native_hz, missing, "")


def digest(samples: np.ndarray, rate_hz: int) -> str:
    """Return 16 hex digits that identify (T,) float32 samples at a rate."""
    found = hashlib.blake2b(np.ascontiguousarray(samples).data, digest_size=8)
    found.update(rate_hz.to_bytes(4, "little"))
    return found.hexdigest()


def write_clips(paths: list[str], rate_hz: int, limits: Limits, part: Path) -> list[Written]:
    """Write several recordings into one file, as `write_clip` does."""
    with open(part, "wb") as file:
        return [write_clip(path, rate_hz, limits, file) for path in paths]


def check_samples(samples: np.ndarray, rate_hz: int, limits: Limits) -> str:
    """Say why (T,) samples cannot be used, "" where they can.

    >>> check_samples(np.zeros(8000, dtype=np.float32), 8000, Limits(0.01, 60.0))
    'it is silent: all samples are equal'
    """
    if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        return f"sample rate {rate_hz} Hz, expected {RATES_HZ[0]} to {RATES_HZ[1]}"
    if len(samples) == 0:
        return "it has no samples"
    low, high = float(samples.min()), float(samples.max())  # NaN where a sample is
    if not (np.isfinite(low) and np.isfinite(high)):
        return "it has samples that are NaN or infinite"
    if max(-low, high) > PEAK:
        return f"it has a sample of {max(-low, high):.3g}, more than {PEAK:.3g}; sound is -1 to 1"
    duration_s = len(samples) / rate_hz
    if duration_s < limits.min_s:
        return f"{len(samples)} samples ({duration_s:.4f} s), less than {limits.group}min_clip_s={limits.min_s:g}"
    if duration_s > limits.max_s:
        return _too_long(duration_s, limits)
    return "" if high - low >= STILL else "it is silent: all samples are equal"


def _too_long(duration_s: float, limits: Limits) -> str:
    return f"{duration_s:.1f} s long, more than {limits.group}max_clip_s={limits.max_s:g}; cut it or raise that limit"


def _resampled(samples: np.ndarray, own_hz: int, rate_hz: int) -> np.ndarray:
    if own_hz == rate_hz:
        return samples
    resampled = soxr.resample(samples, own_hz, rate_hz, quality="HQ")
    if len(resampled) == 0:
        raise _UnusableError(f"nothing is left of it at {rate_hz} Hz")
    return resampled.astype(np.float32, copy=False)


def _read(path: Path, limits: Limits) -> tuple[str, np.ndarray, int, float]:
    """Return the SHA-256 of the file's bytes, the (T,) float32 mean of its channels, its rate in Hz, `_missing`."""
    try:
        size = path.stat().st_size
        if size == 0:
            raise _UnusableError("the file is empty (0 bytes)")
        with _Bytes(path.read_bytes()) if size <= _IN_MEMORY else _File(path) as encoded:
            content = hashlib.file_digest(encoded, "sha256").hexdigest()
            encoded.seek(0)
            samples, native_hz, missing = _decoded(encoded, limits)
    except FileNotFoundError:
        raise _UnusableError("no such file") from None
    except OSError as error:
        raise _UnusableError(f"cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise _UnusableError("there is not enough memory to decode it") from None
    reason = check_samples(samples, native_hz, limits)
    if reason:
        raise _UnusableError(reason)
    return content, samples, native_hz, missing


def _decoded(encoded: IO[bytes], limits: Limits) -> tuple[np.ndarray, int, float]:
    """Decode block by block, so that many channels take no more memory than one."""
    try:
        opened = soundfile.SoundFile(encoded)
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        return *_decoded_otherwise(encoded, limits, _reason(error)), 0.0
    try:
        with opened as file:
            frames, native_hz, missing = file.frames, file.samplerate, _missing(file.extra_info)
            if not RATES_HZ[0] <= native_hz <= RATES_HZ[1]:
                raise _UnusableError(f"sample rate {native_hz} Hz, expected {RATES_HZ[0]} to {RATES_HZ[1]}")
            if frames > limits.max_s * native_hz:  # before anything is decoded
                raise _UnusableError(_too_long(frames / native_hz, limits))
            if frames > MAX_FRAMES or frames * file.channels > MAX_VALUES:
                raise _UnusableError(
                    f"{frames} samples of {file.channels} channels, expected at most {MAX_FRAMES} samples and "
                    f"{MAX_VALUES} of all channels; cut it or resample it"
                )
            samples, filled = np.empty(max(0, frames), dtype=np.float32), 0
            while filled < frames:  # a number of frames, since some formats cannot seek to their end
                block = file.read(min(_BLOCK, frames - filled), dtype="float32", always_2d=True)
                if len(block) == 0:
                    break
                mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)  # a mean costs half a decoding
                samples[filled : filled + len(mono)] = mono
                filled += len(mono)
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        raise _UnusableError(f"not a recording that libsndfile reads ({_reason(error)})") from None
    return samples[:filled], native_hz, missing


def _missing(log: str) -> float:
    """Read from libsndfile's log which share of a recording its header has and the file lacks.

    >>> _missing("Bytes/sec : 32000 (should be 16000) data : 16000 (should be 4000)")
    0.75
    """
    # of WAV, AIFF and AU
    found_in = re.findall(r"\b(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", log)
    sizes = ((int(claimed), int(found)) for claimed, found in found_in)
    return max((1 - found / claimed for claimed, found in sizes if found < claimed < _STREAMED), default=0.0)


def _decoded_otherwise(encoded: IO[bytes], limits: Limits, reason: str) -> tuple[np.ndarray, int]:
    """Decode what is of no kind that libsndfile knows, where PyAV is installed."""
    encoded.seek(0)
    of_another_kind = formats.is_known(encoded.read(64))
    encoded.seek(0)
    if not of_another_kind or not formats.is_installed():
        hint = f"; {formats.HINT}" if of_another_kind else ""
        raise _UnusableError(f"not a recording that libsndfile reads ({reason}){hint}")
    try:
        samples, native_hz = formats.decode(encoded, MAX_VALUES, limits.max_s)
    except formats.UnreadableError as error:
        raise _UnusableError(f"not a recording that libsndfile reads ({reason}), nor FFmpeg ({error})") from None
    if len(samples) > MAX_FRAMES:
        raise _UnusableError(f"more than {MAX_FRAMES} samples; cut it or resample it")
    return samples, native_hz


def _reason(error: Exception) -> str:
    """Return libsndfile's words, without the memory address of the file."""
    return str(getattr(error, "error_string", error)).strip().rstrip(".") or "its data are damaged"
