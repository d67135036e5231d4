"""Front ends against librosa, and clip by clip."""

from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch

from audio_mnist import features
from audio_mnist.config import to_plain
from audio_mnist.errors import ConfigError
from tests.conftest import composed

MEL = {"name": "mel", "window_ms": 64.0, "hop_ms": 16.0, "n_mels": 40, "normalize": "none"}
MFCC = {"name": "mfcc", "n_mfcc": 40, "window_ms": 64.0, "hop_ms": 16.0, "n_mels": 64, "normalize": "none"}
RATE_HZ = 8000


def real_clips(folder: Path, count: int = 40) -> list[np.ndarray]:
    paths = sorted((folder / "fsdd" / "recordings").glob("*.wav"))
    return [soundfile.read(path, dtype="float32")[0] for path in paths[:: len(paths) // count]]


def reference_db(clip: np.ndarray, n_mels: int) -> np.ndarray:
    power = librosa.feature.melspectrogram(
        y=clip.astype(np.float64), sr=RATE_HZ, n_fft=512, hop_length=128, win_length=512, n_mels=n_mels
    )
    return librosa.power_to_db(power, ref=np.max, amin=1e-30, top_db=80)


@pytest.mark.parametrize("rate_hz", [8000, 20_000])
@pytest.mark.parametrize("name", ["mel", "mfcc"])
def test_shipped_settings_equal_librosa(name: str, rate_hz: int) -> None:
    """The features of conf/, at two sample rates, on a decaying noisy tone: within 0.05 dB."""
    settings = to_plain(composed(f"feature={name}"))["feature"] | {"normalize": "none"}
    rng = np.random.default_rng(0)
    t = np.arange(rate_hz) / rate_hz
    clip = np.exp(-5 * t) * (np.sin(2 * np.pi * 440 * t) + 0.1 * rng.standard_normal(rate_hz))
    window = round(rate_hz * settings["window_ms"] / 1000)
    power = librosa.feature.melspectrogram(
        y=clip,
        sr=rate_hz,
        n_fft=2 ** int(np.ceil(np.log2(window))),
        win_length=window,
        hop_length=round(rate_hz * settings["hop_ms"] / 1000),
        n_mels=settings["n_mels"],
    )
    theirs = librosa.power_to_db(power, ref=np.max, amin=1e-30, top_db=80)
    if name == "mfcc":
        theirs = librosa.feature.mfcc(S=theirs, n_mfcc=40)
    ours = features.build(settings, rate_hz)(torch.from_numpy(clip).float().view(1, 1, -1))[0, 0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=0.05)


def test_logmel_equals_librosa_on_real_clips(real_data: Path) -> None:
    """Within 0.05 dB, wherever a band is within 80 dB of the clip's maximum."""
    front_end = features.build(MEL, RATE_HZ)
    worst = 0.0
    for clip in real_clips(real_data):
        ours = front_end(torch.from_numpy(clip).view(1, 1, -1))[0, 0].numpy()
        theirs = reference_db(clip, 40)
        assert ours.shape == theirs.shape
        worst = max(worst, float(np.abs(ours - theirs).max()))
    assert worst < 0.05


def test_mfcc_equals_librosa_on_real_clips(real_data: Path) -> None:
    """Within 0.05 of the orthonormal DCT of librosa's dB."""
    front_end = features.build(MFCC, RATE_HZ)
    worst = 0.0
    for clip in real_clips(real_data):
        ours = front_end(torch.from_numpy(clip).view(1, 1, -1))[0, 0].numpy()
        theirs = librosa.feature.mfcc(S=reference_db(clip, 64), n_mfcc=40)
        worst = max(worst, float(np.abs(ours - theirs).max()))
    assert worst < 0.05


@pytest.mark.parametrize("settings", [MEL, MFCC], ids=["mel", "mfcc"])
@pytest.mark.parametrize("normalize", features.NORMALIZATIONS)
def test_front_end_batch_equals_its_clips_alone(settings: dict, normalize: str) -> None:
    """A quiet clip beside a loud one has the features that it has alone."""
    front_end = features.build(settings | {"normalize": normalize}, RATE_HZ)
    clips = torch.randn(4, 1, 4000, generator=torch.Generator().manual_seed(0))
    clips *= torch.tensor([1.0, 1e-3, 10.0, 1e-5]).view(-1, 1, 1)
    together = front_end(clips)
    alone = torch.cat([front_end(clip[None]) for clip in clips])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=0)


@pytest.mark.parametrize("settings", [MEL, MFCC], ids=["mel", "mfcc"])
@pytest.mark.parametrize("samples", [1, 7, 200, 4000, 20_000])
def test_front_end_takes_any_length(settings: dict, samples: int) -> None:
    """Shorter than a window or far longer: 1 + T // hop finite frames of 40."""
    out = features.build(settings, RATE_HZ)(torch.randn(2, 1, samples))
    assert out.shape == (2, 1, 40, 1 + samples // 128)
    assert out.isfinite().all()


@pytest.mark.parametrize("normalize", features.NORMALIZATIONS)
def test_front_end_of_silence_is_finite(normalize: str) -> None:
    """Zeros give no NaN."""
    out = features.build(MEL | {"normalize": normalize}, RATE_HZ)(torch.zeros(1, 1, 4000))
    assert out.isfinite().all()


def test_logmel_does_not_depend_on_gain() -> None:
    """60 dB quieter, the same features."""
    clip = torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0))
    front_end = features.build(MEL, RATE_HZ)
    torch.testing.assert_close(front_end(clip), front_end(clip / 1000), atol=1e-3, rtol=0)


def test_minmax_spans_zero_to_one() -> None:
    """The clip's least value is 0, its greatest 1."""
    out = features.build(MEL | {"normalize": "minmax"}, RATE_HZ)(torch.randn(3, 1, 4000))
    assert out.amin(dim=(1, 2, 3)).tolist() == [0, 0, 0]
    torch.testing.assert_close(out.amax(dim=(1, 2, 3)), torch.ones(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "mell"}, "feature.name=mell: expected one of mel, mfcc"),
        ({"bands": 40}, "unknown config key feature.bands"),
        ({"n_mels": "many"}, "feature.n_mels='many': expected int"),
        ({"n_mels": 0}, "feature.n_mels=0: expected 1 or more"),
        ({"n_mels": 400}, "lower n_mels or raise feature.window_ms"),
        ({"hop_ms": 0.0}, "feature.hop_ms=0.0: expected at least"),
        ({"window_ms": 0.1}, "feature.window_ms=0.1"),
        ({"f_max_hz": 5000.0}, "at most half the sample rate"),
        ({"f_min_hz": 4500.0}, "feature.f_min_hz=4500.0"),
        ({"normalize": "l2"}, "feature.normalize=l2: expected one of none, minmax"),
        ({"top_db": 0}, "feature.top_db=0"),
    ],
)
def test_build_refuses_wrong_settings(change: dict, message: str) -> None:
    """The message names the key."""
    with pytest.raises(ConfigError, match=message):
        features.build(MEL | change, RATE_HZ)


def test_build_names_what_is_missing() -> None:
    """A feature without its number of coefficients is refused by name."""
    with pytest.raises(ConfigError, match=r"feature\.n_mfcc is not set"):
        features.build({k: v for k, v in MFCC.items() if k != "n_mfcc"}, RATE_HZ)
    with pytest.raises(ConfigError, match=r"feature\.n_mfcc=65"):
        features.build(MFCC | {"n_mfcc": 65}, RATE_HZ)
