"""`predict.py`: recordings are decoded ahead, windows predicted in batches, rows written as they come."""

import csv
import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from audio_mnist import devices
from audio_mnist.corpora.tables import read_table
from audio_mnist.decoding import AUDIO_SUFFIXES, Limits, decode
from audio_mnist.errors import DataError
from audio_mnist.inference import Predictor, load_predictor
from audio_mnist.paths import inside
from audio_mnist.tracking import Tracker
from audio_mnist.validation import validate_predict

log = logging.getLogger(__name__)
_AHEAD = 4  # recordings that each decoding thread may be ahead


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
    done = {row[0] for row in written}
    remaining = [path for path in paths if path not in done]
    if len(remaining) < len(paths):
        log.info("%s has %d of the %d recordings already", output, len(paths) - len(remaining), len(paths))
    unreadable: list[str] = []
    cut = 0
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with open(output, "a" if done else "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if not done:
                writer.writerow(header)
            progress = tqdm(total=len(remaining), desc="predicting", unit="file", disable=None)
            rows: list[list] = []  # of a recording that is not complete yet
            for batch in _batches(_windows(remaining, cfg, unreadable), cfg.batch_size):
                p = predictor.predict([(window.samples, window.rate_hz) for window in batch])
                for window, row in zip(batch, p, strict=True):
                    rows.append(_row(window, row, predictor, bool(cfg.window_s)))
                    if window.last:  # a recording is written whole or not at all, so that a stop loses no half
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
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())
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
    windows = list(itertools.islice(_windows([path], cfg, []), cfg.batch_size))
    if not windows:
        return True
    p = predictor.predict([(window.samples, window.rate_hz) for window in windows])
    now = [_row(window, row, predictor, bool(cfg.window_s)) for window, row in zip(windows, p, strict=True)]
    if [row[1:-classes] for row in now] != [row[1:-classes] for row in before]:  # times and labels
        return False
    ours, theirs = (np.array([row[-classes:] for row in rows], dtype=float) for rows in (now, before))
    return bool(np.allclose(ours, theirs, atol=1e-3))


def _windows(paths: list[str], cfg: DictConfig, unreadable: list[str]) -> Iterator[_Window]:
    limits = Limits(0.0, cfg.max_clip_s, "")
    for path, (samples, rate_hz, reason) in _decoded(paths, limits):
        if samples is None:
            unreadable.append(f"{path}: {reason}")
            continue
        length = round(cfg.window_s * rate_hz) if cfg.window_s else len(samples)
        hop = max(1, round((cfg.hop_s or cfg.window_s / 2) * rate_hz)) if cfg.window_s else 1
        starts = range(0, max(1, len(samples) - length + hop), hop)  # the last may reach over the end
        for start in starts:
            yield _Window(path, samples[start : start + length], rate_hz, start / rate_hz, start == starts[-1])


def _decoded(paths: list[str], limits: Limits) -> Iterator[tuple[str, tuple]]:
    """In order, decoded by a pool of threads that is a few recordings ahead."""
    threads = os.cpu_count() or 1
    remaining: Iterable[str] = iter(paths)
    with ThreadPoolExecutor(threads) as pool:
        waiting = [(path, pool.submit(decode, path, limits)) for path in itertools.islice(remaining, threads * _AHEAD)]
        while waiting:
            path, future = waiting.pop(0)
            for following in itertools.islice(remaining, 1):
                waiting.append((following, pool.submit(decode, following, limits)))
            yield path, future.result()


def _batches(windows: Iterator[_Window], size: int) -> Iterator[list[_Window]]:
    while batch := list(itertools.islice(windows, size)):
        yield batch


def _row(window: _Window, p: np.ndarray, predictor: Predictor, timed: bool) -> list:
    end_s = window.start_s + len(window.samples) / window.rate_hz
    times = [f"{window.start_s:.3f}", f"{end_s:.3f}"] if timed else []
    return [window.path, *times, predictor.class_names[int(p.argmax())], *(f"{x:.6g}" for x in p)]
