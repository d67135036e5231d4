"""Each corpus: its rows, its class names, its errors."""

import functools
import hashlib
import http.server
import json
import subprocess
import sys
import threading
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from audio_mnist.config import to_plain
from audio_mnist.data import corpora, espeak
from audio_mnist.data.corpora import fsdd, own_clips, synthetic
from audio_mnist.data.prepare import prepare
from audio_mnist.errors import ConfigError, DataError
from audio_mnist.schema import validate_train
from tests.conftest import composed, write_tones


def data(*overrides: str) -> dict:
    return to_plain(validate_train(composed(*overrides)))["data"]


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.ones(800), 8000)
    return path


def test_folder_takes_classes_and_speakers_from_names(tmp_path: Path) -> None:
    """root/CLASS/*: sorted classes, other suffixes and hidden files left alone."""
    root = write_tones(tmp_path / "tones", clips=4)
    (root / "low" / "notes.txt").write_text("not audio")
    (root / "low" / ".hidden.wav").write_text("not audio")
    corpus = corpora.load(
        data("data=folder", f"data.root={root}", r"data.settings.speaker_pattern='^(?P<speaker>s\d)'")
    )
    assert corpus.class_names == ("high", "low", "mid")
    assert len(corpus.manifest) == 12
    assert set(corpus.manifest["speaker"]) == {"s0", "s1", "s2", "s3"}
    assert set(corpus.manifest["split"]) == {"train"}


def test_folder_of_many_classes_sorts_numbers_as_numbers(tmp_path: Path) -> None:
    """200 classes named 0 to 199 are in the order of counting."""
    for number in range(200):
        touch(tmp_path / str(number) / "a.wav")
    corpus = corpora.load(data("data=folder", f"data.root={tmp_path}"))
    assert corpus.class_names == tuple(str(n) for n in range(200))


def test_the_default_window_holds_99_of_100_training_clips(tmp_path: Path) -> None:
    """98 clips of 0.2 s, one of 0.45 s, one of 2 s: the window is 0.5 s."""
    rng = np.random.default_rng(0)
    for number, seconds in enumerate([0.2] * 98 + [0.45, 2.0]):
        path = touch(tmp_path / "ab"[number % 2] / f"{number}.wav")
        soundfile.write(path, 0.1 * rng.standard_normal(round(seconds * 8000)), 8000)
    assert prepare(data("data=folder", f"data.root={tmp_path}")).clip_samples == 4000


def test_csv_takes_relative_and_absolute_paths_and_defaults(tmp_path: Path) -> None:
    """Paths are relative to the csv; speaker and split are optional, a test label too."""
    elsewhere = touch(tmp_path / "elsewhere" / "c.wav")
    table = tmp_path / "clips.csv"
    table.write_text(f"path,label,split\na.wav,yes,\nsub/b.wav, no ,train\n{elsewhere},,test\n")
    manifest = corpora.load(data("data=csv", f"data.manifest={table}")).manifest.set_index("clip_id")
    assert manifest.loc["a.wav", "path"] == str(tmp_path / "a.wav")
    assert manifest.loc["sub/b.wav", "label"] == "no"
    assert manifest.loc[str(elsewhere), "path"] == str(elsewhere)
    assert manifest["split"].tolist().count("test") == 1
    assert set(manifest["speaker"]) == {""}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.wav,x\n", "column 'path' is missing; found file, label"),
        ("path,label\na.wav,x\nb.wav,\n", r"line 3: the label of b.wav is missing"),
        ("path,label\n,x\n", "line 2: the path is empty"),
        ("path,label,split\na.wav,x,dev\n", "line 2: split is 'dev'"),
        ("path,label\n\na.wav,x\n\nb.wav,\n", "line 5: the label of b.wav is missing"),
        ("path,label\na.wav,x\na.wav,x\n", "clip a.wav is listed twice"),
        ("path,label\na.wav,x\nb.wav,x\n", "all of class 'x'; at least 2"),
        ("path,label,split\na.wav,x,\nb.wav,y,\nc.wav,z,test\n", r"classes that no training clip has: \['z'\]"),
        ("path,label,split\na.wav,x,test\n", "no training clips"),
        ("path,label\n", "lists no clips"),
        ("path,label\na.wav,x,\nb.wav,y,\n", "more values than the header"),
        ("path,label\na,b.wav,x\nc,d.wav,y\n", "more values than the header"),
        ("", "not a readable csv"),
        ('path,label\n"a.wav,x\n', "not a readable csv"),
    ],
)
def test_csv_names_the_line_that_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    """One clear error with the file, the line and the reason."""
    table = tmp_path / "clips.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=message):
        corpora.load(data("data=csv", f"data.manifest={table}"))


