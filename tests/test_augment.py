"""Augmentations: what each does to a clip, when, and that its draws are each clip's own and repeat."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from audio_mnist import features
from audio_mnist.augment import Augmentation, Augmenter, Draws, Placement
from audio_mnist.config import to_plain
from audio_mnist.data.windows import middle
from audio_mnist.errors import ConfigError, DataError
from audio_mnist.training.datamodule import ShuffledBatches
from tests.conftest import composed

RATE_HZ = 8000
OFF: dict[str, Any] = to_plain(composed("augment=none"))["augment"]
MEL = {"name": "mel", "window_ms": 32.0, "hop_ms": 16.0, "n_mels": 40}


@pytest.fixture
def noise_folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, samples in (("a.wav", 3000), ("deeper/b.flac", 20_000)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, 0.1 * rng.standard_normal(samples), 16_000)
    return tmp_path


def settings_of(name: str, folder: Path) -> dict[str, Any]:
    own = OFF[name] | {"probability": 1.0}
    return own | {"folder": str(folder)} if name == "background" else own


def build(name: str, folder: Path, **change: Any) -> Any:
    own = {k: v for k, v in (settings_of(name, folder) | change).items() if k != "name"}
    return Augmentation.registry[name](RATE_HZ, **own).train()


def tone(clips: int = 4, hz: float = 440.0) -> torch.Tensor:
    t = torch.arange(RATE_HZ) / RATE_HZ
    return (torch.sin(2 * torch.pi * hz * t) * torch.exp(-2 * t)).expand(clips, 1, -1).clone()


def test_conf_lists_every_augmentation() -> None:
    """conf/augment/none.yaml has a key for each, all off."""
    assert set(OFF) == set(Augmentation.registry) | {"placement"}
    assert all(own["probability"] == 0 for key, own in OFF.items() if key != "placement")


@pytest.mark.parametrize("name", [n for n, kind in Augmentation.registry.items() if kind.domain != "pair"])
def test_augmentation_changes_each_clip_its_own_way_in_training_only(name: str, noise_folder: Path) -> None:
    """Equal clips come out finite, in their shape, and differ; in evaluation nothing changes."""
    module = build(name, noise_folder)
    x = tone(16) if module.domain == "waveform" else torch.randn(1, 1, 40, 63).expand(16, 2, 40, 63).clone()
    before = x.clone()
    torch.manual_seed(0)
    out = module(x)
    assert out.shape == x.shape and out.isfinite().all()
    assert torch.equal(x, before)  # the input is left alone
    assert len({row.numpy().tobytes() for row in out}) > 4
    assert torch.equal(module.eval()(x), x)


@pytest.mark.parametrize("name", [n for n, kind in Augmentation.registry.items() if kind.domain != "pair"])
def test_augmentation_probability_is_that_of_a_clip(name: str, noise_folder: Path) -> None:
    """With 0.5, about half of 200 clips are left as they were (fewer where a strength of none can be drawn)."""
    module = build(name, noise_folder, probability=0.5)
    x = tone(200)[:, :, :2000] if module.domain == "waveform" else torch.randn(200, 1, 40, 20)
    torch.manual_seed(0)
    same = (module(x) == x).flatten(1).all(dim=1).float().mean().item()
    assert 0.38 <= same <= 0.75


def test_shift_moves_a_clip_and_loses_what_leaves(noise_folder: Path) -> None:
    """Each ramp comes out moved by at most 100 ms, both ways, with zeros where nothing was."""
    module = build("shift", noise_folder, most_ms=100.0)
    x = torch.arange(1.0, RATE_HZ + 1).expand(200, 1, -1)
    torch.manual_seed(0)
    moved = set()
    for out in module(x)[:, 0]:
        middle = RATE_HZ // 2
        shift = int(x[0, 0, middle] - out[middle])  # samples later
        kept = x[0, 0, max(0, -shift) : RATE_HZ - max(0, shift)]
        expected = torch.nn.functional.pad(kept, (max(0, shift), max(0, -shift)))
        assert torch.equal(out, expected)
        moved.add(shift)
    most = RATE_HZ // 10
    assert min(moved) < -0.9 * most and max(moved) > 0.9 * most and max(map(abs, moved)) <= most
    assert len(moved) > 150


def test_speed_moves_the_pitch_by_its_factor(noise_folder: Path) -> None:
    """A factor of 1.25 plays 400 Hz as 500 Hz, in four fifths of the time."""
    module = build("speed", noise_folder, low=1.25, high=1.25, choices=1)
    t = torch.arange(RATE_HZ) / RATE_HZ
    out = module(torch.sin(2 * torch.pi * 400 * t).view(1, 1, -1))[0, 0]
    assert torch.fft.rfft(out).abs().argmax().item() == pytest.approx(500, abs=2)
    sounding = (out.abs() > 0.1).nonzero().flatten()
    # four fifths of a second, in the middle
    assert sounding[0].item() == pytest.approx(800, abs=30) and sounding[-1].item() == pytest.approx(7200, abs=30)


def test_speed_gives_each_clip_back_in_its_place(noise_folder: Path) -> None:
    """Forty tones of their own pitches, at three speeds: each comes out at a speed's multiple of its own."""
    module = build("speed", noise_folder, low=0.95, high=1.05, choices=3)
    pitch_hz = torch.arange(600, 3000, 60)
    t = torch.arange(RATE_HZ) / RATE_HZ
    torch.manual_seed(0)
    out = module(torch.sin(2 * torch.pi * pitch_hz[:, None] * t).unsqueeze(1))
    factors = torch.fft.rfft(out[:, 0]).abs().argmax(dim=1) / pitch_hz
    nearest = (factors * 20).round() / 20
    np.testing.assert_allclose(factors, nearest, atol=0.004)
    assert set(nearest.mul(100).round().int().tolist()) == {95, 100, 105}


