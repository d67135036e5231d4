"""Recordings that libsndfile cannot read, such as AAC, M4A and WebM, by PyAV (FFmpeg), where it is installed."""

from importlib.util import find_spec
from typing import IO, Any

import numpy as np

SUFFIXES = {".m4a", ".aac", ".mp4", ".webm", ".mka", ".wma", ".amr", ".caf"}
HINT = "pip install -e '.[formats]' reads AAC, M4A and WebM"
# no playlists and no other protocols: they would open further files
_DEMUXERS = "aac,mov,mp4,m4a,matroska,webm,mp3,asf,amr,caf"
_OPTIONS = {"format_whitelist": _DEMUXERS, "protocol_whitelist": ""}


class UnreadableError(Exception):
    """The file is no recording that FFmpeg reads; the message says why."""


def is_known(start: bytes) -> bool:
    """Tell by its first bytes whether a file is probably AAC, MPEG-4, Matroska, WebM, WMA, AMR or CAF.

    >>> is_known(b"RIFF....WAVE"), is_known(bytes([0xFF, 0xF1, 0x60, 0x40]))
    (False, True)
    """
    adts = len(start) > 1 and start[0] == 0xFF and start[1] & 0xF6 == 0xF0
    marks = (b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75", b"ID3", b"#!AMR", b"caff")
    return adts or start[4:8] == b"ftyp" or start.startswith(marks)


def is_installed() -> bool:
    """Tell whether PyAV is installed."""
    return find_spec("av") is not None


def header(encoded: IO[bytes]) -> tuple[int, int] | None:
    """Return the number of samples and the sample rate that an open file's header gives, None where it has none."""
    import av

    try:
        with av.open(encoded, "r", options=_OPTIONS, metadata_errors="replace") as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            seconds = float((container.duration or 0) / av.time_base)
            return round(seconds * stream.sample_rate), int(stream.sample_rate)
    except (av.FFmpegError, ValueError, MemoryError):
        return None


def decode(encoded: IO[bytes], most: int, max_s: float) -> tuple[np.ndarray, int]:
    """Decode the first audio stream.

    Args:
        encoded: the open file.
        most: most samples of all channels together. Decoding stops soon after them.
        max_s: longest duration, s. Decoding stops soon after it, so that the caller sees a longer recording.

    Returns:
        (T,) float32 mean of the channels, and the sample rate in Hz.

    Raises:
        UnreadableError: there is no audio stream, or it is damaged.
    """
    import av

    blocks: list[np.ndarray] = []
    try:
        with av.open(encoded, "r", options=_OPTIONS, metadata_errors="replace") as container:
            if not container.streams.audio:
                raise UnreadableError("it has no sound")
            stream = container.streams.audio[0]
            rate_hz, values, samples = 0, 0, 0
            resampler: Any = None
            for frame in container.decode(stream):
                if resampler is None:
                    rate_hz = frame.sample_rate
                    resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate_hz)
                for part in resampler.resample(frame):
                    block = part.to_ndarray()  # (channels, T)
                    values, samples = values + block.size, samples + block.shape[1]
                    blocks.append(block.mean(axis=0, dtype=np.float32))
                if values > most or samples > (max_s + 1) * rate_hz:
                    break
    except (av.FFmpegError, ValueError, MemoryError) as error:
        reason = str(getattr(error, "strerror", None) or error)  # without the file's name, which PyAV does not know
        raise UnreadableError(reason.strip().rstrip(".")) from None
    if not blocks:
        raise UnreadableError("it has no samples")
    return np.concatenate(blocks), rate_hz
