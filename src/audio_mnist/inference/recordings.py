"""`predict.py`: recordings are decoded ahead, windows predicted in batches, rows written as they come."""

import csv
import itertools
import logging
import math
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from audio_mnist.data.corpora.tables import read_table
from audio_mnist.data.decode import Limits, decode, recordings_in
from audio_mnist.errors import DataError
from audio_mnist.inference.predictor import Predictor, load_predictor
from audio_mnist.schema import validate_predict
from audio_mnist.system import devices
from audio_mnist.system.paths import inside
from audio_mnist.tracking.tracker import Tracker

log = logging.getLogger(__name__)
_AHEAD = 4  # recordings that each decoding thread may be ahead,
_AHEAD_BYTES = 2**25  # while their files have no more than this; decoded they have up to twenty times as much


@dataclass(frozen=True)
class _Window:
    """A piece of a recording.

    Attributes:
        last: whether its recording has no further one.
    """

    path: str
    samples: np.ndarray
    rate_hz: int
    start_s: float
    last: bool


def predict(cfg: DictConfig) -> int:
    """Writes what a tracked model hears in recordings.

    Args:
        cfg: the composed config of `conf/predict/predict.yaml`.

    Returns:
        The number of recordings that could not be read; each is named.

    Raises:
        AudioMnistError: no such model, no recordings, or an output that is not this model's.
    """
    cfg = validate_predict(cfg)
    devices.set_up_cpu(cfg.threads)
    paths = find_audio(list(cfg.audio), allow_outside=cfg.allow_outside)
    assert cfg.tracking.uri is not None
    predictor = load_predictor(Tracker(cfg.tracking.uri, cfg.tracking.experiment), cfg.model)
    output = Path(cfg.output)
    header = ["path", *(("start_s", "end_s") if cfg.window_s else ()), "label"]
    header += [f"p:{name}" for name in predictor.class_names]
    written = _written(output, header) if cfg.resume else []
    if written and not _agrees(written, predictor, cfg):
        raise DataError(
            f"output={output}: its rows are not what this model says of {written[0][0]} now (another model, "
            "window_s or hop_s); move it away, or resume=false writes over it"
        )
    unreadable: list[str] = []
    cut = 0
    try:
        if written and cfg.window_s:
            written = _without_half(written, output, header, cfg)
        done = {row[0] for row in written}
        remaining = [path for path in paths if path not in done]
        if len(remaining) < len(paths):
            log.info("%s has %d of the %d recordings already", output, len(paths) - len(remaining), len(paths))
        output.parent.mkdir(parents=True, exist_ok=True)
        with open(output, "a" if done else "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if not done:
                writer.writerow(header)
            progress = tqdm(total=len(remaining), desc="predicting", unit="file", disable=None)
            rows: list[list] = []  # of a recording that is not complete yet
            for batch in _batches(_windows(remaining, cfg, unreadable, predictor.heard_s), cfg.batch_size):
                p = predictor.predict([(window.samples, window.rate_hz) for window in batch])
                for window, row in zip(batch, p, strict=True):
                    rows.append(_row(window, row, predictor, bool(cfg.window_s)))
                    if window.last:  # a recording is written whole, so that a stop leaves no half
                        writer.writerows(rows)
                        rows = []
                        progress.update()
                        cut += not cfg.window_s and len(window.samples) > 1.5 * predictor.window_s * window.rate_hz
                file.flush()
            progress.close()
    except OSError as error:
        raise DataError(f"output={output}: cannot be written ({error.strerror or error})") from None
    _report(predictor, len(remaining), unreadable, cut, output)
    return len(unreadable)


def _report(predictor: Predictor, asked: int, unreadable: list[str], cut: int, output: Path) -> None:
    members = f"{len(predictor.classifiers)} members" if len(predictor.classifiers) > 1 else "1 member"
    log.info(
        "%d recordings by %s (%s, run %s): %s",
        asked - len(unreadable),
        predictor.name,
        members,
        predictor.run_id,
        output,
    )
    if cut:
        log.info(
            "note: %d recordings are much longer than the %.1f s that the model hears, so only their middle was heard; "
            "window_s=%.1f slides over them",
            *(cut, predictor.window_s, predictor.window_s),
        )
    if unreadable:
        log.warning("%d recordings could not be read:\n%s", len(unreadable), "\n".join(f"  {u}" for u in unreadable))


def find_audio(audio: object, *, allow_outside: bool = False) -> list[str]:
    """Paths of the recordings that `audio` names, each once.

    Args:
        audio: a recording, a folder, a csv with a column path (relative to the csv), or a list of these.
        allow_outside: whether a csv's paths may lead out of its folder.

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
            said = f"audio={path}, line {line}"
            listed.append(inside(path.parent, name, allowed=allow_outside, said=said, key="allow_outside"))
        return list(dict.fromkeys(listed))
    if not path.is_file():
        raise DataError(f"audio={path}: no such file or folder")
    return [str(path)]


def _written(output: Path, header: list[str]) -> list[list[str]]:
    """Rows that an output has already; a last line that was cut off is taken away."""
    if not output.exists() or output.stat().st_size == 0:
        return []
    text = output.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        output.write_bytes(whole)
    with open(output, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows or rows[0] != header:
        raise DataError(
            f"output={output}: it has other columns than this model's; move it away, or resume=false writes over it"
        )
    return rows[1:]


def _agrees(written: list[list[str]], predictor: Predictor, cfg: DictConfig) -> bool:
    """Whether the first recording's rows are what the predictor says of it; yes where it can no longer be read."""
    path, classes = written[0][0], len(predictor.class_names)
    before = [row for row in written if row[0] == path][: cfg.batch_size]
    windows = list(itertools.islice(_windows([path], cfg, [], predictor.heard_s), len(before)))
    if not windows:
        return True
    p = predictor.predict([(window.samples, window.rate_hz) for window in windows])
    now = [_row(window, row, predictor, bool(cfg.window_s)) for window, row in zip(windows, p, strict=True)]
    if [row[1:-classes] for row in now] != [row[1:-classes] for row in before]:  # times and labels
        return False
    ours, theirs = (np.array([row[-classes:] for row in rows], dtype=float) for rows in (now, before))
    return bool(np.allclose(ours, theirs, atol=1e-3))


def _without_half(written: list[list[str]], output: Path, header: list[str], cfg: DictConfig) -> list[list[str]]:
    """Rows without those of the last recording where windows of it are missing: a full disk, a killed process."""
    last = written[-1][0]
    wanted = sum(1 for _ in _windows([last], cfg, []))
    if wanted in (0, sum(row[0] == last for row in written)):  # 0: it can no longer be read
        return written
    kept = [row for row in written if row[0] != last]
    whole = output.with_name(output.name + ".partial")
    try:
        with open(whole, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *kept])
        os.replace(whole, output)
    finally:
        whole.unlink(missing_ok=True)
    return kept