def test_speed_slower_keeps_the_middle(noise_folder: Path) -> None:
    """A factor of 0.8 makes the clip longer; its ends are cut, not its middle."""
    module = build("speed", noise_folder, low=0.8, high=0.8, choices=1)
    x = torch.zeros(1, 1, RATE_HZ)
    x[0, 0, RATE_HZ // 2] = 1
    assert module(x)[0, 0].abs().argmax().item() == pytest.approx(RATE_HZ / 2, abs=3)


def test_pitch_moves_the_pitch_and_keeps_the_time(noise_folder: Path) -> None:
    """A shift of one semitone is a factor of 2^(1/12), up or down; the clip stays as long."""
    module = build("pitch", noise_folder, semitones=1)
    t = torch.arange(RATE_HZ) / RATE_HZ
    torch.manual_seed(1)
    out = module(torch.sin(2 * torch.pi * 1000 * t).expand(30, 1, -1))
    peaks = set(torch.fft.rfft(out[:, 0]).abs().argmax(dim=1).tolist())
    assert len(peaks) == 3
    np.testing.assert_allclose(sorted(peaks), [1000 / 2 ** (1 / 12), 1000, 1000 * 2 ** (1 / 12)], atol=8)
    assert (out[:, 0, -500:].square().mean(dim=1) > 0.1).all()


def test_pitch_is_that_of_torchaudio(noise_folder: Path) -> None:
    """Two semitones down and up: two tones have the power of torchaudio's in each mel band that has any."""
    module = build("pitch", noise_folder, semitones=2)
    x = tone(1, 700.0) + tone(1, 1100.0)
    mel = torchaudio.transforms.MelSpectrogram(RATE_HZ, n_fft=256, n_mels=20)
    for number in (0, 4):
        ours = middle(module.change(x, number), RATE_HZ)
        peer = torchaudio.functional.pitch_shift(x, RATE_HZ, number - 2, n_fft=256)
        ours_db, peer_db = (10 * mel(y)[0, 0].mean(dim=1).log10() for y in (ours, peer))
        strong = peer_db > peer_db.max() - 30
        np.testing.assert_allclose(ours_db[strong], peer_db[strong], atol=2.0)
        assert not np.allclose(ours_db[strong], (10 * mel(x)[0, 0].mean(dim=1).log10())[strong], atol=2.0)


@pytest.mark.parametrize("name", ["noise", "background"])
def test_noise_has_the_drawn_ratio(name: str, noise_folder: Path) -> None:
    """From 5 to 20 dB, spread over the range; a silent clip stays silent."""
    module = build(name, noise_folder, snr_low_db=5.0, snr_high_db=20.0)
    x = tone(300)
    x[0] = 0
    torch.manual_seed(0)
    added = module(x) - x
    assert added[0].abs().max() == 0
    snr_db = 10 * torch.log10(x[1:].square().sum(-1) / added[1:].square().sum(-1)).flatten()
    assert snr_db.min() > 4.99 and snr_db.max() < 20.01 and snr_db.min() < 6 and snr_db.max() > 19


def test_silent_noise_adds_nothing(noise_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of zeros has no level; the clips stay as they are."""
    module = build("noise", noise_folder)
    monkeypatch.setattr(module, "noise", lambda x, _draws: torch.zeros_like(x))
    assert torch.equal(module(tone()), tone())


@pytest.mark.parametrize(("slope", "expected_db"), [(0.0, 0.0), (1.0, -3.01), (2.0, -6.02)])
def test_noise_falls_by_its_slope(noise_folder: Path, slope: float, expected_db: float) -> None:
    """White noise has as much power in each bin an octave up, pink half, brown a quarter."""
    module = build("noise", noise_folder, slope_low=slope, slope_high=slope, snr_low_db=0.0, snr_high_db=0.0)
    x = tone(100)
    torch.manual_seed(0)
    power = torch.fft.rfft(module(x) - x).abs().square().mean(dim=(0, 1))
    octave_db = 10 * torch.log10(power[1000:2000].mean() / power[500:1000].mean()).item()
    assert octave_db == pytest.approx(expected_db, abs=0.2)


def test_background_plays_the_recordings(tmp_path: Path) -> None:
    """A recording of one constant adds a constant, wherever its piece starts and however short it is."""
    almost = 0.5 + 1e-4 * (-1.0) ** np.arange(300)  # a constant alone is silence
    soundfile.write(tmp_path / "a.wav", almost, RATE_HZ)
    module = build("background", tmp_path)
    added = module(tone(20)) - tone(20)
    torch.testing.assert_close(added, added[:, :, :1].expand_as(added), atol=1e-3, rtol=0)


def test_filter_is_smooth_and_bounded(noise_folder: Path) -> None:
    """An impulse's spectrum shows the gains: within the strength, at most one bend a band."""
    module = build("filter", noise_folder, bands=4, strength_db=6.0)
    x = torch.zeros(50, 1, RATE_HZ)
    x[:, :, 4000] = 1
    torch.manual_seed(0)
    gain_db = 20 * torch.log10(torch.fft.rfft(module(x)).abs())[:, 0]
    assert gain_db.abs().max() <= 6.01 and gain_db.std(dim=1).max() > 2
    assert gain_db.diff(dim=1).abs().max() < 0.1


@pytest.mark.parametrize("name", ["filter", "noise"])
def test_transforms_have_fast_lengths(name: str, noise_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of 7,919 samples, a prime number, is transformed as 8,000; clips keep their length and their ratio."""
    inverse, lengths = torch.fft.irfft, []

    def noted(spectrum: torch.Tensor, n: int) -> torch.Tensor:
        lengths.append(n)
        return inverse(spectrum, n=n)

    monkeypatch.setattr(torch.fft, "irfft", noted)
    change = {"snr_low_db": 10.0, "snr_high_db": 10.0} if name == "noise" else {"strength_db": 0.0}
    x = tone(4)[:, :, :7919]
    changed = build(name, noise_folder, **change)(x)
    assert lengths == [8000] and changed.shape == x.shape
    added = (changed - x).square().sum(-1)
    if name == "noise":
        assert torch.allclose(10 * torch.log10(x.square().sum(-1) / added), torch.tensor(10.0), atol=0.01)
    else:
        assert added.max() < 1e-6


def test_spec_augment_masks_with_the_mean(noise_folder: Path) -> None:
    """Whole rows or frames of each row's mean over the clip, the same in all channels, at most as wide as it says."""
    module = build("spec_augment", noise_folder, rows=0.125, frames=0.0, masks=1)
    x = torch.randn(200, 2, 40, 30)
    torch.manual_seed(0)
    out = module(x)
    hidden = (out != x).any(dim=3)  # (B, 2, F)
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    assert hidden[:, 0].sum(dim=1).max() == 5
    mean = x.mean(dim=3, keepdim=True).expand_as(x)
    torch.testing.assert_close(out[hidden], mean[hidden])


def test_mixup_blends_features_and_targets_alike() -> None:
    """Features that are their class' one-hot rows stay equal to the targets; shares differ between clips."""
    module = Augmentation.registry["mixup"](RATE_HZ, probability=1.0, alpha=0.4).train()
    targets = torch.eye(8)
    torch.manual_seed(0)
    x, y = module.blend(targets.view(8, 1, 8, 1), targets)
    torch.testing.assert_close(x.view(8, 8), y)
    torch.testing.assert_close(y.sum(dim=1), torch.ones(8))
    assert len(y.amax(dim=1).unique()) > 4
    same = (
        Augmentation.registry["mixup"](RATE_HZ, probability=0.0, alpha=0.4)
        .train()
        .blend(targets[:, None, None], targets)
    )
    assert torch.equal(same[1], targets)


def draws_of(*seed: int, clips: int = 16) -> Draws:
    return Draws(seed, clips, torch.device("cpu"))


def augmented(
    stages: Augmenter, x: torch.Tensor, y: torch.Tensor, front_end: torch.nn.Module, draws: Draws
) -> tuple[torch.Tensor, torch.Tensor]:
    return stages.blend(stages(x, front_end, draws), y, 10, draws)


def augmenter(**change: dict[str, Any]) -> Augmenter:
    return Augmenter({key: own | change.get(key, {}) for key, own in OFF.items()}, RATE_HZ).train()


def test_augmenter_repeats_by_its_seed_alone() -> None:
    """The same seed gives the same bits whatever was drawn before, another seed others; the caller's draws stay."""
    front_end = features.build(MEL, RATE_HZ)
    stages = augmenter(noise={"probability": 1.0}, spec_augment={"probability": 0.5}, mixup={"probability": 0.5})
    x, y = tone(6), torch.arange(6)
    torch.manual_seed(3)
    first = augmented(stages, x, y, front_end, draws_of(1, 2, clips=6))
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), after)
    again, other = (augmented(stages, x, y, front_end, draws_of(1, last, clips=6)) for last in (2, 3))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[1].shape == (6, 10)


@pytest.mark.parametrize("name", sorted(set(Augmentation.registry) - {"noise"}))
def test_augmentation_of_many_batches_is_that_of_each(name: str, noise_folder: Path) -> None:
    """Three batches at once, or each alone: a clip keeps its draws, and its partner in mixup is of its own batch."""
    own = settings_of(name, noise_folder) | {"probability": 0.6}
    stages, front_end = Augmenter({name: own}, RATE_HZ).train(), features.build(MEL, RATE_HZ)
    x, y = tone(18) * torch.linspace(0.5, 1, 18).view(-1, 1, 1), torch.arange(18) % 10
    order = np.random.default_rng(0).permutation(40)[:18]  # the clips' numbers in the epoch

    def compute(places: slice) -> tuple[torch.Tensor, torch.Tensor]:
        draws = Draws([7, 3], 40, torch.device("cpu")).at(order[places], batch_size=6)
        return augmented(stages, x[places], y[places], front_end, draws)

    together, apart = compute(slice(18)), [compute(slice(start, start + 6)) for start in (0, 6, 12)]
    for whole, parts in zip(together, zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-5, atol=1e-4)
    assert not torch.equal(apart[0][0], apart[2][0])


def test_only_pairs_have_partners() -> None:
    """A block of features may hold scored clips; a batch does not."""
    draws = Draws([0], 8, torch.device("cpu"))
    assert draws.at(np.array([4, 2, 7, 1]), batch_size=2).partners().tolist() == [1, 0, 3, 2]
    with pytest.raises(ValueError, match="only an augmentation of pairs has partners"):
        draws.at(np.arange(4)).partners()


def test_augmenter_keeps_what_is_the_clip_and_what_surrounds_it() -> None:
    """Filter and noise fill the window; a feature that scales a clip's own frames still has zeros around them."""
    x = torch.zeros(16, 1, RATE_HZ)
    x[..., 3000:5000] = torch.randn(16, 1, 2000, generator=torch.Generator().manual_seed(0))
    feature = {"name": "mel", "window_ms": 32.0, "hop_ms": 10.0, "n_mels": 20, "padding": "after_scaling"}
    front_end = features.build(feature, RATE_HZ)
    always = {"probability": 1.0}
    fast = OFF | {"speed": OFF["speed"] | always | {"low": 1.25, "high": 1.25, "choices": 1}}
    noisy = fast | {"filter": OFF["filter"] | always, "noise": OFF["noise"] | always}
    clean, loud = (Augmenter(settings, RATE_HZ).train()(x, front_end, draws_of(0)) for settings in (fast, noisy))
    silent = (clean == 0).all(dim=2)
    assert 0.75 < silent.float().mean() < 0.85  # 1,600 of 8,000 samples sound
    assert torch.equal((loud == 0).all(dim=2), silent)
    assert not torch.allclose(loud, clean, atol=0.1)


def test_augmenter_does_nothing_in_evaluation_or_with_all_off() -> None:
    """The front end's features and the class numbers."""
    front_end, x, y = features.build(MEL, RATE_HZ), tone(3), torch.arange(3)
    for stages in (augmenter(), augmenter(noise={"probability": 1.0}, mixup={"probability": 1.0}).eval()):
        features_, targets = augmented(stages, x, y, front_end, draws_of(0, clips=3))
        assert torch.equal(features_, front_end(x)) and torch.equal(targets, y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": {"probability": 1.5}}, r"augment\.noise\.probability=1\.5: expected 0 to 1"),
        ({"noise": {"probability": 1.0, "snr_low_db": 50.0}}, r"augment\.noise\.snr_low_db=50\.0: expected at most"),
        ({"noise": {"probability": 1.0, "slope_low": 3.0}}, r"augment\.noise\.slope_low=3\.0"),
        ({"noise": {"probability": 1.0, "loud": 3}}, r"unknown config key augment\.noise\.loud"),
        ({"noise": {"probability": "often"}}, r"augment\.noise\.probability='often': expected float"),
        ({"speed": {"probability": 1.0, "low": 1.3}}, r"augment\.speed\.low=1\.3"),
        ({"speed": {"probability": 1.0, "high": 9.0}}, r"augment\.speed\.high=9"),
        ({"speed": {"probability": 1.0, "choices": 0}}, r"augment\.speed\.choices=0"),
        ({"pitch": {"probability": 1.0, "semitones": 20}}, r"augment\.pitch\.semitones=20"),
        ({"filter": {"probability": 1.0, "bands": 1}}, r"augment\.filter\.bands=1"),
        ({"gain": {"probability": 1.0, "low_db": 20.0}}, r"augment\.gain\.low_db=20"),
        ({"spec_augment": {"probability": 1.0, "rows": 1.0}}, r"augment\.spec_augment\.rows=1"),
        ({"mixup": {"probability": 1.0, "alpha": 0.0}}, r"augment\.mixup\.alpha=0"),
        ({"background": {"probability": 1.0}}, r"augment\.background\.folder=None: expected a folder"),
    ],
)
def test_augmenter_refuses_wrong_settings(change: dict, message: str) -> None:
    """The message names the key."""
    with pytest.raises(ConfigError, match=message):
        augmenter(**change)


