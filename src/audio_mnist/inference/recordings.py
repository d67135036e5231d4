"""Recordings -> windows: found, decoded ahead by threads, cut, batched."""

import itertools
import math
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audio_mnist.data.decode import MIN_CLIP_S, STILL, Limits, decode, read_header, recordings_in
from audio_mnist.data.tables import read_table
from audio_mnist.errors import DataError
from audio_mnist.system.paths import inside

_AHEAD = 4  # most recordings that each thread decodes in advance
_AHEAD_BYTES = 2**27  # most bytes that they take decoded


@dataclass(frozen=True)
class Cut:
    """How recordings become windows.

    Attributes:
        window_s: length of a window; None takes each recording as a whole.
        hop_s: distance between the starts of windows; None is half a window.
        max_clip_s: longest recording.
    """

    window_s: float | None = None
    hop_s: float | None = None
    max_clip_s: float = 3600.0


@dataclass(frozen=True)
class Window:
    """A piece of a recording.

    Attributes:
        path: the recording.
        samples: (T,) float32.
        rate_hz: sample rate.
        start_s: where it begins in the recording, s.
        last: whether it is its recording's last one.
    """

    path: str
    samples: np.ndarray
    rate_hz: int
    start_s: float
    last: bool

    @property
    def end_s(self) -> float:
        """End of the window in the recording, s."""
        return self.start_s + len(self.samples) / self.rate_hz


def find_audio(audio: object, *, allow_outside: bool = False) -> list[str]:
    """Return the paths of the recordings that `audio` names, each once.

    Args:
        audio: a recording, a folder, a csv with a column path (relative to the csv), or a list of these.
        allow_outside: whether a csv's paths may leave its folder.

    Raises:
        DataError: there is none.
    """
    if isinstance(audio, list):
        each = (find_audio(one, allow_outside=allow_outside) for one in audio)
        return list(dict.fromkeys(itertools.chain.from_iterable(each)))
    path = Path(str(audio)).expanduser()
    if path.is_dir():
        found = [p for p in recordings_in(path) if p.is_file()]
        if not found:
            raise DataError(f"audio={path}: no recordings found in that folder (wav, flac, ogg, mp3)")
        return [str(p) for p in found]
    if path.suffix.lower() == ".csv":
        table = read_table(path, "audio", ("path",))
        listed = []
        for line, name in zip(table.index.to_numpy() + 2, table["path"], strict=True):  # the header is line 1
            source = f"audio={path}, line {line}"
            listed.append(inside(path.parent, name, allowed=allow_outside, source=source, key="allow_outside"))
        return list(dict.fromkeys(listed))
    if not path.is_file():
        raise DataError(f"audio={path}: no such file or folder")
    return [str(path)]


def windows(paths: list[str], cut: Cut, unreadable: dict[str, str], used_s: float = math.inf) -> Iterator[Window]:
    """Yield the windows of recordings.

    Args:
        paths: the recordings.
        cut: how they are cut.
        unreadable: path -> reason; filled with the recordings that cannot be read.
        used_s: how much of a whole recording's middle the model uses; most of the rest is dropped.
    """
    limits = Limits(MIN_CLIP_S, cut.max_clip_s, "")
    for path, (samples, rate_hz, reason) in _decoded(paths, limits):
        if samples is None:
            unreadable[path] = reason
            continue
        if cut.window_s is None:
            if is_still(used_part(samples, rate_hz, used_s)):
                unreadable[path] = f"it is silent in its middle, the {used_s:.2f} s that the model uses"
                continue
            yield Window(path, _middle(samples, rate_hz, 4 * used_s), rate_hz, 0.0, last=True)
            continue
        length = round(cut.window_s * rate_hz)
        hop = max(1, round((cut.hop_s or cut.window_s / 2) * rate_hz))
        # the last may reach over the end, but none starts there
        starts = range(0, max(1, min(len(samples), len(samples) - length + hop)), hop)
        for start in starts:
            yield Window(path, samples[start : start + length], rate_hz, start / rate_hz, start == starts[-1])


def used_part(samples: np.ndarray, rate_hz: int, used_s: float) -> np.ndarray:
    """Return the middle `used_s` of (T,) samples, all of a shorter recording."""
    spare = len(samples) - used_s * rate_hz
    return samples if spare <= 0 else samples[int(spare // 2) : len(samples) - int(spare // 2)]


def is_still(samples: np.ndarray) -> bool:
    """Tell whether (T,) samples hold no sound: they are all equal."""
    return bool(samples.max() - samples.min() < STILL)


def batches(found: Iterator[Window], size: int) -> Iterator[list[Window]]:
    """Yield up to `size` windows at a time."""
    while batch := list(itertools.islice(found, size)):
        yield batch


def _middle(samples: np.ndarray, rate_hz: int, least_s: float) -> np.ndarray:
    """Drop whole seconds at both ends, so that resampling meets the same instants; keep at least `least_s`."""
    spare_s = len(samples) / rate_hz - least_s
    if spare_s < 2:
        return samples
    dropped = int(spare_s / 2) * rate_hz
    return samples[dropped : len(samples) - dropped].copy()  # a view would keep all in memory


def _decoded(paths: list[str], limits: Limits) -> Iterator[tuple[str, tuple]]:
    """Decode in order, by threads that are a few recordings ahead; fewer where they are long."""
    threads = os.cpu_count() or 1
    remaining = deque(paths)
    waiting: deque[tuple[str, int, Future]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        while remaining or waiting:
            while remaining and len(waiting) < threads * _AHEAD:
                size = _decoded_bytes(remaining[0])
                if waiting and size + sum(size for _, size, _ in waiting) > _AHEAD_BYTES:
                    break
                path = remaining.popleft()
                waiting.append((path, size, pool.submit(decode, path, limits)))
            path, _, future = waiting.popleft()
            yield path, future.result()


def _decoded_bytes(path: str) -> int:
    """Return the size of a recording's float32 samples, 0 where it cannot be read."""
    header = read_header(path)
    return 0 if header is None else 4 * max(0, header.frames)
