"""The store: bad clips named, samples exact, shared safely, rebuilt when anything changes."""

import errno
import itertools
import logging
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import librosa
import numpy as np
import pandas as pd
import pytest
import soundfile

from audio_mnist.data import build_store as builder
from audio_mnist.data.build_store import build_store
from audio_mnist.data.decode import Limits
from audio_mnist.data.store import WaveformStore
from audio_mnist.errors import DataError

LIMITS = Limits(min_s=0.01, max_s=60)


def manifest_of(*paths: Path, label: str = "a") -> pd.DataFrame:
    rows = [{"clip_id": p.name, "path": str(p), "label": label, "speaker": "", "split": "train"} for p in sorted(paths)]
    return pd.DataFrame(rows)


def write(path: Path, samples: np.ndarray, rate_hz: int = 8000, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, samples, rate_hz, subtype=subtype)
    return path


def noise(samples: int = 4000, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


def build(table: pd.DataFrame, cache: Path, rate_hz: int | None = 8000, on_bad_clip: str = "error"):
    return build_store(table, sample_rate_hz=rate_hz, limits=LIMITS, on_bad_clip=on_bad_clip, cache_dir=cache)


def test_build_store_keeps_samples_and_averages_channels(tmp_path: Path) -> None:
    """Mono at the store's rate is kept to the bit; three channels become their mean."""
    stereo = np.stack([noise(seed=1), noise(seed=2), noise(seed=3)], axis=1)
    table = manifest_of(write(tmp_path / "a.wav", noise()), write(tmp_path / "b.wav", stereo))
    _, store = build(table, tmp_path / "cache")
    np.testing.assert_array_equal(store.clip(0), noise())
    np.testing.assert_allclose(store.clip(1), stereo.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_build_store_reads_what_libsndfile_reads(tmp_path: Path, suffix: str) -> None:
    """WAV, FLAC, OGG and MP3."""
    soundfile.write(tmp_path / f"a.{suffix}", noise(16_000), 16_000)
    kept, store = build(manifest_of(tmp_path / f"a.{suffix}"), tmp_path / "cache", None)
    assert store.sample_rate_hz == 16_000
    assert kept["duration_s"].iloc[0] == pytest.approx(1.0, abs=0.1)


def test_build_store_resamples_like_a_peer(tmp_path: Path) -> None:
    """A 440 Hz tone from 44.1 to 16 kHz: the length, and librosa's samples within 0.002."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)
    _, store = build(manifest_of(write(tmp_path / "a.wav", tone, 44_100)), tmp_path / "cache", 16_000)
    peer = librosa.resample(tone, orig_sr=44_100, target_sr=16_000, res_type="soxr_vhq")
    assert len(store.clip(0)) == 16_000
    np.testing.assert_allclose(store.clip(0)[500:-500], peer[500:-500], atol=2e-3)


def test_build_store_takes_the_commonest_rate(tmp_path: Path) -> None:
    """sample_rate_hz=null is the rate that most clips have."""
    table = manifest_of(*(write(tmp_path / f"{i}.wav", noise(seed=i), r) for i, r in enumerate((8000, 11025, 8000))))
    assert build(table, tmp_path / "cache", None)[1].sample_rate_hz == 8000


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "the file is empty"),
    "text": (
        lambda p: p.write_text("this is no recording, it is text\n" * 20),
        "not a recording that libsndfile reads",
    ),
    "header": (lambda p: p.write_bytes(b"RIFF\x24\x00\x00\x00WAVEfmt "), "not a recording that libsndfile reads"),
    "no_samples": (lambda p: write(p, np.zeros(0)), "it has no samples"),
    "silent": (lambda p: write(p, np.zeros(4000)), "it is silent"),
    "nan": (lambda p: write(p, np.where(np.arange(4000) == 7, np.nan, noise())), "NaN or infinite"),
    "one_sample": (lambda p: write(p, np.ones(1)), "data.min_clip_s=0.01"),
    "ten_minutes": (lambda p: write(p, noise(600 * 8000), subtype="PCM_16"), "600.0 s long, more than data.max_clip_s"),
    "missing": (lambda p: p.unlink(missing_ok=True), "no such file"),
    "folder": (lambda p: p.mkdir(), "cannot be read"),
}


@pytest.mark.parametrize("kind", BAD)
def test_build_store_names_a_bad_clip(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """By default one bad clip stops the run, by name; skip leaves it out, by name."""
    make, reason = BAD[kind]
    make(tmp_path / "bad.wav")
    table = manifest_of(tmp_path / "bad.wav", write(tmp_path / "good.wav", noise()))
    with pytest.raises(DataError, match="1 of 2 clips cannot be used") as caught:
        build(table, tmp_path / "cache")
    assert "bad.wav" in str(caught.value) and reason in str(caught.value)
    assert "data.on_bad_clip=skip" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        kept, store = build(table, tmp_path / "cache", on_bad_clip="skip")
    assert kept["clip_id"].tolist() == ["good.wav"] and len(store) == 1
    np.testing.assert_array_equal(store.clip(0), noise())
    assert "bad.wav" in caplog.text and reason in caplog.text


@pytest.mark.parametrize("suffix", ["wav", "aiff", "au"])
def test_build_store_warns_of_a_recording_that_ends_early(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A header of 8,000 samples, a file of 2,000: it is used, with a warning each time, also from the store."""
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    for seed, path in enumerate((whole, cut)):
        write(path, noise(8000, seed), subtype="PCM_16")
    with open(cut, "r+b") as file:
        file.truncate(cut.stat().st_size - 12_000)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            kept, store = build(manifest_of(cut, whole), tmp_path / "cache")
        assert f"1 recording shorter than the file's header says ({cut} lacks 75%); copy" in caplog.text
        assert len(kept) == 2 and len(store.clip(0)) == 2000


@pytest.mark.parametrize(
    ("start", "value"),
    [(40, b"\xff\xff\xff\xff"), (4, b"\x00\xff\x00\x00"), (28, b"\x00\xff\x00\x00")],
    ids=["data size that ffmpeg writes to a pipe", "wrong RIFF size", "wrong bytes per second"],
)
def test_build_store_takes_a_whole_recording_with_an_odd_header(
    tmp_path: Path, start: int, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """All samples are there: no warning."""
    path = write(tmp_path / "a.wav", noise(8000), subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[start : start + 4] = value
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        _, store = build(manifest_of(path), tmp_path / "cache")
    assert not caplog.text and len(store.clip(0)) == 8000


def test_build_store_of_bad_clips_alone_is_an_error(tmp_path: Path) -> None:
    """Skipping everything is not a corpus."""
    (tmp_path / "a.wav").touch()
    with pytest.raises(DataError, match="none of the 1 clips can be used"):
        build(manifest_of(tmp_path / "a.wav"), tmp_path / "cache", on_bad_clip="skip")


def test_build_store_counts_copies_and_refuses_two_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Identical clips are a warning with their names; with different labels an error with their names."""
    table = manifest_of(write(tmp_path / "a.wav", noise()), write(tmp_path / "b.wav", noise()))
    with caplog.at_level(logging.WARNING):
        kept, _ = build(table, tmp_path / "cache")
    assert "1 clip with the sound of another (b.wav of a.wav)" in caplog.text
    assert kept["recording"].tolist() == ["a.wav", "a.wav"]
    table.loc[1, "label"] = "b"
    with pytest.raises(DataError, match=r"different labels: .*a\.wav \(a\), .*b\.wav \(b\)"):
        build(table, tmp_path / "cache")
    many = manifest_of(*(write(tmp_path / f"{n:02d}.wav", noise()) for n in range(14)))
    many.loc[13, "label"] = "b"
    with pytest.raises(DataError, match=r"/00\.wav \(a\), \S*/13\.wav \(b\), .* and 4 more; correct them"):
        build(many, tmp_path / "cache")


def test_build_store_is_reused_until_a_file_or_setting_changes(tmp_path: Path) -> None:
    """The same folder serves again; another rate, another file, another time do not."""
    path = write(tmp_path / "a.wav", noise())
    table, cache = manifest_of(path), tmp_path / "cache"
    _, first = build(table, cache)
    created = os.stat(first.path / "samples.f32").st_mtime_ns
    _, again = build(table, cache)
    assert again.path == first.path and os.stat(again.path / "samples.f32").st_mtime_ns == created
    assert build(table, cache, 4000)[1].path != first.path
    write(path, noise(seed=9))
    os.utime(path, ns=(1, 1))
    _, changed = build(table, cache)
    assert changed.path != first.path
    np.testing.assert_array_equal(changed.clip(0), noise(seed=9))


@pytest.mark.parametrize("name", ["samples.f32", "offsets.npy", "clips.csv", "meta.json"])
def test_build_store_mends_a_store_cut_in_half(tmp_path: Path, name: str) -> None:
    """A damaged store is noticed and built again."""
    table = manifest_of(write(tmp_path / "a.wav", noise()))
    _, store = build(table, tmp_path / "cache")
    damaged = store.path / name
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    _, rebuilt = build(table, tmp_path / "cache")
    np.testing.assert_array_equal(rebuilt.clip(0), noise())


@pytest.mark.parametrize("in_process", [False, True])
def test_build_store_on_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: bool
) -> None:
    """One clear error, no partial store, whether this process finds no room or one that decodes for it."""
    if in_process:
        monkeypatch.setattr(builder, "_ALONE_S", 0.0)
        monkeypatch.setattr(builder, "write_clips", _find_no_room)
    else:
        monkeypatch.setattr(builder.np, "save", _find_no_room)
    table = manifest_of(write(tmp_path / "a.wav", noise()))
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\).*data.cache_dir"):
        build(table, tmp_path / "cache")
    assert [p for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock")] == []


def test_build_store_by_processes_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that other processes complete has the bytes of one that this process decodes; bad clips are named."""
    paths = [write(tmp_path / f"{i:03}.wav", noise(500 + i, seed=i), 8000 if i % 3 else 11_025) for i in range(40)]
    for number in (5, 30):
        paths[number].write_bytes(b"")
    stores = []
    monkeypatch.setattr(builder, "_BLOCK", 7)
    for step_s, cache in ((0.0, "alone"), (0.1, "handed over"), (2.0, "processes")):
        clock = itertools.count(0.0, step_s)
        monkeypatch.setattr(builder, "time", SimpleNamespace(monotonic=clock.__next__))
        cache = tmp_path / cache
        kept, store = build(manifest_of(*paths), cache, on_bad_clip="skip")
        assert len(store) == len(kept) == 38
        stores.append({path.name: path.read_bytes() for path in store.path.iterdir()})
    assert stores[0].keys() == stores[1].keys() == {"samples.f32", "offsets.npy", "clips.csv", "meta.json"}
    assert stores[0] == stores[1] == stores[2]


def test_build_store_says_that_a_process_was_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that dies takes neither this process nor the cache with it."""
    monkeypatch.setattr(builder, "_ALONE_S", 0.0)
    monkeypatch.setattr(builder, "write_clips", _die)
    table = manifest_of(write(tmp_path / "a.wav", noise()))
    with pytest.raises(DataError, match=r"a process that decodes clips died.*a\.wav"):
        build(table, tmp_path / "cache")
    assert [p for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock")] == []


def _die(*_args: object) -> None:
    os._exit(1)


def _find_no_room(*_args: object, **_options: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _build_in_process(arguments: tuple[pd.DataFrame, Path]) -> tuple[str, float]:
    table, cache = arguments
    _, store = build(table, cache)
    return str(store.path), float(np.sum(store.samples))


def test_build_store_by_two_processes_at_once(tmp_path: Path) -> None:
    """Both get the one whole store."""
    table = manifest_of(*(write(tmp_path / f"{i}.wav", noise(seed=i)) for i in range(200)))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.map(_build_in_process, [(table, tmp_path / "cache")] * 2, chunksize=1)
    assert results[0] == results[1]
    assert len(list((tmp_path / "cache").glob("waveforms-*"))) == 2  # the store and its lock


@pytest.mark.parametrize("length", [1000, 4000, 6000])
@pytest.mark.parametrize("place", [None, 0.0, 0.3, 1.0])
def test_gather_places_and_cuts(tmp_path: Path, length: int, place: float | None) -> None:
    """A shorter clip keeps all its samples among zeros; a longer one gives a window of itself."""
    _, store = build(manifest_of(write(tmp_path / "a.wav", noise())), tmp_path / "cache")
    placed = store.gather(np.array([0]), length, None if place is None else np.array([place]))[0]
    slack = length - 4000
    shift = round(abs(slack) * (0.5 if place is None else place))
    expected = np.zeros(length, dtype=np.float32)
    if slack >= 0:
        expected[shift : shift + 4000] = noise()
    else:
        expected = noise()[shift : shift + length]
    np.testing.assert_array_equal(placed, expected)


def on_disk(folder: Path, samples: np.ndarray, clips: int) -> WaveformStore:
    samples.astype(np.float32).tofile(folder / "samples.f32")
    mapped = np.memmap(folder / "samples.f32", dtype=np.float32, mode="r")
    return WaveformStore(mapped, np.linspace(0, len(samples), clips + 1).astype(np.int64), 8000, folder)


def test_gather_reads_the_file_as_the_map_would(tmp_path: Path) -> None:
    """The same samples from the file as from an array, placed and cut."""
    rng = np.random.default_rng(0)
    samples = rng.standard_normal(10_000).astype(np.float32)
    store = on_disk(tmp_path, samples, 23)
    array = WaveformStore(samples, store.offsets, 8000, tmp_path)
    indices = rng.integers(23, size=64)
    for length in (1, 300, 434, 435, 1000):
        place = rng.random(64)
        np.testing.assert_array_equal(store.gather(indices, length, place), array.gather(indices, length, place))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_gather_does_not_keep_the_corpus_in_memory(tmp_path: Path) -> None:
    """Reading every clip of a 64 MB store leaves the process's mapped pages as they were."""
    store = on_disk(tmp_path, np.ones(16 * 2**20), 1000)

    def shared_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[2]) * os.sysconf("SC_PAGE_SIZE")

    before = shared_bytes()
    for start in range(0, 1000, 50):
        assert store.gather(np.arange(start, start + 50), 16_000).all()
    assert shared_bytes() - before < 8 * 2**20


def test_gather_says_that_the_store_was_cut_short(tmp_path: Path) -> None:
    """Not silence, not a crash: the file is named."""
    store = on_disk(tmp_path, np.ones(8000), 4)
    os.truncate(tmp_path / "samples.f32", 100)
    with pytest.raises(DataError, match=r"samples\.f32: the waveform store was cut short"):
        store.gather(np.array([3]), 2000)
