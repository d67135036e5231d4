"""Recordings that libsndfile cannot read: by PyAV where it is installed, with the remedy where it is not."""

from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import soundfile

from audio_mnist.data import decode, formats
from audio_mnist.data.build_store import build_store
from audio_mnist.data.decode import Limits
from audio_mnist.errors import DataError

LIMITS = Limits(0.01, 60.0)
KINDS = {"a.m4a": ("aac", "mp4"), "b.webm": ("libopus", "webm"), "c.mp3": ("aac", "adts"), "d.aac": ("aac", "adts")}


def write_av(path: Path, codec: str, container: str, *, rate_hz: int = 48_000, seconds: float = 1.0) -> Path:
    """A tone of 440 Hz, encoded with losses."""
    x = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate_hz, layout="mono")
        frame = av.AudioFrame.from_ndarray(x[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = rate_hz
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate_hz, frame_size=size)
        for part in resampler.resample(frame) + resampler.resample(None):
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", KINDS)
def test_other_formats_are_read_as_they_sound(name: str, tmp_path: Path) -> None:
    """Also AAC in a file that is named .mp3: the pitch, the level and about the length."""
    path = write_av(tmp_path / name, *KINDS[name])
    samples, rate_hz, reason = decode.decode(str(path), LIMITS)
    assert samples is not None and reason == "" and rate_hz == 48_000
    assert abs(len(samples) / rate_hz - 1) < 0.1
    spectrum = np.abs(np.fft.rfft(samples[4000:44_000]))
    assert abs(spectrum.argmax() * rate_hz / 40_000 - 440) < 2
    assert 0.2 < np.sqrt(2 * np.mean(samples[4000:44_000] ** 2)) < 0.4
    header = decode.read_header(str(path))
    assert header is not None and header.rate_hz == 48_000
    if name not in ("c.mp3", "d.aac"):  # a bare stream does not say its length
        assert abs(header.frames / 48_000 - 1) < 0.1


def test_other_formats_have_the_same_limits(tmp_path: Path) -> None:
    path = write_av(tmp_path / "long.m4a", "aac", "mp4", seconds=8.0)
    assert "more than data.max_clip_s=2" in decode.decode(str(path), Limits(0.01, 2.0))[2]


def manifest(*paths: Path) -> pd.DataFrame:
    rows = [(path.name, str(path), "a", "", "train") for path in paths]
    return pd.DataFrame(rows, columns=["clip_id", "path", "label", "speaker", "split"])


def test_without_the_extra_files_are_grouped_by_cause_and_read_once_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_av(tmp_path / f"{n}.mp3", "aac", "adts", rate_hz=16_000) for n in range(7)]
    (tmp_path / "empty.wav").touch()
    table = manifest(*paths, tmp_path / "empty.wav")
    given = {"sample_rate_hz": None, "limits": LIMITS, "cache_dir": tmp_path / "cache"}
    monkeypatch.setattr(formats, "is_installed", lambda: False)
    with pytest.raises(DataError) as caught:
        build_store(table, on_bad_clip="error", **given)
    text = str(caught.value)
    assert "8 of 8 clips cannot be used" in text and "  7 clips: not a recording that libsndfile reads" in text
    assert formats.HINT in text and text.count(".mp3") == 5 and "and 2 more" in text
    assert f"{tmp_path / 'empty.wav'}: the file is empty" in text
    monkeypatch.undo()
    kept, store = build_store(table, on_bad_clip="skip", **given)
    assert len(kept) == 7 and store.sample_rate_hz == 16_000


def test_a_damaged_recording_stays_refused_with_the_extra(tmp_path: Path) -> None:
    """FFmpeg would conceal the damage."""
    path = tmp_path / "clip.flac"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(48_000), 16_000)
    content = bytearray(path.read_bytes())
    for at in range(2000, 2400, 10):
        content[at] ^= 0xFF
    path.write_bytes(content)
    assert "not a recording that libsndfile reads" in decode.decode(str(path), LIMITS)[2]


@pytest.mark.parametrize("text", ["#EXTM3U\n#EXTINF:1,\n{path}\n", "ffconcat version 1.0\nfile {path}\n"])
def test_playlists_open_no_other_file(text: str, tmp_path: Path) -> None:
    inner = write_av(tmp_path / "inner.m4a", "aac", "mp4")
    outer = tmp_path / "list.m4a"
    outer.write_text(text.format(path=inner))
    assert decode.decode(str(outer), LIMITS)[0] is None
    with open(outer, "rb") as file, pytest.raises(formats.UnreadableError):
        formats.decode(file, 10**9, 60.0)
