"""Augmentations of waveforms (B, 1, T)."""

import functools
import math
from pathlib import Path

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn

from audio_mnist.augment.base import Augmentation, Draws
from audio_mnist.config import require
from audio_mnist.data.decode import decode_folder
from audio_mnist.data.windows import middle


class Shift(Augmentation):
    """Move each clip in its window; what leaves the window is lost, and silence follows.

    It varies the place of clips that fill their window, which `placement` cannot move.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        most_ms: furthest shift, earlier or later; drawn uniformly.
        base: arguments of `Augmentation`.

    Shape: (B, 1, T) -> (B, 1, T).

    Raises:
        ConfigError: an argument is out of range.

    >>> Shift(1000, most_ms=1.0, probability=1.0)(torch.ones(4, 1, 3)).shape
    torch.Size([4, 1, 3])
    """

    name = "shift"
    moves = True

    def __init__(self, sample_rate_hz: int, *, most_ms: float, **base) -> None:
        super().__init__(sample_rate_hz, **base)
        require(most_ms > 0, "augment.shift.most_ms", most_ms, "above 0")
        self.most = round(most_ms * sample_rate_hz / 1000)  # samples

    def augment(self, x: Tensor, draws: Draws) -> Tensor:
        length, most = x.shape[-1], min(self.most, x.shape[-1])
        begin = draws.integers(2 * most + 1)  # (B,)
        windows = nn.functional.pad(x, (most, most)).squeeze(1).unfold(1, length, 1)  # (B, places, T), a view
        return windows[torch.arange(len(x), device=x.device), begin].unsqueeze(1)


class _Grouped(Augmentation):
    """Base that draws one of a few strengths for each clip and computes all clips of one strength together."""

    def __init__(self, sample_rate_hz: int, strengths: list[float], neutral: float, **base) -> None:
        super().__init__(sample_rate_hz, **base)
        self.strengths, self.neutral = strengths, neutral

    def augment(self, x: Tensor, draws: Draws) -> Tensor:
        drawn = draws.on_cpu(lambda rng, n: rng.integers(len(self.strengths), size=n))
        order = draws.put(drawn.argsort(kind="stable"))
        groups = x[order].split(np.bincount(drawn, minlength=len(self.strengths)).tolist())
        changed = [
            group if strength == self.neutral or not len(group) else middle(self.change(group, number), x.shape[-1])
            for number, (strength, group) in enumerate(zip(self.strengths, groups, strict=True))
        ]
        return torch.empty_like(x).index_copy_(0, order, torch.cat(changed))

    def change(self, x: Tensor, number: int) -> Tensor:
        """Change (b, 1, T) clips by strength `number`; return (b, 1, any length)."""
        raise NotImplementedError


class Speed(_Grouped):
    """Play each clip faster or slower, pitch and formants with it, about the window's centre.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        low: slowest factor, above 0.
        high: fastest factor.
        choices: number of factors from `low` to `high`, evenly spaced, drawn uniformly.
        base: arguments of `Augmentation`.

    Shape: (B, 1, T) -> (B, 1, T).

    Raises:
        ConfigError: an argument is out of range.

    Source: Ko et al., "Audio augmentation for speech recognition", 2015, with
    `torchaudio.transforms.Resample`.

    >>> Speed(8000, low=0.9, high=1.1, choices=3, probability=1.0)(torch.randn(4, 1, 8000)).shape
    torch.Size([4, 1, 8000])
    """

    name = "speed"
    moves = True

    def __init__(self, sample_rate_hz: int, *, low: float, high: float, choices: int, **base) -> None:
        # hundredths keep the resampling ratio, and so the filter, small
        factors = [round(float(f), 2) for f in np.linspace(low, high, max(1, choices))]
        super().__init__(sample_rate_hz, factors, 1.0, **base)
        require(0.25 <= low <= high, "augment.speed.low", low, f"0.25 to augment.speed.high ({high:g})")
        require(high <= 4, "augment.speed.high", high, "at most 4")
        require(choices >= 1, "augment.speed.choices", choices, "1 or more")
        self.resample = nn.ModuleList(torchaudio.transforms.Resample(round(100 * f), 100) for f in factors)

    def change(self, x: Tensor, number: int) -> Tensor:
        return self.resample[number](x)


