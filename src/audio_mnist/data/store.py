"""The decoded clips of a corpus on disk, read batch by batch."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from audio_mnist.errors import DataError


@dataclass(frozen=True)
class WaveformStore:
    """All clips of a corpus at one sample rate.

    Attributes:
        samples: (total,) float32, memory-mapped, clip after clip.
        offsets: (clips + 1,) int64; clip i is samples[offsets[i]:offsets[i + 1]].
        sample_rate_hz: sample rate of all clips.
        path: the store's folder.

    >>> store = WaveformStore(np.arange(1.0, 6.0, dtype=np.float32), np.array([0, 2, 5]), 8000, Path())
    >>> store.clip(1)
    array([3., 4., 5.], dtype=float32)
    >>> store.gather(np.array([0]), 4)
    array([[0., 1., 2., 0.]], dtype=float32)
    """

    samples: np.ndarray
    offsets: np.ndarray
    sample_rate_hz: int
    path: Path

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def clip(self, index: int) -> np.ndarray:
        """Return the (T_i,) samples of one clip."""
        return self.samples[self.offsets[index] : self.offsets[index + 1]]

    def gather(self, indices: np.ndarray, length: int, placement: np.ndarray | None = None) -> np.ndarray:
        """Place clips in windows of one length.

        Zeros surround a shorter clip. A longer clip is cut.

        Args:
            indices: (B,) clips.
            length: T of the window, samples.
            placement: (B,) share of the slack before each clip, 0 to 1. 0 puts the clip first (or cuts its start), 1
                puts it last. None centres.

        Returns:
            (B, T) float32.

        Raises:
            DataError: the store was cut short.
        """
        batch = np.zeros((len(indices), length), dtype=np.float32)
        begin = self.offsets[indices]
        slack = length - (self.offsets[indices + 1] - begin)
        shift = np.rint(np.abs(slack) * (0.5 if placement is None else placement)).astype(np.int64)
        for row, start, room, by in zip(batch, begin.tolist(), slack.tolist(), shift.tolist(), strict=True):
            if room >= 0:
                self._read(start, row[by : by + length - room])
            else:
                self._read(start + by, row)
        return batch

    def _read(self, start: int, into: np.ndarray) -> None:
        """Fill `into` with the samples from `start` on.

        Reads the file where it can. Pages of a memory map would count as this
        process's memory, up to the whole corpus.
        """
        if not isinstance(self.samples, np.memmap) or not hasattr(os, "preadv"):
            into[:] = self.samples[start : start + len(into)]
        elif os.preadv(self._file.fileno(), [into.data], start * into.itemsize) != into.nbytes:
            raise DataError(f"{self.samples.filename}: the waveform store was cut short; remove {self.path}")

    @cached_property
    def _file(self) -> IO[bytes]:
        assert isinstance(self.samples, np.memmap)
        return open(str(self.samples.filename), "rb", buffering=0)