def test_folder_follows_links_and_counts_what_it_ignores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A class folder may be a link, also one that leads back; files of other suffixes are not silently lost."""
    root = write_tones(tmp_path / "tones", clips=2)
    (root / "low").rename(tmp_path / "elsewhere")
    (root / "low").symlink_to(tmp_path / "elsewhere")
    (root / "mid" / "loop").symlink_to(root)
    (root / "mid" / "clip.txt").write_bytes(b"x")
    corpus = corpora.load(data("data=folder", f"data.root={root}"))
    assert corpus.class_names == ("high", "low", "mid") and len(corpus.manifest) == 6
    assert "1 files do not have the suffix of a recording" in caplog.text


def test_csv_of_bytes_or_missing_is_an_error(tmp_path: Path) -> None:
    """A binary file and no file at all are named."""
    (tmp_path / "clips.csv").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="not a readable csv"):
        corpora.load(data("data=csv", f"data.manifest={tmp_path}/clips.csv"))
    with pytest.raises(DataError, match="no such file"):
        corpora.load(data("data=csv", f"data.manifest={tmp_path}/none.csv"))


def test_folder_errors_name_the_folder(tmp_path: Path) -> None:
    """No folder, an empty one, a clip beside the class folders, a wrong pattern."""
    with pytest.raises(DataError, match="no such folder"):
        corpora.load(data("data=folder", f"data.root={tmp_path}/none"))
    with pytest.raises(DataError, match="no recordings found"):
        corpora.load(data("data=folder", f"data.root={tmp_path}"))
    with pytest.raises(ConfigError, match="not a regular expression"):
        corpora.load(data("data=folder", f"data.root={tmp_path}", "data.settings.speaker_pattern='('"))
    with pytest.raises(ConfigError, match="expected a group named speaker"):
        corpora.load(data("data=folder", f"data.root={tmp_path}", "data.settings.speaker_pattern=abc"))
    touch(tmp_path / "loose.wav")
    with pytest.raises(DataError, match=r"loose.wav: a recording outside a class folder"):
        corpora.load(data("data=folder", f"data.root={tmp_path}"))


def test_folder_of_splits_is_not_taken_for_classes(tmp_path: Path) -> None:
    """root/train/CLASS and root/Test/CLASS: two classes named train and Test mean nothing."""
    for split in ("train", "Test"):
        touch(tmp_path / split / "yes" / "a.wav")
    with pytest.raises(DataError, match=r"folders are named Test, train, which are names of splits.*data=csv"):
        corpora.load(data("data=folder", f"data.root={tmp_path}"))


def test_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable class folder is an error, not an empty class."""
    root = write_tones(tmp_path / "tones", clips=2)
    real = own_clips.os.scandir

    def scandir(path):
        if str(path).endswith("mid"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(own_clips.os, "scandir", scandir)
    with pytest.raises(DataError, match=r"mid: the folder cannot be read \(Permission denied\)"):
        corpora.load(data("data=folder", f"data.root={root}"))


def make_dacon(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        (root / split).mkdir(parents=True)
        for i in range(count):
            soundfile.write(root / split / f"{i:03d}.wav", 0.1 * rng.standard_normal(4000), 20_000)
    names = [f"{i:03d}.wav" for i in range(12)]
    pd.DataFrame({"file_name": names, "label": [i % 2 for i in range(12)]}).to_csv(root / "train.csv", index=False)
    order = ["002.wav", "000.wav", "003.wav", "001.wav"]
    pd.DataFrame({"file_name": sorted(order)}).to_csv(root / "test.csv", index=False)
    pd.DataFrame({"file_name": order, "label": 0}).to_csv(root / "sample_submission.csv", index=False)
    return root


def test_dacon_has_labelled_training_and_bare_test_clips(tmp_path: Path) -> None:
    """The competition's archive as it unpacks."""
    corpus = corpora.load(data("data=dacon", f"data.root={make_dacon(tmp_path)}"))
    assert corpus.class_names == ("0", "1")
    assert corpus.manifest["split"].value_counts().to_dict() == {"train": 12, "test": 4}
    assert set(corpus.manifest.loc[corpus.manifest["split"] == "test", "label"]) == {""}
    assert corpus.manifest["path"].map(lambda p: Path(p).exists()).all()


def test_dacon_names_a_missing_table(tmp_path: Path) -> None:
    """A folder without train.csv is no such archive."""
    with pytest.raises(DataError, match=r"train.csv: no such file"):
        corpora.load(data("data=dacon", f"data.root={tmp_path}"))


@pytest.mark.parametrize("below", ["fsdd", "fsdd/recordings"])
def test_fsdd_official_split(real_data: Path, below: str) -> None:
    """Takes 0 to 4 are the 300 test clips; six speakers; from the folder or the one above."""
    manifest = corpora.load(data("data=fsdd", f"data.root={real_data / below}")).manifest
    assert manifest["split"].value_counts().to_dict() == {"train": 2700, "test": 300}
    assert manifest["speaker"].nunique() == 6
    row = manifest.set_index("clip_id").loc["7_theo_3.wav"]
    assert (row["label"], row["speaker"], row["split"]) == ("7", "theo", "test")


def test_fsdd400_draws_40_a_digit_with_a_fixed_seed(real_data: Path) -> None:
    """400 training clips, the 2,600 others are the test set, the same ones every time."""
    first, second = (corpora.load(data("data=fsdd400", f"data.root={real_data}/fsdd")).manifest for _ in range(2))
    train = first[first["split"] == "train"]
    assert train["label"].value_counts().tolist() == [40] * 10
    assert (first["split"] == "test").sum() == 2600
    pd.testing.assert_frame_equal(first, second)


def test_fsdd_digest_is_of_the_pinned_recordings(real_data: Path) -> None:
    """The checksum that a download must have is the reference copy's."""
    assert fsdd.digest(real_data / "fsdd" / "recordings") == fsdd.SHA256


def test_fsdd_downloads_once_and_refuses_other_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive is fetched, unpacked and checked; one of other recordings is refused and not kept."""
    clip = touch(tmp_path / "clip.wav")
    site = tmp_path / "site"
    site.mkdir()
    with zipfile.ZipFile(site / "fsdd.zip", "w") as file:
        file.write(clip, f"free-spoken-digit-dataset-{fsdd.COMMIT}/recordings/0_theo_9.wav")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(fsdd, "URL", f"http://127.0.0.1:{server.server_port}/fsdd.zip")
    try:
        with pytest.raises(DataError, match="checksum is"):
            fsdd.download(tmp_path / "cache")
        archive = (site / "fsdd.zip").read_bytes()
        (site / "fsdd.zip").write_text("<html>a page of the network's own</html>")
        with pytest.raises(DataError, match="could not be downloaded"):
            fsdd.download(tmp_path / "cache")
        (site / "fsdd.zip").write_bytes(archive)
        total = hashlib.sha256(f"0_theo_9.wav {hashlib.sha256(clip.read_bytes()).hexdigest()}\n".encode())
        monkeypatch.setattr(fsdd, "SHA256", total.hexdigest())
        folder = fsdd.download(tmp_path / "cache")
    finally:
        server.shutdown()
    assert not list((tmp_path / "cache").rglob("*.zip"))
    assert (folder / "0_theo_9.wav").read_bytes() == clip.read_bytes()
    assert fsdd.download(tmp_path / "cache") == folder  # the server is gone


def test_fsdd_without_a_connection_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the address and data.root."""
    monkeypatch.setattr(fsdd, "URL", "http://127.0.0.1:9/fsdd.zip")
    with pytest.raises(DataError, match=r"could not be downloaded from http://127.0.0.1:9.*data.root=FOLDER"):
        fsdd.download(tmp_path)


def test_fsdd_refuses_other_names(tmp_path: Path) -> None:
    """A file that is not DIGIT_SPEAKER_TAKE.wav is named."""
    touch(tmp_path / "seven.wav")
    with pytest.raises(DataError, match=r"seven.wav: not a name of this corpus"):
        corpora.load(data("data=fsdd", f"data.root={tmp_path}"))


@pytest.mark.parametrize("value", ["abc", "0", "41"])
def test_fsdd_refuses_a_draw_that_cannot_be(tmp_path: Path, value: str) -> None:
    """A word, none, or more clips than a digit has."""
    touch(tmp_path / "1_theo_5.wav")
    options = ("data=fsdd", f"data.root={tmp_path}", f"data.settings.train_per_class={value}")
    with pytest.raises((ConfigError, DataError), match=r"data\.settings\.train_per_class="):
        corpora.load(data(*options))


SETTINGS = {"seed": 0, "train_clips": 400, "test_clips": 200, "snr_low_db": 15.0, "snr_high_db": 40.0}
SMALL = ("data.settings.train_clips=60", "data.settings.test_clips=20")


def test_synthetic_plan_is_the_competitions_size_with_unseen_test_voices() -> None:
    """400 and 200 clips, stratified, 40 and 20 voices without a common variant."""
    clips = pd.DataFrame(espeak.plan(SETTINGS))
    train, test = (clips[clips["split"] == split] for split in ("train", "test"))
    assert (len(train), len(test)) == (400, 200)
    assert train["digit"].value_counts().tolist() == [40] * 10
    assert (train["voice"].nunique(), test["voice"].nunique()) == (40, 20)
    variants = [set(part["voice"].str.split("+").str[1]) for part in (train, test)]
    assert variants[0].isdisjoint(variants[1])


def test_synthetic_clips_do_not_depend_on_order_or_process(tmp_path: Path) -> None:
    """A corpus of other size, made by another process, has the same bytes in the clips they share."""
    folders = []
    for count in (20, 40):
        settings = SETTINGS | {"train_clips": count, "test_clips": 10}
        folders.append(tmp_path / str(count))
        command = [sys.executable, "-m", "audio_mnist.data.espeak", json.dumps(settings), str(folders[-1])]
        subprocess.run(command, check=True)
    shared = sorted(p.relative_to(folders[0]) for p in folders[0].rglob("*.wav"))
    assert len(shared) == 30
    for name in shared:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_synthetic_clips_are_speech_of_20_khz() -> None:
    """Every clip has sound, at the competition's rate, shorter than 1.5 s."""
    corpus = corpora.load(data("data=synthetic", *SMALL))
    assert corpus.class_names == tuple("0123456789")
    for path in corpus.manifest["path"]:
        samples, rate_hz = soundfile.read(path)
        assert rate_hz == 20_000 and 0.2 < len(samples) / rate_hz < 1.5
        assert 0.05 < np.abs(samples).max() <= 1


def test_synthetic_refuses_wrong_settings_and_a_missing_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown and impossible settings are named; without the wheel the message says how to get it."""
    with pytest.raises(ConfigError, match=r"data.settings.train_clips=45"):
        corpora.load(data("data=synthetic", "data.settings.train_clips=45"))
    with pytest.raises(ConfigError, match=r"unknown config key data.settings.voices"):
        corpora.load(data("data=synthetic", "+data.settings.voices=3"))

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(synthetic, "version", absent)
    with pytest.raises(DataError, match=r"pip install"):
        corpora.load(data("data=synthetic"))


@pytest.mark.parametrize("voice", ["en-US+nobody", "xx-nowhere+f1"])
def test_synthetic_voice_that_is_not_there_is_an_error(voice: str) -> None:
    """An unknown voice does not silently keep the one before."""
    code = (
        "from audio_mnist.data.espeak import Voice\n"
        f"Voice().say('one', voice='{voice}', rate_wpm=150, pitch=50, pitch_range=50, seed=0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and f"eSpeak NG has no voice {voice}" in done.stderr