def test_augmenter_refuses_unknown_keys_and_folders(tmp_path: Path) -> None:
    """An augmentation that does not exist, a value for settings, folders without recordings."""
    with pytest.raises(ConfigError, match=r"expected one of background, filter"):
        Augmenter({"echo": {"probability": 1.0}}, RATE_HZ)
    with pytest.raises(ConfigError, match=r"augment\.noise=1: expected settings"):
        Augmenter({"noise": 1}, RATE_HZ)
    for folder, message in ((tmp_path, "no recordings found"), (tmp_path / "x", "no such folder")):
        with pytest.raises(DataError, match=rf"augment\.background\.folder={folder}: {message}"):
            augmenter(background={"probability": 1.0, "folder": str(folder)})
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"a\.wav: not a recording"):
        augmenter(background={"probability": 1.0, "folder": str(tmp_path)})


def test_placement_takes_copies_and_keeps_their_places() -> None:
    """Five copies a clip; redraw=false gives each copy one place for good, redraw=true a new one an epoch."""
    for redraw in (False, True):
        sampler = ShuffledBatches(np.arange(6), 10, 0, Placement(copies=5, redraw=redraw))
        epochs = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            _, rows, places, _ = (np.concatenate(part) for part in zip(*sampler, strict=True))
            assert len(sampler) == 3 and (np.bincount(rows) == 5).all()
            epochs.append((rows.tolist(), set(zip(rows.tolist(), places.tolist(), strict=True))))
        assert epochs[0][0] != epochs[1][0]  # the order is drawn again
        assert (epochs[0][1] == epochs[1][1]) is not redraw
        assert len(epochs[0][1]) == 30


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ({"copies": 0}, "copies=0"),
        ({"redraw": 1}, "redraw=1"),
        ({"shift": 1}, r"unknown config key augment\.placement\.shift"),
    ],
)
def test_placement_refuses(placement: dict, message: str) -> None:
    """The message names the key."""
    with pytest.raises(ConfigError, match=message):
        Placement.of({"placement": placement})
