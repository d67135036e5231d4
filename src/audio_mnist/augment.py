"""Augmentations of training batches, on the device: waveforms (B, 1, T), features (B, C, F, N) and targets.

Each is an `nn.Module` that does something in training mode only, draws for every clip of the
batch by itself, and takes its draws from torch's global generators, which `Augmenter` seeds for
every batch. A new one is a subclass with a `name`, and a key of that name in `conf/augment/`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn
from torchaudio.functional import add_noise, mask_along_axis_iid

from audio_mnist.config import construct
from audio_mnist.errors import ConfigError
from audio_mnist.waveforms import decode_folder


@dataclass(frozen=True)
class Placement:
    """Where the loader places a training clip in its window.

    Attributes:
        copies: times that an epoch takes each clip, each at a place of its own.
        redraw: new places every epoch; else they are drawn once.
    """

    copies: int = 1
    redraw: bool = True

    @classmethod
    def of(cls, augment: dict[str, Any]) -> "Placement":
        """From the settings of `conf/augment/`, key `placement`.

        Raises:
            ConfigError: an unknown key, or a value out of range.
        """
        settings = {"copies": 1, "redraw": True} | (augment.get("placement") or {})
        copies, redraw = settings.pop("copies"), settings.pop("redraw")
        if settings:
            raise ConfigError(f"unknown config key augment.placement.{min(settings)}; it has copies, redraw")
        if not isinstance(copies, int) or isinstance(copies, bool) or copies < 1:
            raise ConfigError(f"augment.placement.copies={copies}: expected 1 or more")
        if not isinstance(redraw, bool):
            raise ConfigError(f"augment.placement.redraw={redraw}: expected true or false")
        return cls(copies, redraw)


class Augmentation(nn.Module):
    """Base of every augmentation.

    Attributes:
        name: its key in the config.
        domain: what it takes: "waveform" (B, 1, T) or "feature" (B, C, F, N).

    Args:
        sample_rate_hz: of the waveforms.
        probability: that a clip is changed.

    Raises:
        ConfigError: an argument is out of range.
    """

    name: ClassVar[str]
    domain: ClassVar[str] = "waveform"
    registry: ClassVar[dict[str, type["Augmentation"]]] = {}

    def __init_subclass__(cls) -> None:
        if "name" in cls.__dict__:
            Augmentation.registry[cls.name] = cls

    def __init__(self, sample_rate_hz: int, *, probability: float) -> None:
        super().__init__()
        self.sample_rate_hz, self.probability = sample_rate_hz, probability
        self.check(0 <= probability <= 1, "probability", probability, "0 to 1")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        rows = (torch.rand(len(x), device=x.device) < self.probability).nonzero().squeeze(1)
        return x.index_copy(0, rows, self.augment(x[rows])) if len(rows) else x

    def augment(self, x: Tensor) -> Tensor:
        """All clips of `x`, changed, in the same shape."""
        raise NotImplementedError

    def check(self, fine: bool, key: str, got: object, expected: str) -> None:
        """Raises a `ConfigError` of this augmentation's key."""
        if not fine:
            raise ConfigError(f"augment.{self.name}.{key}={got}: expected {expected}")


class _Grouped(Augmentation):
    """Draws one of a few strengths for each clip, and computes all clips of one strength together."""

    def __init__(self, sample_rate_hz: int, strengths: list[float], neutral: float, **base) -> None:
        super().__init__(sample_rate_hz, **base)
        self.strengths, self.neutral = strengths, neutral

    def augment(self, x: Tensor) -> Tensor:
        drawn = torch.randint(len(self.strengths), (len(x),), device=x.device)
        changed = x.clone()
        for number in drawn.unique().tolist():
            if self.strengths[number] != self.neutral:
                rows = (drawn == number).nonzero().squeeze(1)
                changed[rows] = _middle(self.change(x[rows], number), x.shape[-1])
        return changed

    def change(self, x: Tensor, number: int) -> Tensor:
        """(b, 1, T) clips at strength `number` -> (b, 1, any length)."""
        raise NotImplementedError


