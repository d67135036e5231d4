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
PCEN = MEL | {"name": "pcen", "smoothing_ms": 400.0, "gain": 0.98, "bias": 2.0, "power": 0.5}
GAMMATONE = {"name": "gammatone", "n_filters": 40, "window_ms": 64.0, "hop_ms": 16.0, "normalize": "none"}
SPECTROGRAM = {"name": "spectrogram", "n_bins": 40, "window_ms": 64.0, "hop_ms": 16.0, "normalize": "none"}
ALL = [MEL, MFCC, PCEN, GAMMATONE, SPECTROGRAM]
NAMES = [str(settings["name"]) for settings in ALL]
RATE_HZ = 8000


def real_clips(folder: Path, count: int = 40) -> list[np.ndarray]:
    paths = sorted((folder / "fsdd" / "recordings").glob("*.wav"))
    return [soundfile.read(path, dtype="float32")[0] for path in paths[:: len(paths) // count]]


def reference_db(clip: np.ndarray, n_mels: int) -> np.ndarray:
    power = librosa.feature.melspectrogram(
        y=clip.astype(np.float64), sr=RATE_HZ, n_fft=512, hop_length=128, win_length=512, n_mels=n_mels
    )
    return librosa.power_to_db(power, ref=np.max, amin=1e-30, top_db=80)


@pytest.mark.parametrize(
    ("name", "rate_hz"),  # the original's 128 bands need its rate
    [*((name, rate) for name in ("mel", "mfcc", "mel_original") for rate in (8000, 20_000)), ("mfcc_original", 20_000)],
)
def test_shipped_settings_equal_librosa(name: str, rate_hz: int) -> None:
    """The features of conf/, at two sample rates, on a decaying noisy tone: within 0.05 dB."""
    settings = to_plain(composed(f"feature={name}"))["feature"] | {"normalize": "none", "padding": "silence"}
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
    theirs = librosa.power_to_db(power, ref=np.max, amin=1e-30, top_db=settings["top_db"])
    if settings["name"] == "mfcc":
        theirs = librosa.feature.mfcc(S=theirs, n_mfcc=settings["n_mfcc"])
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


@pytest.mark.parametrize("settings", ALL, ids=NAMES)
@pytest.mark.parametrize("padding", features.PADDINGS)
@pytest.mark.parametrize("normalize", features.NORMALIZATIONS)
def test_front_end_batch_equals_its_clips_alone(settings: dict, padding: str, normalize: str) -> None:
    """A quiet clip beside a loud one has the features that it has alone."""
    front_end = features.build(settings | {"normalize": normalize, "padding": padding}, RATE_HZ)
    clips = torch.randn(4, 1, 4000, generator=torch.Generator().manual_seed(0))
    clips *= torch.tensor([1.0, 1e-3, 10.0, 1e-5]).view(-1, 1, 1)
    together = front_end(clips)
    alone = torch.cat([front_end(clip[None]) for clip in clips])
    assert together.std() > 0.01
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=0)


@pytest.mark.parametrize("settings", ALL, ids=NAMES)
@pytest.mark.parametrize("samples", [1, 7, 200, 4000, 20_000])
def test_front_end_takes_any_length(settings: dict, samples: int) -> None:
    """Shorter than a window or far longer: 1 + T // hop finite frames of 40."""
    out = features.build(settings, RATE_HZ)(torch.randn(2, 1, samples))
    assert out.shape == (2, 1, 40, 1 + samples // 128)
    assert out.isfinite().all()


@pytest.mark.parametrize("settings", ALL, ids=NAMES)
@pytest.mark.parametrize("padding", features.PADDINGS)
@pytest.mark.parametrize("normalize", features.NORMALIZATIONS)
def test_front_end_of_silence_is_finite(settings: dict, padding: str, normalize: str) -> None:
    """Zeros give no NaN."""
    front_end = features.build(settings | {"normalize": normalize, "padding": padding}, RATE_HZ)
    out = front_end(torch.zeros(1, 1, 4000))
    assert out.isfinite().all()


def test_logmel_does_not_depend_on_gain() -> None:
    """60 dB quieter, the same features."""
    clip = torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0))
    front_end = features.build(MEL, RATE_HZ)
    torch.testing.assert_close(front_end(clip), front_end(clip / 1000), atol=1e-3, rtol=0)