def _windows(paths: list[str], cfg: DictConfig, unreadable: list[str], heard_s: float = math.inf) -> Iterator[_Window]:
    """The windows of recordings, or each as a whole, of which a model hears `heard_s` in the middle."""
    limits = Limits(0.0, cfg.max_clip_s, "")
    for path, (samples, rate_hz, reason) in _decoded(paths, limits):
        if samples is None:
            unreadable.append(f"{path}: {reason}")
            continue
        if not cfg.window_s:
            samples = _middle(samples, rate_hz, 4 * heard_s)
        length = round(cfg.window_s * rate_hz) if cfg.window_s else len(samples)
        hop = max(1, round((cfg.hop_s or cfg.window_s / 2) * rate_hz)) if cfg.window_s else 1
        starts = range(0, max(1, len(samples) - length + hop), hop)  # the last may reach over the end
        for start in starts:
            yield _Window(path, samples[start : start + length], rate_hz, start / rate_hz, start == starts[-1])


def _middle(samples: np.ndarray, rate_hz: int, least_s: float) -> np.ndarray:
    """Without whole seconds at both ends, so that resampling meets the same instants; at least `least_s` remain."""
    spare_s = len(samples) / rate_hz - least_s
    if spare_s < 2:
        return samples
    cut = int(spare_s / 2) * rate_hz
    return samples[cut : len(samples) - cut].copy()  # a view would keep all in memory


def _decoded(paths: list[str], limits: Limits) -> Iterator[tuple[str, tuple]]:
    """In order, decoded by a pool of threads that is a few recordings ahead, fewer where they are long."""
    threads = os.cpu_count() or 1
    remaining = deque(paths)
    waiting: deque[tuple[str, int, Future]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        while remaining or waiting:
            while remaining and len(waiting) < threads * _AHEAD:
                if waiting and sum(size for _, size, _ in waiting) > _AHEAD_BYTES:
                    break
                path = remaining.popleft()
                size = os.path.getsize(path) if os.path.exists(path) else 0
                waiting.append((path, size, pool.submit(decode, path, limits)))
            path, _, future = waiting.popleft()
            yield path, future.result()


def _batches(windows: Iterator[_Window], size: int) -> Iterator[list[_Window]]:
    while batch := list(itertools.islice(windows, size)):
        yield batch


def _row(window: _Window, p: np.ndarray, predictor: Predictor, timed: bool) -> list:
    end_s = window.start_s + len(window.samples) / window.rate_hz
    times = [f"{window.start_s:.3f}", f"{end_s:.3f}"] if timed else []
    return [window.path, *times, predictor.class_names[int(p.argmax())], *(f"{x:.6g}" for x in p)]