class Pitch(_Grouped):
    """Move each clip's pitch, and its formants with it; its tempo stays.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        semitones: furthest shift, up or down; whole semitones are drawn.
        base: arguments of `Augmentation`.

    Shape: (B, 1, T) -> (B, 1, T).

    Raises:
        ConfigError: an argument is out of range.

    Source: `torchaudio.functional.pitch_shift`, a phase vocoder and a resampling.
    Deviation: factors are rounded to hundredths, at most 4 cents for 2 semitones.
    The resampling filter of an exact factor has as many phases as a second has
    samples, and takes seconds per batch.

    >>> Pitch(8000, semitones=2, probability=1.0)(torch.randn(4, 1, 8000)).shape
    torch.Size([4, 1, 8000])
    """

    name = "pitch"

    def __init__(self, sample_rate_hz: int, *, semitones: int, **base) -> None:
        super().__init__(sample_rate_hz, [float(s) for s in range(-semitones, semitones + 1)], 0.0, **base)
        require(1 <= semitones <= 12, "augment.pitch.semitones", semitones, "1 to 12")
        self.factors = [round(2 ** (s / 12), 2) for s in self.strengths]
        n_fft = 2 ** round(math.log2(0.032 * sample_rate_hz))  # 32 ms, usual for speech
        hop = n_fft // 4
        self.spectrum = torchaudio.transforms.Spectrogram(n_fft, hop_length=hop, power=None)
        self.stretch = torchaudio.transforms.TimeStretch(hop, n_fft // 2 + 1)
        self.waveform = torchaudio.transforms.InverseSpectrogram(n_fft, hop_length=hop)
        self.resample = nn.ModuleList(torchaudio.transforms.Resample(round(100 * f), 100) for f in self.factors)

    def change(self, x: Tensor, number: int) -> Tensor:
        factor = self.factors[number]
        longer = self.stretch(self.spectrum(x), 1 / factor)  # at the same pitch
        return self.resample[number](self.waveform(longer, round(factor * x.shape[-1])))


class Gain(Augmentation):
    """Make each clip louder or quieter.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        low_db: least gain.
        high_db: greatest gain; drawn uniformly between the two.
        base: arguments of `Augmentation`.

    Shape: (B, 1, T) -> (B, 1, T).

    Raises:
        ConfigError: an argument is out of range.

    >>> Gain(8000, low_db=20.0, high_db=20.0, probability=1.0)(torch.ones(1, 1, 3))
    tensor([[[10., 10., 10.]]])
    """

    name = "gain"

    def __init__(self, sample_rate_hz: int, *, low_db: float, high_db: float, **base) -> None:
        super().__init__(sample_rate_hz, **base)
        require(low_db <= high_db, "augment.gain.low_db", low_db, f"at most augment.gain.high_db ({high_db:g})")
        self.range_db = low_db, high_db

    def augment(self, x: Tensor, draws: Draws) -> Tensor:
        return x * 10 ** (draws.uniform(*self.range_db, 1, 1) / 20)


class Filter(Augmentation):
    """Colour each clip as another microphone or room would: a smooth random gain over frequency.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        bands: points evenly spaced on the mel scale; between them the gain is linear in dB.
        strength_db: largest gain at a point, up or down, drawn uniformly.
        base: arguments of `Augmentation`.

    Shape: (B, 1, T) -> (B, 1, T).

    Raises:
        ConfigError: an argument is out of range.

    Source: the linear type of Nam et al., "FilterAugment", 2022. Deviation: it
    is applied to the spectrum of the whole window.

    >>> Filter(8000, bands=6, strength_db=6.0, probability=1.0)(torch.randn(4, 1, 8000)).shape
    torch.Size([4, 1, 8000])
    """

    name = "filter"

    def __init__(self, sample_rate_hz: int, *, bands: int, strength_db: float, **base) -> None:
        super().__init__(sample_rate_hz, **base)
        require(bands >= 2, "augment.filter.bands", bands, "2 or more")
        require(strength_db >= 0, "augment.filter.strength_db", strength_db, "0 or more")
        self.bands, self.strength_db = bands, strength_db

    def augment(self, x: Tensor, draws: Draws) -> Tensor:
        length = _fast_length(x.shape[-1])
        spectrum = torch.fft.rfft(x, n=length)  # (B, 1, length / 2 + 1)
        drawn_db = draws.uniform(-self.strength_db, self.strength_db, self.bands)
        hats = _hats(spectrum.shape[-1], self.sample_rate_hz, self.bands, x.device)
        gain = torch.exp(drawn_db @ hats * (math.log(10) / 20))
        return torch.fft.irfft(_scaled(spectrum, gain.unsqueeze(1)), n=length)[..., : x.shape[-1]]


@functools.lru_cache(maxsize=16)
def _fast_length(samples: int) -> int:
    """Return the next length with the prime factors 2, 3 and 5 alone; a prime one takes ten times as long."""
    from scipy.fft import next_fast_len

    return next_fast_len(samples, real=True)


@functools.lru_cache(maxsize=4)
def _hats(bins: int, sample_rate_hz: int, bands: int, device: torch.device) -> Tensor:
    """Return (bands, bins) weights that interpolate points evenly spaced on the mel scale."""
    bins_hz = torch.linspace(0, sample_rate_hz / 2, bins, device=device)
    position = torch.log1p(bins_hz / 700) / math.log1p(sample_rate_hz / 1400) * (bands - 1)
    points = torch.arange(bands, device=device).unsqueeze(1)
    return (1 - (position - points).abs()).clamp_min(0)


class _Additive(Augmentation):
    """Base that adds noise. The signal-to-noise ratio is uniform in dB and taken over the whole window."""

    def __init__(self, sample_rate_hz: int, *, snr_low_db: float, snr_high_db: float, **base) -> None:
        super().__init__(sample_rate_hz, **base)
        high = f"at most augment.{self.name}.snr_high_db ({snr_high_db:g})"
        require(snr_low_db <= snr_high_db, f"augment.{self.name}.snr_low_db", snr_low_db, high)
        self.snr_db = snr_low_db, snr_high_db

    def augment(self, x: Tensor, draws: Draws) -> Tensor:
        noise = self.noise(x, draws)
        # silent noise has no ratio. Not torchaudio's add_noise: it computes both norms a second time
        level = torch.linalg.vector_norm(noise, dim=-1, keepdim=True)
        wanted = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * 10 ** (-draws.uniform(*self.snr_db, 1, 1) / 20)
        return torch.addcmul(x, noise, torch.where(level > 0, wanted / level, 0))

    def noise(self, x: Tensor, draws: Draws) -> Tensor:
        """Return noise in the shape of `x`, at any level."""
        raise NotImplementedError


class Noise(_Additive):
    """Add Gaussian noise with a spectrum that falls with frequency; each clip draws its slope.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        slope_low: least exponent a of the power spectrum 1/f^a: 0 is white, 1 pink, 2 brown.
        slope_high: greatest exponent; drawn uniformly between the two.
        snr_low_db: loudest noise, signal-to-noise ratio over the whole window.
        snr_high_db: quietest noise; drawn uniformly between the two.
        additive: arguments of `Augmentation`.

    Shape: (B, 1, T) -> (B, 1, T).

    Raises:
        ConfigError: an argument is out of range.

    >>> noise = Noise(8000, slope_low=0.0, slope_high=2.0, snr_low_db=10.0, snr_high_db=10.0, probability=1.0)
    >>> x = torch.randn(4, 1, 8000)
    >>> added = noise(x) - x
    >>> (10 * (x.square().sum(dim=2) / added.square().sum(dim=2)).log10()).round().flatten()
    tensor([10., 10., 10., 10.])
    """

    name = "noise"

    def __init__(self, sample_rate_hz: int, *, slope_low: float, slope_high: float, **additive) -> None:
        super().__init__(sample_rate_hz, **additive)
        high = f"at most augment.noise.slope_high ({slope_high:g})"
        require(slope_low <= slope_high, "augment.noise.slope_low", slope_low, high)
        self.slope = slope_low, slope_high

    def noise(self, x: Tensor, draws: Draws) -> Tensor:
        length = _fast_length(x.shape[-1])
        frequency = torch.arange(length // 2 + 1, device=x.device).clamp_min(1)
        spectrum = torch.view_as_complex(draws.normal(1, len(frequency), 2))
        slope = draws.uniform(*self.slope, 1, 1)
        noise = torch.fft.irfft(_scaled(spectrum, torch.exp(frequency.log() * (-slope / 2))), n=length)
        return noise[..., : x.shape[-1]]


class Background(_Additive):
    """Add a random piece of recorded noise.

    Args:
        sample_rate_hz: sample rate of the waveforms.
        folder: folder of recordings (wav, flac, ogg, mp3), at any depth.
        snr_low_db: loudest noise, signal-to-noise ratio over the whole window.
        snr_high_db: quietest noise; drawn uniformly between the two.
        additive: arguments of `Augmentation`.

    Shape: (B, 1, T) -> (B, 1, T).

    Raises:
        ConfigError: an argument is out of range, or no folder is given.
        DataError: the folder has no recording, or one that cannot be read.

    >>> import tempfile, soundfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     soundfile.write(f"{folder}/fan.wav", np.random.default_rng(0).normal(0, 0.1, 4000), 8000)
    ...     background = Background(8000, folder=folder, snr_low_db=5.0, snr_high_db=20.0, probability=1.0)
    >>> background(torch.randn(4, 1, 8000)).shape
    torch.Size([4, 1, 8000])
    """

    name = "background"

    def __init__(self, sample_rate_hz: int, *, folder: str | None, **additive) -> None:
        super().__init__(sample_rate_hz, **additive)
        require(
            folder is not None, "augment.background.folder", folder, "a folder of recorded noise, or its probability 0"
        )
        recordings = decode_folder(Path(str(folder)).expanduser(), sample_rate_hz, key="augment.background.folder")
        ends = np.cumsum([len(recording) for recording in recordings])
        self.samples: Tensor  # (total,), recording after recording
        self.starts: Tensor  # (recordings + 1,)
        self.register_buffer("samples", torch.from_numpy(np.concatenate(recordings)), persistent=False)
        self.register_buffer("starts", torch.from_numpy(np.concatenate([[0], ends])), persistent=False)

    def noise(self, x: Tensor, draws: Draws) -> Tensor:
        which = draws.integers(len(self.starts) - 1, 1)
        begin, size = self.starts[which], self.starts[which + 1] - self.starts[which]
        shift = (draws.uniform(0, 1, 1) * size).long()
        samples = begin + (shift + torch.arange(x.shape[-1], device=x.device)) % size  # a short recording repeats
        return self.samples[samples].unsqueeze(1)


def _scaled(spectrum: Tensor, gain: Tensor) -> Tensor:
    """Multiply a spectrum by a real gain, in place: three times as fast as a product of complex numbers."""
    torch.view_as_real(spectrum).mul_(gain.unsqueeze(-1))
    return spectrum