@pytest.mark.parametrize("padding", ["before_scaling", "after_scaling"])
@pytest.mark.parametrize("name", ["mel", "mfcc"])
def test_padding_equals_a_padded_feature(name: str, padding: str) -> None:
    """A clip placed on a frame of its window: the features of the clip alone, scaled and padded in that order."""
    settings = (MEL if name == "mel" else MFCC) | {"normalize": "minmax", "padding": padding}
    clip = 0.1 + torch.rand(1, 1, 1500, generator=torch.Generator().manual_seed(0))
    start, hop = 10 * 128, 128
    window = torch.nn.functional.pad(clip, (start, 8000 - start - 1500))
    alone = features.build(settings | {"normalize": "none", "padding": "silence"}, RATE_HZ)(clip)[0, 0].numpy()
    pad = ((0, 0), (10, 1 + 8000 // hop - 10 - alone.shape[1]))
    if padding == "after_scaling":
        expected = np.pad((alone - alone.min()) / (alone.max() - alone.min()), pad)
    else:
        expected = np.pad(alone, pad)
        expected = (expected - expected.min()) / (expected.max() - expected.min())
    ours = features.build(settings, RATE_HZ)(window)[0, 0].numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("normalize", ["standard", "band"])
def test_standardising_counts_the_clips_own_frames(normalize: str) -> None:
    """after_scaling: mean 0 and sd 1 over the clip's frames alone, whatever surrounds it."""
    settings = MEL | {"normalize": normalize, "padding": "after_scaling"}
    clip = torch.randn(1, 1, 1280, generator=torch.Generator().manual_seed(0))
    out = features.build(settings, RATE_HZ)(torch.nn.functional.pad(clip, (1280, 4000)))[0, 0]
    inside = out[:, 10:21]
    assert out[:, :10].abs().max() == 0 and out[:, 21:].abs().max() == 0
    axis = (0, 1) if normalize == "standard" else (1,)
    np.testing.assert_allclose(inside.numpy().mean(axis=axis), 0, atol=1e-5)
    np.testing.assert_allclose(inside.numpy().std(axis=axis), 1, atol=1e-4)


def test_deltas_equal_librosa() -> None:
    """Away from the edges, where librosa fits and torchaudio repeats the last frame."""
    waveform = torch.randn(1, 1, 8000, generator=torch.Generator().manual_seed(0))
    front_end = features.build(MEL | {"deltas": 2}, RATE_HZ)
    out = front_end(waveform)[0].numpy()
    assert front_end.channels == 3 and out.shape == (3, 40, 63)
    expected = librosa.feature.delta(out[0], width=5)
    np.testing.assert_allclose(out[1][:, 2:-2], expected[:, 2:-2], atol=1e-4)
    expected = librosa.feature.delta(out[1], width=5)
    np.testing.assert_allclose(out[2][:, 2:-2], expected[:, 2:-2], atol=1e-4)


def test_pcen_equals_librosa() -> None:
    """On a decaying noisy tone, the recent mean started at the first frame."""
    rng = np.random.default_rng(0)
    t = np.arange(RATE_HZ) / RATE_HZ
    clip = np.exp(-3 * t) * np.sin(2 * np.pi * 440 * t) + 0.05 * rng.standard_normal(RATE_HZ)
    power = librosa.feature.melspectrogram(y=clip, sr=RATE_HZ, n_fft=512, hop_length=128, win_length=512, n_mels=40)
    power /= power.max()
    kept = {"gain": 0.98, "bias": 2.0, "power": 0.5}
    started = (1 - _smoothing(0.4)) * power[:, :1]  # lfilter's state that gives the first frame back
    expected = librosa.pcen(power, sr=RATE_HZ, hop_length=128, time_constant=0.4, eps=1e-8, zi=started, **kept)
    ours = features.build(PCEN, RATE_HZ)(torch.from_numpy(clip).float().view(1, 1, -1))[0, 0].numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def _smoothing(seconds: float) -> float:
    frames = seconds * RATE_HZ / 128
    return (np.sqrt(1 + 4 * frames**2) - 1) / (2 * frames**2)


def test_spectrogram_bands_are_means_of_bins() -> None:
    """Against scipy-free arithmetic: numpy's FFT of one frame."""
    front_end = features.build(SPECTROGRAM | {"n_bins": 64, "top_db": 200.0}, RATE_HZ)
    waveform = torch.randn(1, 1, 2048, generator=torch.Generator().manual_seed(0))
    out = front_end(waveform)[0, 0].numpy()
    frame = waveform[0, 0].numpy()[8 * 128 - 256 : 8 * 128 + 256] * np.hanning(513)[:512]
    power = np.abs(np.fft.rfft(frame)) ** 2
    bands = [power[4 * k : 4 * k + 4].mean() for k in range(63)] + [power[252:257].mean()]
    relative = 10 * np.log10(bands)
    np.testing.assert_allclose(out[:, 8] - out[0, 8], relative - relative[0], atol=1e-2)


def test_gammatone_filters_are_the_ears() -> None:
    """A filter peaks at its centre, falls to half of its power at 0.887 of its rectangle's width, and bands widen."""
    front_end = features.build(GAMMATONE | {"window_ms": 512.0}, RATE_HZ)
    response, hz = front_end.filters.numpy(), np.linspace(0, RATE_HZ / 2, front_end.filters.shape[0])
    peaks = hz[response.argmax(axis=0)]
    assert (np.diff(peaks) > 0).all()
    widths = [np.ptp(hz[band >= band.max() / 2]) for band in response.T]
    erb = 24.7 * (4.37 * peaks / 1000 + 1)
    np.testing.assert_allclose(widths, 0.887 * erb, atol=5)


def test_minmax_spans_zero_to_one() -> None:
    """The clip's least value is 0, its greatest 1."""
    out = features.build(MEL | {"normalize": "minmax"}, RATE_HZ)(torch.randn(3, 1, 4000))
    assert out.amin(dim=(1, 2, 3)).tolist() == [0, 0, 0]
    torch.testing.assert_close(out.amax(dim=(1, 2, 3)), torch.ones(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "mell"}, "feature.name=mell: expected one of gammatone, mel, mfcc, .*onnx_encoder, pcen"),
        ({"bands": 40}, "unknown config key feature.bands"),
        ({"n_mels": "many"}, "feature.n_mels='many': expected int"),
        ({"n_mels": 0}, "feature.n_mels=0: expected 1 to 1024"),
        ({"n_mels": 400}, "lower n_mels or raise feature.window_ms"),
        ({"hop_ms": 0.0}, "feature.hop_ms=0.0: expected 0.125"),
        ({"window_ms": 0.1}, "feature.window_ms=0.1"),
        ({"f_max_hz": 5000.0}, "at most half the sample rate"),
        ({"f_min_hz": 4500.0}, "feature.f_min_hz=4500.0"),
        ({"normalize": "l2"}, "feature.normalize=l2: expected one of none, minmax"),
        ({"top_db": 0}, "feature.top_db=0"),
        ({"padding": "zeros"}, "feature.padding=zeros: expected one of silence, before_scaling"),
        ({"deltas": 3}, "feature.deltas=3: expected 0, 1 or 2"),
        (PCEN | {"gain": 2.0}, "feature.gain=2.0"),
        (PCEN | {"smoothing_ms": 0}, "feature.smoothing_ms=0"),
        (PCEN | {"bias": 0}, "feature.bias=0"),
        (PCEN | {"power": 0}, "feature.power=0"),
    ],
)
def test_build_refuses_wrong_settings(change: dict, message: str) -> None:
    """The message names the key."""
    with pytest.raises(ConfigError, match=message):
        features.build(MEL | change, RATE_HZ)


def test_build_refuses_filters_that_do_not_fit() -> None:
    """Too few filters, or more bands than the spectrum has bins."""
    with pytest.raises(ConfigError, match=r"feature\.n_filters=1: expected 2 to 1024"):
        features.build(GAMMATONE | {"n_filters": 1}, RATE_HZ)
    with pytest.raises(ConfigError, match=r"feature\.n_bins=0"):
        features.build(SPECTROGRAM | {"n_bins": 0}, RATE_HZ)
    with pytest.raises(ConfigError, match=r"feature\.n_bins=300: more bands than the spectrum has bins"):
        features.build(SPECTROGRAM | {"n_bins": 300}, RATE_HZ)


def test_build_names_what_is_missing() -> None:
    """A feature without its number of coefficients is refused by name."""
    with pytest.raises(ConfigError, match=r"feature\.n_mfcc is not set"):
        features.build({k: v for k, v in MFCC.items() if k != "n_mfcc"}, RATE_HZ)
    with pytest.raises(ConfigError, match=r"feature\.n_mfcc=65"):
        features.build(MFCC | {"n_mfcc": 65}, RATE_HZ)