class Speed(_Grouped):
    """Plays each clip faster or slower, pitch and formants with it, about the window's centre.

    Args:
        low: slowest factor, above 0.
        high: fastest factor.
        choices: factors from `low` to `high`, evenly spaced, drawn uniformly.
        others: of `Augmentation`.

    Raises:
        ConfigError: an argument is out of range.

    Source: Ko et al., "Audio augmentation for speech recognition", 2015, with
    `torchaudio.transforms.Resample`.
    """

    name = "speed"

    def __init__(self, sample_rate_hz: int, *, low: float, high: float, choices: int, **base) -> None:
        # hundredths keep the resampling ratio, and so the filter, small
        factors = [round(float(f), 2) for f in np.linspace(low, high, max(1, choices))]
        super().__init__(sample_rate_hz, factors, 1.0, **base)
        self.check(0.25 <= low <= high, "low", low, f"0.25 to augment.speed.high ({high:g})")
        self.check(high <= 4, "high", high, "at most 4")
        self.check(choices >= 1, "choices", choices, "1 or more")
        self.resample = nn.ModuleList(torchaudio.transforms.Resample(round(100 * f), 100) for f in factors)

    def change(self, x: Tensor, number: int) -> Tensor:
        return self.resample[number](x)


class Pitch(_Grouped):
    """Moves each clip's pitch, and its formants with it, at its own pace.

    Args:
        semitones: furthest shift, up or down; whole semitones are drawn.
        others: of `Augmentation`.

    Raises:
        ConfigError: an argument is out of range.

    Source: `torchaudio.functional.pitch_shift` (phase vocoder).
    """

    name = "pitch"

    def __init__(self, sample_rate_hz: int, *, semitones: int, **base) -> None:
        super().__init__(sample_rate_hz, [float(s) for s in range(-semitones, semitones + 1)], 0.0, **base)
        self.check(1 <= semitones <= 12, "semitones", semitones, "1 to 12")
        self.n_fft = 2 ** round(math.log2(0.032 * sample_rate_hz))  # 32 ms, usual for speech

    def change(self, x: Tensor, number: int) -> Tensor:
        steps = int(self.strengths[number])
        return torchaudio.functional.pitch_shift(x, self.sample_rate_hz, steps, n_fft=self.n_fft)


class Gain(Augmentation):
    """Makes each clip louder or quieter.

    Args:
        low_db: least gain.
        high_db: greatest gain, drawn uniformly between.
        others: of `Augmentation`.

    Raises:
        ConfigError: an argument is out of range.
    """

    name = "gain"

    def __init__(self, sample_rate_hz: int, *, low_db: float, high_db: float, **base) -> None:
        super().__init__(sample_rate_hz, **base)
        self.check(low_db <= high_db, "low_db", low_db, f"at most augment.gain.high_db ({high_db:g})")
        self.range_db = low_db, high_db

    def augment(self, x: Tensor) -> Tensor:
        return x * 10 ** (_uniform(*self.range_db, (len(x), 1, 1), x) / 20)


class Filter(Augmentation):
    """Colours each clip as another microphone or room would: a smooth random gain over frequency.

    Args:
        bands: points evenly spaced on the mel scale; the gain is linear in dB between.
        strength_db: the gain at each is uniform in plus or minus this.
        others: of `Augmentation`.

    Raises:
        ConfigError: an argument is out of range.

    Source: the linear type of Nam et al., "FilterAugment", 2022. Deviation: it
    is applied to the spectrum of the whole window.
    """

    name = "filter"

    def __init__(self, sample_rate_hz: int, *, bands: int, strength_db: float, **base) -> None:
        super().__init__(sample_rate_hz, **base)
        self.check(bands >= 2, "bands", bands, "2 or more")
        self.check(strength_db >= 0, "strength_db", strength_db, "0 or more")
        self.bands, self.strength_db = bands, strength_db

    def augment(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x)  # (B, 1, T / 2 + 1)
        drawn_db = _uniform(-self.strength_db, self.strength_db, (len(x), self.bands), x)
        bins_hz = torch.linspace(0, self.sample_rate_hz / 2, spectrum.shape[-1], device=x.device)
        place = torch.log1p(bins_hz / 700) / math.log1p(self.sample_rate_hz / 1400) * (self.bands - 1)
        below = place.long().clamp_max(self.bands - 2)
        gain_db = drawn_db[:, below].lerp(drawn_db[:, below + 1], place - below)  # (B, T / 2 + 1)
        return torch.fft.irfft(spectrum * (10 ** (gain_db / 20)).unsqueeze(1), n=x.shape[-1])


