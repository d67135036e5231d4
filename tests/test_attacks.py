"""Attacks that once succeeded: bad corpora, files, requests and stores, each kept as a test."""

import csv
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig

from audio_mnist.config import to_plain
from audio_mnist.data import copies
from audio_mnist.data.copies import correlation
from audio_mnist.data.decode import MIN_CLIP_S, PEAK, RATES_HZ, STILL, Limits, decode
from audio_mnist.data.folds import EXCLUDED, assign_folds
from audio_mnist.data.prepare import PreparedCorpus, prepare
from audio_mnist.data.split import split_clips
from audio_mnist.errors import DataError, RunError
from audio_mnist.inference.load import load_predictor
from audio_mnist.inference.predict import predict
from audio_mnist.serving import pyfunc
from audio_mnist.tracking.tracker import BEST_CHECKPOINT, Tracker
from audio_mnist.training.run import train
from tests.benchmarks.copies import detected, forms
from tests.conftest import PROJECT, Trained, composed, run_command

LIMITS = Limits(MIN_CLIP_S, 60.0)
CHANGES: list[Callable[[np.ndarray], np.ndarray]] = [
    lambda clip: 0.2 * clip,
    lambda clip: np.pad(clip, len(clip) // 10),
    lambda clip: np.r_[0.0, clip[:-1]],
]


def noise(seed: int, clips: int = 1, seconds: float = 0.4, rate_hz: int = 8000) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((clips, round(seconds * rate_hz)))


def corpus_of(folder: Path, rows: list[tuple[str, ...]], *overrides: str) -> PreparedCorpus:
    """A csv corpus with columns path, label, speaker, split."""
    with open(folder / "clips.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "speaker", "split"), *rows])
    return prepare(to_plain(composed("data=csv", f"data.manifest={folder}/clips.csv", *overrides))["data"])


def write_noises(folder: Path, clips: int, rate_hz: int = 8000, seed: int = 0) -> list[str]:
    for number, samples in enumerate(noise(seed, clips, rate_hz=rate_hz)):
        soundfile.write(folder / f"{seed}_{number}.wav", samples, rate_hz, subtype="PCM_16")
    return [f"{seed}_{number}.wav" for number in range(clips)]


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """The runs of a sweep silence two loggers of their process; other tests need them."""
    yield
    for name in ("audio_mnist.data.build_store", "audio_mnist.data.corpora"):
        logging.getLogger(name).setLevel(logging.NOTSET)


# --- scores


def test_a_clip_listed_under_four_paths_is_scored_once(tmp_path: Path) -> None:
    """One fold, one place in its scored clips, and a count of recordings."""
    (tmp_path / "a").mkdir()
    names = write_noises(tmp_path / "a", 12)
    variants = ["a/{}", "./a/{}", "a//{}", "a/../a/{}"]
    rows = [(way.format(name), "xy"[int(name[2:-4]) % 2], "", "") for name in names for way in variants]
    corpus = corpus_of(tmp_path, rows)
    folds = assign_folds(corpus.manifest, count=3, group="none", seed=0)
    parts = [split_clips(corpus.manifest, folds, fold=fold, selection="last").fold for fold in range(3)]
    assert len(corpus.manifest) == 48 and sum(map(len, parts)) == 12
    assert folds.scored.sum() == corpus.manifest["recording"].nunique() == 12


def test_copies_leave_the_interval_of_a_test_split_as_it_is(tmp_path: Path) -> None:
    """Ten copies of each test clip in other gains: n and the run's interval count recordings."""
    train_names, test_names = write_noises(tmp_path, 8), write_noises(tmp_path, 6, seed=1)
    rows = [(name, "xy"[i % 2], "", "train") for i, name in enumerate(train_names)]
    rows += [(name, "xy"[i % 2], "", "test") for i, name in enumerate(test_names)]
    for i, name in enumerate(test_names):
        samples, rate_hz = soundfile.read(tmp_path / name)
        for gain in range(1, 10):
            soundfile.write(tmp_path / f"{gain}_{name}", samples * gain / 10, rate_hz, subtype="PCM_16")
            rows.append((f"{gain}_{name}", "xy"[i % 2], "", "test"))
    corpus = corpus_of(tmp_path, rows)
    folds = assign_folds(corpus.manifest, count=2, group="none", seed=0)
    test = split_clips(corpus.manifest, folds, fold=0, selection="last").test
    assert len(test) == 60 and folds.scored[test].sum() == 6  # all are answered, six are scored


def test_test_clips_do_not_choose_the_sample_rate(tmp_path: Path) -> None:
    """sample_rate_hz=null is the training clips' most common rate."""
    rows = [(name, "xy"[i % 2], "", "train") for i, name in enumerate(write_noises(tmp_path, 4, 8000))]
    rows += [(name, "xy"[i % 2], "", "test") for i, name in enumerate(write_noises(tmp_path, 9, 16_000, seed=1))]
    assert corpus_of(tmp_path, rows).store.sample_rate_hz == 8000
    turned = [(*row[:3], "test" if row[3] == "train" else "train") for row in rows]
    assert corpus_of(tmp_path, turned).store.sample_rate_hz == 16_000  # not the other split's store


# --- leaks


@pytest.mark.parametrize("form", ["one more header chunk", "FLAC", "MP3", "another gain (-14 dB)", "one sample later"])
def test_a_training_copy_of_a_test_clip_is_left_out_and_named(tmp_path: Path, form: str) -> None:
    """In each of five forms; the same copy under another label is an error."""
    names = write_noises(tmp_path, 9)
    samples, rate_hz = soundfile.read(tmp_path / names[0])
    content, suffix = forms(samples, rate_hz, (tmp_path / names[0]).read_bytes())[form]
    (tmp_path / f"copy.{suffix}").write_bytes(content)
    rows = [(names[0], "x", "", "test"), (f"copy.{suffix}", "x", "", "train")]
    rows += [(name, "xy"[i % 2], "", "train") for i, name in enumerate(names[1:])]
    corpus = corpus_of(tmp_path, rows)
    folds = assign_folds(corpus.manifest, count=2, group="none", seed=0)
    row = corpus.manifest.index[corpus.manifest["clip_id"] == f"copy.{suffix}"][0]
    assert folds.fold_of[row] == EXCLUDED and (folds.fold_of == EXCLUDED).sum() == 1
    assert any(f"copy.{suffix} (of {names[0]})" in note for note in folds.notes)
    rows[1] = (f"copy.{suffix}", "y", "", "train")
    with pytest.raises(DataError, match=r"different labels: .*correct"):
        corpus_of(tmp_path, rows)


def test_copies_samples_compares_equal_samples_only(tmp_path: Path) -> None:
    """The way out for corpora whose different recordings sound alike."""
    names = write_noises(tmp_path, 5)
    samples, rate_hz = soundfile.read(tmp_path / names[0])
    soundfile.write(tmp_path / "quiet.wav", 0.3 * samples, rate_hz, subtype="PCM_16")
    soundfile.write(tmp_path / "same.flac", samples, rate_hz)
    rows = [(name, "xy"[i % 2], "", "") for i, name in enumerate(names)]
    corpus = corpus_of(tmp_path, [*rows, ("quiet.wav", "y", "", ""), ("same.flac", "x", "", "")], "data.copies=samples")
    first = dict(zip(corpus.manifest["clip_id"], corpus.manifest["recording"], strict=True))
    assert first["quiet.wav"] == "quiet.wav" and first["same.flac"] == names[0]


def test_real_copies_are_found_and_other_takes_are_not_taken_for_copies(real_data: Path, tmp_path: Path) -> None:
    """On Speech Commands digits: equal samples always, 95% of the other forms, under 0.1% false alarms."""
    found, alarms, _ = detected(real_data / "speech_commands_digits", 16_000, tmp_path)
    assert found["one more header chunk"] == found["FLAC"] == 1
    assert all(found[form] >= 0.95 for form in ("MP3", "another gain (-14 dB)", "one sample later", "Vorbis"))
    assert alarms < 0.001


@pytest.mark.slow
def test_takes_of_one_word_by_one_voice_are_not_copies(real_data: Path, tmp_path: Path) -> None:
    """On FSDD, which has 50 takes of each word by each of six voices."""
    found, alarms, _ = detected(real_data / "fsdd" / "recordings", 8000, tmp_path)
    assert found["one more header chunk"] == found["FLAC"] == 1
    assert all(found[form] >= 0.95 for form in ("MP3", "another gain (-14 dB)", "one sample later"))
    assert alarms < 0.001


@pytest.mark.parametrize(("share", "most"), [(copies.OTHER_BITS, 10), (1.0, 5 * 62)])
def test_recordings_of_one_machine_are_rarely_correlated(
    monkeypatch: pytest.MonkeyPatch, share: float, most: int
) -> None:
    """1,891 pairs of fans and copies have similar spectra. Bits exclude most; else each clip keeps its closest five."""
    correlated = []

    def counted_correlation(first: np.ndarray, second: np.ndarray) -> float:
        correlated.append((first, second))
        return correlation(first, second)

    monkeypatch.setattr(copies, "correlation", counted_correlation)
    monkeypatch.setattr(copies, "CLOSEST", 5)
    monkeypatch.setattr(copies, "OTHER_BITS", share)
    clips = [np.convolve(one, np.hanning(12), "same") for one in noise(0, 60, seconds=1.0)]
    clips += [clips[5][400:], 0.3 * clips[50][:-400]]
    _, alike = copies.first_copies(clips.__getitem__, 8000, np.arange(len(clips)).astype(str))
    assert alike.tolist() == [*range(60), 5, 50]
    assert 2 <= len(correlated) <= most


@pytest.mark.parametrize(
    ("rate_hz", "seconds", "smooth"),
    [(8000, 0.1, 1), (2000, 0.5, 1), (1000, 1.0, 1), (8000, 0.5, 27), (8000, 0.5, 160)],
)
def test_copies_of_short_slow_and_dull_clips_are_found(rate_hz: int, seconds: float, smooth: int) -> None:
    """Bands without a bin, and bands without sound, must not decide: in other gains, padded, later."""
    shape, fade = np.hanning(smooth + 2)[1:-1], np.hanning(round(seconds * rate_hz))
    clips = [fade * np.convolve(one, shape, "same") for one in noise(0, 20, seconds, rate_hz)]
    gains, padded, later = ([change(clip) for clip in clips] for change in CHANGES)
    every = [*clips, *gains, *padded, *later]
    _, alike = copies.first_copies(every.__getitem__, rate_hz, np.arange(len(every)).astype(str))
    assert alike.tolist() == 4 * list(range(20))


def test_silence_around_a_clip_does_not_change_its_spectrum() -> None:
    """A clip that begins and ends abruptly: 0.1 s of noise."""
    clip = noise(0, seconds=0.1)[0]
    spectra = [copies.fingerprint(one, 8000)[0] for one in (clip, np.pad(clip, 400))]
    assert np.abs(spectra[0] - spectra[1]).max() < 0.1


@pytest.mark.parametrize(
    "names", [("Anna", "anna"), ("Jos\u00e9 ", "Jos\u00e9\u200b"), ("s01", "s1"), ("an na", "an\tna")]
)
def test_almost_equal_speakers_stop_the_run_unless_a_key_allows_them(tmp_path: Path, names: tuple[str, str]) -> None:
    """Case, invisible characters, zeros, spaces; both names are in the message."""
    rows = [(name, "xy"[i // 4], names[i % 2], "") for i, name in enumerate(write_noises(tmp_path, 8))]
    with pytest.raises(DataError, match=r"speakers .* are probably one.*data\.similar_speakers=true"):
        corpus_of(tmp_path, rows)
    assert corpus_of(tmp_path, rows, "data.similar_speakers=true").manifest["speaker"].nunique() == 2


def test_one_speaker_in_two_unicode_forms_is_one(tmp_path: Path) -> None:
    """NFC and stripped edges; the same holds for labels."""
    forms = ("Jos\u00e9", "Jose\u0301", " Jos\u00e9 ")
    rows = [(name, f"{'xy'[i % 2]} ", forms[i % 3], "") for i, name in enumerate(write_noises(tmp_path, 6))]
    manifest = corpus_of(tmp_path, rows).manifest
    assert set(manifest["speaker"]) == {"Jos\u00e9"} and set(manifest["label"]) == {"x", "y"}


def test_almost_equal_labels_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They stay several classes, since only a person knows."""
    labels = ("01", "1", "1.0", "Yes", "yes", "no\u200b", "no", "2")
    rows = [(name, labels[i % 8], "", "") for i, name in enumerate(write_noises(tmp_path, 16))]
    with caplog.at_level(logging.WARNING):
        assert len(corpus_of(tmp_path, rows).class_names) == 8
    for group in ("'01', '1', '1.0'", "'Yes', 'yes'", r"'no', 'no\u200b'"):
        assert group in caplog.text


def test_two_columns_of_one_name_are_an_error(tmp_path: Path) -> None:
    """The first was taken silently."""
    (tmp_path / "clips.csv").write_text("path,label, label\na.wav,x,y\n")
    with pytest.raises(DataError, match="2 columns are named 'label'; keep one of them"):
        prepare(to_plain(composed("data=csv", f"data.manifest={tmp_path}/clips.csv"))["data"])


# --- answers


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.r_[noise(0)[0], 1e25], "a sample of 1e+25, more than"),
        (np.r_[noise(0)[0], -3e38], "a sample of 3e+38, more than"),
        (np.full(4000, 0.3), "silent: all samples are equal"),
        (np.zeros(4000), "silent: all samples are equal"),
        (1e-9 * noise(0)[0], "silent: all samples are equal"),
        (np.array([0.1, -0.1, 0.1]), "less than data.min_clip_s"),
    ],
)
def test_samples_without_an_answer_are_refused_alike_everywhere(
    trained: Trained, tmp_path: Path, samples: np.ndarray, reason: str
) -> None:
    """Training, predict.py, the Python face and the served model."""
    path = tmp_path / "bad.wav"
    soundfile.write(path, samples, 8000, subtype="FLOAT")
    with pytest.raises(DataError, match="bad") as caught:
        corpus_of(tmp_path, [("bad.wav", "x", "", ""), *[(n, "y", "", "") for n in write_noises(tmp_path, 3)]])
    assert reason in str(caught.value)
    output = tmp_path / "p.csv"
    assert predict(trained.config(path, output)) == 1
    assert len(output.read_text().splitlines()) == 1  # the header
    predictor = load_predictor(trained.tracker, trained.ensemble)
    with pytest.raises(DataError, match="waveform: "):
        predictor.predict(samples, 8000)
    with pytest.raises(MlflowException, match="clip 0: "):
        pyfunc._checked(pd.DataFrame({"waveform": [samples.astype(np.float32)], "sample_rate_hz": [8000]}))


def test_the_served_script_has_the_limits_of_the_package() -> None:
    """It imports nothing of the package, so it repeats them."""
    ours, theirs = (MIN_CLIP_S, RATES_HZ, PEAK, STILL), (pyfunc.MIN_CLIP_S, pyfunc.RATES_HZ, pyfunc.PEAK, pyfunc.STILL)
    assert ours == theirs


def test_a_silent_window_gets_no_label(trained: Trained, tmp_path: Path) -> None:
    """Sound, then silence: the second window's label is empty; a long clip with a silent middle is refused."""
    sound, silence = noise(0, seconds=1.0)[0], np.zeros(16_000)
    soundfile.write(tmp_path / "half.wav", np.r_[sound, silence], 8000)
    soundfile.write(tmp_path / "middle.wav", np.r_[sound, silence, sound], 8000)
    assert predict(trained.config(tmp_path / "half.wav", tmp_path / "w.csv", "window_s=1.0", "hop_s=1.0")) == 0
    table = pd.read_csv(tmp_path / "w.csv", keep_default_na=False)
    assert table["label"].iloc[0] != "" and table["label"].iloc[1:].tolist() == ["", ""]
    assert predict(trained.config(tmp_path / "middle.wav", tmp_path / "m.csv")) == 1


def test_windows_further_apart_than_they_are_long_end_with_the_recording(trained: Trained, tmp_path: Path) -> None:
    """hop_s above window_s: no window starts at the end of the recording."""
    soundfile.write(tmp_path / "a.wav", noise(0, seconds=1.0)[0], 8000)
    assert predict(trained.config(tmp_path / "a.wav", tmp_path / "p.csv", "window_s=0.2", "hop_s=0.5")) == 0
    assert pd.read_csv(tmp_path / "p.csv")["start_s"].tolist() == [0.0, 0.5]


def test_a_clip_of_two_samples_has_a_place_among_copies(tmp_path: Path) -> None:
    """Nothing is left of it at the rate of the comparison; data.min_clip_s=0 allows it."""
    soundfile.write(tmp_path / "short.wav", np.array([0.1, -0.1]), 48_000)
    names = write_noises(tmp_path, 3, 48_000)
    rows = [("short.wav", "x", "", ""), *[(name, "y", "", "") for name in names]]
    assert len(corpus_of(tmp_path, rows, "data.min_clip_s=0").manifest) == 4


@pytest.mark.parametrize(
    ("suffix", "form"), [("wav", {"subtype": "GSM610"}), ("xi", {"format": "XI", "subtype": "DPCM_16"})]
)
def test_formats_that_cannot_seek_are_read(trained: Trained, tmp_path: Path, suffix: str, form: dict) -> None:
    """GSM 6.10 and XI, in training and in predict.py."""
    rate_hz = 44_100 if suffix == "xi" else 8000
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, noise(3, rate_hz=rate_hz)[0], rate_hz, **form)
    expected, own_hz = soundfile.read(path, dtype="float32")
    samples, read_hz, reason = decode(str(path), LIMITS)
    assert reason == "" and read_hz == own_hz
    np.testing.assert_array_equal(samples, expected)
    rows = [(f"clip.{suffix}", "x", "", ""), *[(name, "y", "", "") for name in write_noises(tmp_path, 3)]]
    assert len(corpus_of(tmp_path, rows).manifest) == 4
    assert predict(trained.config(path, tmp_path / "p.csv")) == 0


def test_every_format_of_libsndfile_is_answered_or_refused(trained: Trained, tmp_path: Path) -> None:
    """Each format and subtype, whole, cut and mutated, a name that is not UTF-8: rows or reasons, no exception."""
    rng, folder = np.random.default_rng(0), tmp_path / "clips"
    folder.mkdir()
    written = 0
    for number, kind in enumerate(sorted(soundfile.available_formats())):
        for subtype in sorted(soundfile.available_subtypes(kind)):
            for rate_hz in (8000, 44_100):
                whole = folder / f"{number}_{subtype}.wav"  # libsndfile looks at the content, not at the suffix
                try:
                    soundfile.write(
                        str(whole), noise(number, rate_hz=rate_hz)[0], rate_hz, format=kind, subtype=subtype
                    )
                except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError):
                    whole.unlink(missing_ok=True)
                    continue
                content = bytearray(whole.read_bytes())
                (folder / f"{number}_{subtype}_cut.wav").write_bytes(content[: len(content) // 2])
                for position in rng.integers(0, len(content), 5):
                    content[position] = int(rng.integers(0, 256))
                (folder / f"{number}_{subtype}_mutated.wav").write_bytes(content)
                written += 1
                break
    assert written > 40
    os.rename(sorted(folder.iterdir())[0], os.fsencode(folder) + b"/\xff\xfe.wav")
    output = tmp_path / "p.csv"
    lost = predict(trained.config(folder, output, "batch_size=16"))
    with open(output, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) + lost == len(list(folder.iterdir())) >= 3 * written and len(rows) > written
    probabilities = np.array([[float(row[key]) for key in row if key.startswith("p:")] for row in rows])
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("exponent", [-38, -20, -6, 0, 6, 9, 20, 38])
def test_any_magnitude_has_a_finite_answer_or_a_reason(trained: Trained, exponent: int) -> None:
    """Samples times a power of ten, as far as float32 goes."""
    samples = (noise(0)[0] * 10.0**exponent).astype(np.float32)
    predictor = load_predictor(trained.tracker, trained.ensemble)
    reason = predictor.check(samples, 8000)
    assert bool(reason) == (exponent not in (-6, 0, 6, 9)), reason
    if not reason:
        assert np.isfinite(predictor.predict_batch([(samples, 8000)])).all()


def test_names_that_are_not_utf8_lose_no_other_file(trained: Trained, tmp_path: Path) -> None:
    """Every file has its row; the row has the name's own bytes, and a second call finds it."""
    names = [b"a.wav", b"b\xff.wav", b"c.wav"]
    for number, name in enumerate(names):
        soundfile.write(tmp_path / "x.wav", noise(number)[0], 8000)
        os.rename(tmp_path / "x.wav", os.path.join(os.fsencode(tmp_path), name))
    output = tmp_path / "out" / "p.csv"
    for _ in range(2):
        assert predict(trained.config(tmp_path, output)) == 0
        lines = output.read_bytes().splitlines()[1:]
        assert [Path(os.fsdecode(line.split(b",")[0])).name for line in lines] == [os.fsdecode(name) for name in names]


def test_train_names_a_file_that_is_not_utf8(tones: Path) -> None:
    """One message with the file and the remedy."""
    first = next((tones / "low").glob("*.wav"))
    os.rename(first, os.path.join(os.fsencode(tones), b"low", b"\xff.wav"))
    with pytest.raises(DataError, match=r"\\udcff\.wav': the name is not valid UTF-8; rename"):
        prepare(to_plain(composed("data=folder", f"data.root={tones}"))["data"])


def test_no_cell_of_predictions_is_a_formula(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file named =1+1.wav gets a path that opens it and that no spreadsheet computes."""
    monkeypatch.chdir(tmp_path)
    soundfile.write(tmp_path / "=1+1.wav", noise(0)[0], 8000)
    for _ in range(2):
        assert predict(trained.config("'=1+1.wav'", tmp_path / "p.csv")) == 0
        path = pd.read_csv(tmp_path / "p.csv")["path"].tolist()
        assert path == ["./=1+1.wav"] and Path(path[0]).exists()


# --- state


def test_two_swapped_clips_are_decoded_again(tmp_path: Path) -> None:
    """Size and modification time are kept, the samples are not."""
    names = write_noises(tmp_path, 4)
    rows = [(name, "xy"[i % 2], "", "") for i, name in enumerate(names)]
    before = corpus_of(tmp_path, rows)
    times = [os.stat(tmp_path / name).st_mtime_ns for name in names[:2]]
    for source, target in ((names[0], "t"), (names[1], names[0]), ("t", names[1])):
        os.rename(tmp_path / source, tmp_path / target)
    for name, at in zip(names[:2], times, strict=True):
        os.utime(tmp_path / name, ns=(at, at))
    after = corpus_of(tmp_path, rows)
    np.testing.assert_array_equal(after.store.clip(0), before.store.clip(1))
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize("damage", ["zeros", "one sample", "swapped"])
def test_a_store_whose_samples_changed_is_built_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """Of the same size: all zeros, one sample, two clips exchanged."""
    rows = [(name, "xy"[i % 2], "", "") for i, name in enumerate(write_noises(tmp_path, 4))]
    before = corpus_of(tmp_path, rows)
    expected = [np.array(before.store.clip(i)) for i in range(4)]
    path = before.store.path / "samples.f32"
    samples = np.fromfile(path, dtype=np.float32)
    length = len(expected[0])
    changed = {"zeros": np.zeros_like(samples), "one sample": samples.copy(), "swapped": samples.copy()}[damage]
    if damage == "one sample":
        changed[length + 5] += 0.01
    if damage == "swapped":
        changed[: 2 * length] = np.roll(samples[: 2 * length], length)
    changed.tofile(path)
    with caplog.at_level(logging.WARNING):
        after = corpus_of(tmp_path, rows)
    assert "changed since they were decoded; decoding again" in caplog.text
    for i in range(4):
        np.testing.assert_array_equal(after.store.clip(i), expected[i])


@pytest.mark.parametrize("harm", ["deleted", "changed"])
def test_a_finished_run_without_its_checkpoint_is_trained_again(
    tone_config: Callable[..., DictConfig], tmp_path: Path, harm: str
) -> None:
    """The sweep that finds it trains another in its place, with the same result; the old one is FAILED."""
    tracker = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist")
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    first = train(tone_config(), sweep_dir=sweep)
    path = next(p for p in (tmp_path / "mlruns").rglob(BEST_CHECKPOINT.split("/")[-1]) if first.run_id in str(p))
    kept = path.read_bytes()
    path.unlink() if harm == "deleted" else path.write_bytes(kept[:-1] + b"x")
    again = train(tone_config(), sweep_dir=sweep)
    assert again.metrics == first.metrics and again.run_id != first.run_id
    with tracker.artifact(again.run_id, BEST_CHECKPOINT) as made:
        assert made.read_bytes() == kept
    finished = [run.id for run in tracker.search(kind="train") if run.status == "FINISHED"]
    assert finished == [again.run_id]
    assert train(tone_config(), sweep_dir=sweep).run_id == again.run_id  # and now it is usable


def test_runs_whose_artifact_folder_is_away_stay_finished(
    tone_config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    """A disk that is not mounted is an error, and its runs are finished when it is back."""
    tracker = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist")
    (tmp_path / "sweep").mkdir()
    first = train(tone_config(), sweep_dir=tmp_path / "sweep")
    folder = tmp_path / "mlruns" / "artifacts"
    folder.rename(tmp_path / "away")
    with pytest.raises(RunError, match="cannot be read"):
        train(tone_config(), sweep_dir=tmp_path / "sweep")
    (tmp_path / "away").rename(folder)
    assert [run.status for run in tracker.search(kind="train")] == ["FINISHED"]
    assert train(tone_config(), sweep_dir=tmp_path / "sweep").run_id == first.run_id


@pytest.mark.slow
def test_repeating_a_sweep_repairs_a_deleted_checkpoint(tmp_path: Path) -> None:
    """The command as a person repeats it; ensemble.py then works."""
    from tests.conftest import write_tones

    root = write_tones(tmp_path / "tones")
    command = ["train.py", "data=folder", f"data.root={root}", "folds.count=2", "fold=0,1", "trainer.max_epochs=1"]
    command += ["trainer.batch_size=4", "trainer.accelerator=cpu", "-m"]
    assert run_command(tmp_path, *command).returncode == 0
    next((tmp_path / "mlruns").rglob("best.ckpt")).unlink()
    again = run_command(tmp_path, *command)
    assert again.returncode == 0, again.stderr
    assert "it is trained again" in again.stdout + again.stderr
    assert "2 of 2 runs finished" in again.stdout and "1 of them before" in again.stdout
    assert run_command(tmp_path, "ensemble.py", "run_ids=latest").returncode == 0


# --- resources


def many_channels(path: Path) -> Path:
    """A small FLAC that decodes to a gigabyte: 60 s of silence, 8 channels at 655,350 Hz."""
    with soundfile.SoundFile(path, "w", 655_350, 8, "PCM_16", format="FLAC") as file:
        for _ in range(60):
            file.write(np.zeros((655_350, 8), dtype=np.int16))
    return path


MEASURED = """
import resource, sys, json
from audio_mnist.data.decode import Limits, decode
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reasons = [decode(path, Limits(0.01, 3600.0))[2] for path in sys.argv[1:]]
print(json.dumps([reasons, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


@pytest.mark.slow
def test_small_files_that_decode_to_gigabytes_take_little_memory(tmp_path: Path) -> None:
    """The FLAC of many channels is refused; an hour at 96 kHz too; an hour at 16 kHz is read."""
    paths = [many_channels(tmp_path / "channels.flac")]
    for rate_hz in (96_000, 16_000):
        paths.append(tmp_path / f"{rate_hz}.flac")
        with soundfile.SoundFile(paths[-1], "w", rate_hz, 2, "PCM_16", format="FLAC") as file:
            for minute in range(60):
                block = np.zeros((60 * rate_hz, 2), dtype=np.int16)
                block[0, 0] = minute + 1
                file.write(block)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, paths)], capture_output=True, text=True, check=True
    )
    reasons, kilobytes = json.loads(done.stdout)
    assert "sample rate 655350 Hz, expected 1000 to 384000" in reasons[0] or "samples of 8 channels" in reasons[0]
    assert "345600000 samples of 2 channels, expected at most" in reasons[1]
    assert reasons[2] == "" and kilobytes < 1_000_000


@pytest.mark.slow
def test_predict_bounds_what_it_decodes_ahead(trained: Trained, tmp_path: Path) -> None:
    """Eight recordings of an hour, small as files: all are answered, in less than 2 GB."""
    folder = tmp_path / "long"
    folder.mkdir()
    for number in range(8):
        with soundfile.SoundFile(folder / f"{number}.flac", "w", 16_000, 1, "PCM_16", format="FLAC") as file:
            for minute in range(60):
                block = np.zeros(60 * 16_000, dtype=np.int16)
                block[::4000] = minute + number + 1
                file.write(block)
    given = [f"audio={folder}", f"output={tmp_path}/p.csv", f"tracking.uri={trained.uri}", f"model={trained.ensemble}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    with open(tmp_path / "log.txt", "wb") as log:
        command = [sys.executable, str(PROJECT / "predict.py"), *given]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, (tmp_path / "log.txt").read_text()
    assert len(pd.read_csv(tmp_path / "p.csv")) == 8
    assert usage.ru_maxrss < 2_000_000  # kB


def test_decoding_ahead_waits_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more decoded bytes wait than the limit and one recording."""
    from audio_mnist.inference import recordings

    alive: list[int] = []
    real = recordings.decode

    def counted(path: str, limits: Limits) -> tuple:
        alive.append(1)
        return real(path, limits)

    monkeypatch.setattr(recordings, "decode", counted)
    monkeypatch.setattr(recordings, "_AHEAD_BYTES", 4 * 3200 * 3)
    paths = [str(tmp_path / name) for name in write_noises(tmp_path, 12)]
    for number, _ in enumerate(recordings._decoded(paths, LIMITS)):
        time.sleep(0.02)
        assert len(alive) <= number + 1 + 3
    assert len(alive) == 12
