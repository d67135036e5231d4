"""`predict.py`: windows are predicted in batches, rows are written as they come."""

import csv
import itertools
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from audio_mnist.config import load_modules
from audio_mnist.data.tables import cell
from audio_mnist.errors import DataError, by_cause, counted
from audio_mnist.inference.load import load_predictor
from audio_mnist.inference.predictor import Predictor
from audio_mnist.inference.recordings import Cut, batches, find_audio, windows
from audio_mnist.schema import validate_predict
from audio_mnist.system import devices
from audio_mnist.tracking.tracker import Tracker

log = logging.getLogger(__name__)
_SHOWN = 5  # answers that are printed too, where no more recordings are asked for


def predict(cfg: DictConfig) -> int:
    """Write the answers of a tracked model to recordings.

    Args:
        cfg: the composed config of `conf/predict/predict.yaml`.

    Returns:
        The number of recordings that could not be read; a csv beside the output names each of them.

    Raises:
        AudioMnistError: there is no such model, no recording, or the output is not this model's.
    """
    cfg = validate_predict(cfg)
    load_modules(cfg.modules)
    devices.set_up_cpu(cfg.threads)
    paths = [_as_cell(path) for path in find_audio(list(cfg.audio), allow_outside=cfg.allow_outside)]
    assert cfg.tracking.uri is not None
    predictor = load_predictor(Tracker(cfg.tracking.uri, cfg.tracking.experiment), cfg.model)
    output = _Output(Path(cfg.output), predictor, Cut(cfg.window_s, cfg.hop_s, cfg.max_clip_s), cfg.batch_size)

    # what an earlier call wrote
    written = output.read() if cfg.resume else []
    if written and not output.agrees(written):
        raise DataError(
            f"output={output.path}: this model gives other answers for {written[0][0]} (another model, window_s or "
            "hop_s wrote the file); move it away, or resume=false overwrites it"
        )
    unreadable: dict[str, str] = {}
    try:
        if written and cfg.window_s:
            written = output.without_half(written)
        done = {row[0] for row in written}
        remaining = [path for path in paths if path not in done]
        if len(remaining) < len(paths):
            log.info("%s has %d of the %d recordings already", output.path, len(paths) - len(remaining), len(paths))

        # the rest
        cut_short = output.append(remaining, unreadable, overwrite=not done)
        output.list_unreadable(unreadable)
    except OSError as error:
        raise DataError(f"output={output.path}: cannot be written ({error.strerror or error})") from None
    _report(predictor, len(remaining), unreadable, cut_short, output)
    return len(unreadable)