class _Additive(Augmentation):
    """Adds noise at a signal to noise ratio that is uniform in dB and taken over the whole window."""

    def __init__(self, sample_rate_hz: int, *, snr_low_db: float, snr_high_db: float, **base) -> None:
        super().__init__(sample_rate_hz, **base)
        high = f"at most augment.{self.name}.snr_high_db ({snr_high_db:g})"
        self.check(snr_low_db <= snr_high_db, "snr_low_db", snr_low_db, high)
        self.snr_db = snr_low_db, snr_high_db

    def augment(self, x: Tensor) -> Tensor:
        noise = self.noise(x)
        # a silent piece of noise, or a silent clip, has no ratio
        audible = noise.any(dim=-1, keepdim=True) & x.any(dim=-1, keepdim=True)
        return torch.where(audible, add_noise(x, noise, _uniform(*self.snr_db, (len(x), 1), x)), x)

    def noise(self, x: Tensor) -> Tensor:
        """Noise in the shape of `x`, at any level."""
        raise NotImplementedError


class Noise(_Additive):
    """Adds Gaussian noise whose spectrum falls with frequency at a slope of each clip's own.

    Args:
        slope_low: least exponent a of the power spectrum 1/f^a: 0 is white, 1 pink, 2 brown.
        slope_high: greatest exponent, drawn uniformly between.
        snr_low_db: loudest noise; signal to noise ratio over the whole window.
        snr_high_db: quietest noise, drawn uniformly between.
        others: of `Augmentation`.

    Raises:
        ConfigError: an argument is out of range.
    """

    name = "noise"

    def __init__(self, sample_rate_hz: int, *, slope_low: float, slope_high: float, **additive) -> None:
        super().__init__(sample_rate_hz, **additive)
        high = f"at most augment.noise.slope_high ({slope_high:g})"
        self.check(slope_low <= slope_high, "slope_low", slope_low, high)
        self.slope = slope_low, slope_high

    def noise(self, x: Tensor) -> Tensor:
        frequency = torch.arange(x.shape[-1] // 2 + 1, device=x.device).clamp_min(1)
        spectrum = torch.randn(len(x), 1, len(frequency), dtype=torch.complex64, device=x.device)
        slope = _uniform(*self.slope, (len(x), 1, 1), x)
        return torch.fft.irfft(spectrum * frequency ** (-slope / 2), n=x.shape[-1])


class Background(_Additive):
    """Adds a random piece of recorded noise.

    Args:
        folder: of recordings (wav, flac, ogg, mp3), at any depth.
        snr_low_db: loudest noise; signal to noise ratio over the whole window.
        snr_high_db: quietest noise, drawn uniformly between.
        others: of `Augmentation`.

    Raises:
        ConfigError: an argument is out of range, or no folder is given.
        DataError: the folder has no recording, or one that cannot be read.
    """

    name = "background"

    def __init__(self, sample_rate_hz: int, *, folder: str | None, **additive) -> None:
        super().__init__(sample_rate_hz, **additive)
        self.check(folder is not None, "folder", folder, "a folder of recorded noise, or its probability 0")
        recordings = decode_folder(Path(str(folder)), sample_rate_hz, key="augment.background.folder")
        ends = np.cumsum([len(recording) for recording in recordings])
        self.samples: Tensor  # (total,), recording after recording
        self.starts: Tensor  # (recordings + 1,)
        self.register_buffer("samples", torch.from_numpy(np.concatenate(recordings)), persistent=False)
        self.register_buffer("starts", torch.from_numpy(np.concatenate([[0], ends])), persistent=False)

    def noise(self, x: Tensor) -> Tensor:
        which = torch.randint(len(self.starts) - 1, (len(x), 1), device=x.device)
        begin, size = self.starts[which], self.starts[which + 1] - self.starts[which]
        shift = (torch.rand(len(x), 1, device=x.device) * size).long()
        places = begin + (shift + torch.arange(x.shape[-1], device=x.device)) % size  # a short one is repeated
        return self.samples[places].unsqueeze(1)


class SpecAugment(Augmentation):
    """Hides bands of rows and of frames behind the clip's mean.

    Args:
        rows: widest mask, as a share of the feature's rows (bands or coefficients).
        frames: widest mask, as a share of the frames.
        masks: of each kind; widths are drawn uniformly from 0.
        others: of `Augmentation`.

    Raises:
        ConfigError: an argument is out of range.

    Source: Park et al., "SpecAugment", 2019, without its time warping, with
    `torchaudio.functional.mask_along_axis_iid`.
    """

    name = "spec_augment"
    domain = "feature"

    def __init__(self, sample_rate_hz: int, *, rows: float, frames: float, masks: int, **base) -> None:
        super().__init__(sample_rate_hz, **base)
        self.check(0 <= rows < 1, "rows", rows, "0 or more, below 1")
        self.check(0 <= frames < 1, "frames", frames, "0 or more, below 1")
        self.check(masks >= 1, "masks", masks, "1 or more")
        self.rows, self.frames, self.masks = rows, frames, masks

    def augment(self, x: Tensor) -> Tensor:
        kept = torch.ones_like(x[:, :1])  # (B, 1, F, N), one mask for all channels
        for _ in range(self.masks):
            for axis, share in ((2, self.rows), (3, self.frames)):
                width = round(share * x.shape[axis])
                if width:
                    kept = mask_along_axis_iid(kept, width + 1, 0.0, axis)  # draws widths below its parameter
        return torch.where(kept > 0, x, x.mean(dim=(2, 3), keepdim=True))


class Mixup(Augmentation):
    """Blends each clip's feature and target with another's of the batch.

    Args:
        alpha: both parameters of the Beta distribution of the share, above 0.
        others: of `Augmentation`.

    Shape: (B, C, F, N), (B, classes) -> the same.

    Raises:
        ConfigError: an argument is out of range.

    Source: Zhang et al., "mixup", 2018. Deviation: the share is drawn for each clip.
    """

    name = "mixup"
    domain = "pair"

    def __init__(self, sample_rate_hz: int, *, alpha: float, **base) -> None:
        super().__init__(sample_rate_hz, **base)
        self.check(alpha > 0, "alpha", alpha, "above 0")
        self.alpha = alpha

    def blend(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Features and targets (B, classes), shares of each class."""
        share = torch.distributions.Beta(self.alpha, self.alpha).sample((len(x),)).to(x)  # (B,)
        share = share.where(torch.rand(len(x), device=x.device) < self.probability, 1.0)
        other = torch.randperm(len(x), device=x.device)
        return _lerp(x[other], x, share), _lerp(targets[other], targets, share)


class Augmenter(nn.Module):
    """All augmentations of a config, in its order, around a front end.

    Args:
        settings: of `conf/augment/`: a key an augmentation. One of probability 0 is left out.
        sample_rate_hz: of the waveforms.

    Shape: (B, 1, T) waveforms and (B,) class numbers -> (B, C, F, N) features
    and, with mixup in training mode, (B, classes) shares, else the class numbers.

    Raises:
        ConfigError: an unknown key, an unknown argument, or one out of range.
        DataError: recorded noise cannot be read.
    """

    def __init__(self, settings: dict[str, Any], sample_rate_hz: int) -> None:
        super().__init__()
        built = [_stage(key, own, sample_rate_hz) for key, own in settings.items() if key != "placement"]
        self.stages = nn.ModuleList(stage for stage in built if stage is not None)

    def forward(
        self, waveforms: Tensor, targets: Tensor, front_end: nn.Module, classes: int, seed: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        if not self.training or not len(self.stages):
            return front_end(waveforms), targets
        devices = [waveforms.device] if waveforms.is_cuda else []
        # draws of their own: dropout and the order of clips stay what they are without augmentation
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
            x = waveforms
            for stage in self._of("waveform"):
                x = stage(x)
            x = front_end(x)  # (B, C, F, N)
            for stage in self._of("feature"):
                x = stage(x)
            for stage in self._of("pair"):
                if targets.ndim == 1:
                    targets = nn.functional.one_hot(targets, classes).to(x)
                x, targets = stage.blend(x, targets)
        return x, targets

    def _of(self, domain: str) -> Iterator[Any]:
        return (stage for stage in self.stages if stage.domain == domain)


def _stage(key: str, settings: Any, sample_rate_hz: int) -> Augmentation | None:
    """The augmentation of one key of the config, None where its probability is 0."""
    if not isinstance(settings, dict):
        raise ConfigError(f"augment.{key}={settings}: expected settings, augment.{key}.probability=...")
    if settings.get("probability") == 0 and key in Augmentation.registry:
        return None
    return construct(Augmentation.registry, f"augment.{key}", settings | {"name": key}, sample_rate_hz)


def _uniform(low: float, high: float, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return low + (high - low) * torch.rand(shape, device=like.device)


def _lerp(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(start, end, share.view(-1, *[1] * (start.ndim - 1)))


def _middle(x: Tensor, length: int) -> Tensor:
    """The middle `length` samples; zeros on both sides where there are fewer."""
    spare = x.shape[-1] - length
    return nn.functional.pad(x, (-(spare // 2), spare // 2 - spare))
