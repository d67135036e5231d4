"""Members and their mixture -> an object that classifies waveforms of any sample rate and length."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import soxr

from audio_mnist.data.decode import MIN_CLIP_S, Limits, check_samples
from audio_mnist.data.store import WaveformStore
from audio_mnist.errors import DataError
from audio_mnist.inference.recordings import Cut, Window, batches, find_audio, is_still, used_part, windows
from audio_mnist.scoring.mixture import Mixture
from audio_mnist.system import devices
from audio_mnist.training.classifier import Classifier, predict_together


@dataclass(frozen=True)
class Predictor:
    """An ensemble, or a single run.

    Attributes:
        name: name of the tracked run.
        run_id: id of the tracked run.
        classifiers: one per member.
        mixture: how their answers are joined.
    """

    name: str
    run_id: str
    classifiers: tuple[Classifier, ...]
    mixture: Mixture

    @property
    def class_names(self) -> list[str]:
        """Class names, in the order of the probabilities."""
        return self.classifiers[0].class_names

    @property
    def window_s(self) -> float:
        """Shortest window of a member, s. Of a longer clip it uses the middle."""
        return min(c.clip_samples / c.sample_rate_hz for c in self.classifiers)

    @property
    def used_s(self) -> float:
        """How much of a long clip's middle the members use, s; infinite where one takes several placements."""
        if any(c.placements > 1 for c in self.classifiers):
            return math.inf
        return max(c.clip_samples / c.sample_rate_hz * max(c.speeds) for c in self.classifiers)

    def predict(self, waveform: np.ndarray, sample_rate_hz: int) -> pd.Series:
        """Classify one clip.

        Args:
            waveform: (T,) samples of one channel, -1 to 1.
            sample_rate_hz: its sample rate.

        Returns:
            Class name -> probability.

        Raises:
            DataError: the waveform cannot be used.
        """
        samples = np.asarray(waveform, dtype=np.float32)
        if samples.ndim != 1:
            raise DataError(
                f"waveform has shape {samples.shape}: expected (T,), samples of one channel; average the channels first"
            )
        reason = self.check(samples, sample_rate_hz)
        if reason:
            raise DataError(f"waveform: {reason}")
        return pd.Series(self.predict_batch([(samples, sample_rate_hz)])[0], index=self.class_names)

    def check(self, samples: np.ndarray, sample_rate_hz: int) -> str:
        """Say why (T,) samples cannot be classified, "" where they can."""
        reason = check_samples(samples, sample_rate_hz, Limits(MIN_CLIP_S, math.inf, ""))
        if not reason and is_still(used_part(samples, sample_rate_hz, self.used_s)):
            reason = f"it is silent in its middle, the {self.used_s:.2f} s that the model uses"
        return reason

    def predict_files(
        self, audio: str | Path | Sequence[str | Path], *, window_s: float | None = None, hop_s: float | None = None
    ) -> pd.DataFrame:
        """Classify recordings. One that cannot be read gets a row with the reason.

        Args:
            audio: a recording, a folder, a csv with a column path, or a list of these.
            window_s: length of windows; None gives one answer per recording.
            hop_s: distance between the starts of windows; None is half a window.

        Returns:
            Columns path, start_s and end_s (with windows), label, a column `p:CLASS` per class, and error ("" where
            all went well).

        Raises:
            DataError: there are no recordings.
        """
        paths = find_audio(audio if isinstance(audio, str | Path) else [str(one) for one in audio])
        unreadable: dict[str, str] = {}
        found = windows(paths, Cut(window_s, hop_s), unreadable, self.used_s)
        header, rows = self.header(window_s is not None), []
        for batch in batches(found, 64):
            rows += self.rows(batch, window_s is not None)
        table = pd.DataFrame(rows, columns=header).assign(error="")
        lost = pd.DataFrame({"path": list(unreadable), "error": list(unreadable.values())})
        return pd.concat([table, lost], ignore_index=True) if len(lost) else table

    def header(self, timed: bool) -> list[str]:
        """Return the columns of `rows`."""
        return ["path", *(("start_s", "end_s") if timed else ()), "label", *(f"p:{name}" for name in self.class_names)]

    def rows(self, batch: list[Window], timed: bool) -> list[list]:
        """Classify windows; return a row per window. A silent window has label "" and probabilities NaN.

        Args:
            batch: windows.
            timed: whether rows say where the windows begin and end.
        """
        probabilities = np.full((len(batch), len(self.class_names)), np.nan)
        sounding = [number for number, window in enumerate(batch) if not is_still(window.samples)]
        if sounding:
            probabilities[sounding] = self.predict_batch([(batch[n].samples, batch[n].rate_hz) for n in sounding])
        rows = []
        for window, p in zip(batch, probabilities, strict=True):
            times = [round(window.start_s, 3), round(window.end_s, 3)] if timed else []
            label = "" if np.isnan(p[0]) else self.class_names[int(p.argmax())]
            rows.append([window.path, *times, label, *p.tolist()])
        return rows

    def predict_batch(self, waveforms: list[tuple[np.ndarray, int]]) -> np.ndarray:
        """Predict class probabilities of clips.

        Args:
            waveforms: ((T_i,) float32, sample rate in Hz) of each clip.

        Returns:
            (n, C) float64, rows sum to 1.

        Raises:
            RunError: a member has no finite answer.
        """
        return self.mixture(self.member_probabilities(waveforms))

    def member_probabilities(self, waveforms: list[tuple[np.ndarray, int]]) -> np.ndarray:
        """Return each member's (M, n, C) float32 probabilities of clips, as `predict_batch` takes them."""
        p = np.empty((len(self.classifiers), len(waveforms), len(self.class_names)), dtype=np.float32)
        for rate_hz in sorted({c.sample_rate_hz for c in self.classifiers}):
            numbers = [i for i, c in enumerate(self.classifiers) if c.sample_rate_hz == rate_hz]
            clips = [resampled(x, own_hz, rate_hz) for x, own_hz in waveforms]
            offsets = np.cumsum([0, *map(len, clips)])
            store = WaveformStore(np.concatenate(clips).astype(np.float32, copy=False), offsets, rate_hz, Path())
            alike = [self.classifiers[i] for i in numbers]
            rows, size = np.arange(len(clips)), max(1, len(clips))
            p[numbers] = predict_together(alike, store, rows, batch_size=size, threads=devices.side_by_side())
        return p


def resampled(samples: np.ndarray, own_hz: int, rate_hz: int) -> np.ndarray:
    """Return (T,) samples at another rate, as the waveform store has them."""
    return samples if own_hz == rate_hz else soxr.resample(samples, own_hz, rate_hz, quality="HQ")