class _Output:
    """The csv that predictions are written to.

    Args:
        path: the file.
        predictor: the model.
        cut: how recordings are cut into windows.
        batch_size: windows at a time.
    """

    def __init__(self, path: Path, predictor: Predictor, cut: Cut, batch_size: int) -> None:
        self.path, self._predictor, self._cut, self._batch_size = path, predictor, cut, batch_size
        self._timed = cut.window_s is not None
        self._header = predictor.header(self._timed)
        self._first: list[list[str]] = []

    @property
    def unreadable_path(self) -> Path:
        """The csv of recordings that could not be read."""
        return self.path.with_suffix(".unreadable.csv")

    def list_unreadable(self, reasons: dict[str, str]) -> None:
        """Write path and reason of each recording that could not be read; remove the list of an earlier call."""
        if not reasons:
            self.unreadable_path.unlink(missing_ok=True)
            return
        with open(self.unreadable_path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([("path", "reason"), *((path, cell(text)) for path, text in reasons.items())])

    def read(self) -> list[list[str]]:
        """Return the rows that the file has; remove a last line that was cut off.

        Raises:
            DataError: its columns are not this model's.
        """
        if not self.path.exists() or self.path.stat().st_size == 0:
            return []
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            self.path.write_bytes(whole)
        with open(self.path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.reader(file))
        if not rows or rows[0] != self._header:
            raise DataError(
                f"output={self.path}: it has other columns than this command writes (another model, or windows); give "
                "another output=FILE, or resume=false, which overwrites it"
            )
        return rows[1:]

    def agrees(self, written: list[list[str]]) -> bool:
        """Tell whether the predictor still gives the first recording's rows; yes where it can no longer be read."""
        path, classes = written[0][0], len(self._predictor.class_names)
        before = [row for row in written if row[0] == path][: self._batch_size]
        found = list(itertools.islice(windows([path], self._cut, {}, self._predictor.used_s), len(before)))
        if not found:
            return True
        now = [_texts(row, self._timed) for row in self._predictor.rows(found, self._timed)]
        if [row[1:-classes] for row in now] != [row[1:-classes] for row in before]:  # times and labels
            return False
        ours, theirs = (np.array([row[-classes:] for row in rows], dtype=float) for rows in (now, before))
        return bool(np.allclose(ours, theirs, atol=1e-3, equal_nan=True))

    def without_half(self, written: list[list[str]]) -> list[list[str]]:
        """Remove the last recording's rows where windows are missing, after a full disk or a killed process."""
        last = written[-1][0]
        wanted = sum(1 for _ in windows([last], self._cut, {}))
        if wanted in (0, sum(row[0] == last for row in written)):  # 0: it can no longer be read
            return written
        kept = [row for row in written if row[0] != last]
        whole = self.path.with_name(self.path.name + ".partial")
        try:
            with open(whole, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                csv.writer(file).writerows([self._header, *kept])
            os.replace(whole, self.path)
        finally:
            whole.unlink(missing_ok=True)
        return kept

    def append(self, paths: list[str], unreadable: dict[str, str], *, overwrite: bool) -> int:
        """Predict recordings and write their rows; a recording is written whole, so that a stop leaves no half.

        Args:
            paths: the recordings.
            unreadable: path -> reason; filled with those that cannot be read.
            overwrite: whether the file is overwritten.

        Returns:
            The number of recordings of which the model used only the middle.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut_short, predictor = 0, self._predictor
        with (
            open(self.path, "w" if overwrite else "a", newline="", encoding="utf-8", errors="surrogateescape") as file,
            tqdm(total=len(paths), desc="predicting", unit="file", disable=None) as progress,
        ):
            writer = csv.writer(file)
            if overwrite:
                writer.writerow(self._header)
            rows: list[list[str]] = []  # of a recording that is not complete yet
            found = windows(paths, self._cut, unreadable, predictor.used_s)
            for batch in batches(found, self._batch_size):
                for window, row in zip(batch, predictor.rows(batch, self._timed), strict=True):
                    rows.append(_texts(row, self._timed))
                    if window.last:
                        writer.writerows(rows)
                        self._first += rows[: _SHOWN - len(self._first)]
                        rows = []
                        progress.update()
                        cut_short += not self._timed and window.end_s > 1.5 * predictor.window_s
                file.flush()
        return cut_short

    def shown(self) -> list[str]:
        """Return the first few answers as lines for the terminal."""
        label = 3 if self._timed else 1
        found = []
        for row in self._first:
            place = f"{row[0]}, {row[1]} to {row[2]} s" if self._timed else row[0]
            found.append(f"{place}: {row[label]} ({max(map(float, row[label + 1 :])):.2f})")
        return [line.encode(errors="backslashreplace").decode() for line in found]  # names may not be UTF-8


def _as_cell(path: str) -> str:
    """Return the same file's path in a form that no spreadsheet takes for a formula."""
    return path if cell(path) == path else f"./{path}"


def _texts(row: list[Any], timed: bool) -> list[str]:
    """Format a row of `Predictor.rows`; no spreadsheet takes a cell for a formula."""
    times = [f"{value:.3f}" for value in row[1:3]] if timed else []
    label = 3 if timed else 1
    return [row[0], *times, cell(row[label]), *(f"{p:.6g}" for p in row[label + 1 :])]


def _report(predictor: Predictor, asked: int, unreadable: dict[str, str], cut_short: int, output: _Output) -> None:
    if asked <= _SHOWN:
        for line in output.shown():
            log.info("%s", line)
    members = counted(len(predictor.classifiers), "member")
    answered = counted(asked - len(unreadable), "recording")
    log.info("%s by %s (%s, run %s): %s", answered, predictor.name, members, predictor.run_id, output.path)
    if cut_short:
        log.info(
            "note: the model used only the middle of %s much longer than its window of %.1f s; "
            "window_s=%.1f slides over all of it",
            *(counted(cut_short, "recording"), predictor.window_s, predictor.window_s),
        )
    if unreadable:
        # names may not be UTF-8
        causes = by_cause(unreadable, "recordings").encode(errors="backslashreplace").decode()
        where = output.unreadable_path
        log.warning("%s could not be read, listed in %s:\n%s", counted(len(unreadable), "recording"), where, causes)
