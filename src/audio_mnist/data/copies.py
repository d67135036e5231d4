"""Which clips of a corpus are the same recording, in whatever form. Pure numpy and scipy.

Two clips are copies where their decoded samples are equal, or where their sound is: the same
recording louder, shifted, cut or padded at its ends, encoded with losses, or at another sample
rate. Two takes of one word by one voice are not.

The search has three steps, each for the pairs that the one before leaves:

1. Spectra. Two clips stay a pair if their long-term spectra in 32 bands are close. None of these
   changes moves a spectrum far.
2. Bits. A spectrum in 512 bands gives one bit each: louder than its neighbours or not. Two
   recordings of one fan have close spectra, but other bits. Each clip keeps its 8 closest later
   ones at most, so the last step's time grows with the corpus, not with its square. A copy is
   missed where 8 later clips are closer.
3. Samples. The clips are correlated at every shift. Their spectra are flattened for that by a
   square root, so a loud tone that two recordings share does not make them copies.
"""

from collections.abc import Callable, Iterator
from functools import cache, lru_cache

import numpy as np
import soxr
from scipy.cluster.hierarchy import DisjointSet
from scipy.fft import irfft, next_fast_len, rfft
from scipy.ndimage import uniform_filter1d

RATE_HZ = 8000  # of the comparison; clips at a lower rate keep theirs
BANDS = 32
NEAR_DB = 3.2  # largest root mean square distance of two copies' spectra
BITS = 512
OTHER_BITS = 0.38  # greatest share of two copies' louder bands that only one has; others mostly have 0.41 and more
CLOSEST = 8  # most later clips that a clip is correlated with
ALIKE = 0.82  # least correlation of copies; MP3 at 8 kHz has 0.85 and more, other takes of a word 0.75 at most
_FLOOR = 1e-3  # of a band, beside the loudest one; below it lies what cut ends leak into all bands
_BLOCK = 256  # clips at a time; their distances to all later ones are computed
_FINE = 4  # shifts per sample
_NEIGHBOURS = 9  # bands that a band is compared with, itself included
_LOUDER_DB = 0.01  # rounding must not decide where bands are at the floor


def first_copies(clips: Callable[[int], np.ndarray], rate_hz: int, sounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the copies of a corpus.

    Args:
        clips: number of a clip -> its (T,) samples.
        rate_hz: their sample rate.
        sounds: (n,) digests of the decoded samples.

    Returns:
        Two (n,) int64 arrays: for each clip the number of the first one with equal samples, and the number of the
        first one with the same sound.

    >>> noise = np.random.default_rng(0).standard_normal((3, 4000)).astype(np.float32)
    >>> made = [noise[0], noise[1], 0.1 * noise[0, 150:], noise[1]]
    >>> equal, alike = first_copies(made.__getitem__, 8000, np.array(["a", "b", "c", "b"]))
    >>> equal.tolist(), alike.tolist()
    ([0, 1, 2, 1], [0, 1, 0, 1])
    """
    _, first, which = np.unique(sounds, return_index=True, return_inverse=True)
    equal = first[which].astype(np.int64)
    distinct = np.unique(equal)  # one of equal ones is compared

    @lru_cache(2)  # pairs come in order of their first clip
    def reduced(number: int) -> np.ndarray:
        return _reduced(clips(int(distinct[number])), rate_hz)

    prints = [fingerprint(reduced(number), min(RATE_HZ, rate_hz)) for number in range(len(distinct))]
    spectra, bits = (np.stack(part) for part in zip(*prints, strict=True))
    same = DisjointSet(range(len(distinct)))
    for one, other in _near(spectra, bits):
        if not same.connected(one, other) and correlation(reduced(one), reduced(other)) >= ALIKE:
            same.merge(one, other)
    groups = np.array([same[number] for number in range(len(distinct))])[np.searchsorted(distinct, equal)]
    _, first, which = np.unique(groups, return_index=True, return_inverse=True)
    return equal, first[which].astype(np.int64)


def fingerprint(samples: np.ndarray, rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a clip's coarse and fine spectrum, which copies share.

    Args:
        samples: (T,).
        rate_hz: their sample rate.

    Returns:
        The long-term spectrum, (32,) float32 in dB with mean 0, and its fine structure, (8,) uint64 of 64 bits each.
    """
    coarse_hz, fine_hz = _edges_hz(rate_hz)
    least = 2 * rate_hz / (fine_hz[1] - fine_hz[0])  # two bins per fine band, else a short clip's bits tell its length
    length = next_fast_len(max(len(samples) + 1, round(least)), real=True)
    # differences: a loud hum, cut off at the ends, would leak into all bands
    spectrum = rfft(np.diff(samples, prepend=0, append=0), length)
    power = np.concatenate([[0.0], np.cumsum(spectrum.real**2 + spectrum.imag**2, dtype=np.float64)])

    def decibels(edges_hz: np.ndarray) -> np.ndarray:
        bins = np.minimum(np.ceil(edges_hz * length / rate_hz).astype(int), len(power) - 1)
        bands = np.diff(power[bins])
        return 10 * np.log10(np.maximum(bands, _FLOOR * bands.max() + 1e-30))

    bands, fine = decibels(coarse_hz), decibels(fine_hz)
    louder = fine > uniform_filter1d(fine, _NEIGHBOURS) + _LOUDER_DB
    return (bands - bands.mean()).astype(np.float32), np.packbits(louder).view(np.uint64)


@cache
def _edges_hz(rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    limits_hz = (100, 0.45 * rate_hz)
    return np.geomspace(*limits_hz, BANDS + 1), np.linspace(*limits_hz, BITS + 1)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest correlation of two clips over all shifts, 0 to 1, with flattened spectra.

    >>> noise = np.random.default_rng(0).standard_normal(4000)
    >>> round(correlation(noise[:3000], -2 * noise), 2)
    0.85
    """
    length = next_fast_len(len(first) + len(second) - 1, real=True)
    a, b = (_flat(rfft(x - x.mean(), length)) for x in (first, second))
    product = irfft(a * b.conj(), _FINE * length) * _FINE
    energy = [(2 * (np.abs(x) ** 2).sum() - np.abs(x[0]) ** 2) / length for x in (a, b)]
    return float(np.abs(product).max() / np.sqrt(energy[0] * energy[1] + 1e-30))


def _flat(spectrum: np.ndarray) -> np.ndarray:
    size = np.sqrt(np.abs(spectrum))
    return spectrum / (size + 1e-3 * size.max() + 1e-30)


def _reduced(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    if rate_hz <= RATE_HZ:
        return samples
    resampled = soxr.resample(samples, rate_hz, RATE_HZ, quality="HQ")
    return resampled if len(resampled) else samples[:1]  # a clip of a few samples


def _near(spectra: np.ndarray, bits: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the pairs of close fingerprints, each once."""
    squares, ones = (spectra**2).sum(axis=1, keepdims=True), np.ones((len(spectra), 1), np.float32)
    left, right = np.hstack([-2 * spectra, squares, ones]), np.hstack([spectra, ones, squares])
    bits, louder = np.ascontiguousarray(bits.T), np.bitwise_count(bits).sum(axis=1)
    for start in range(0, len(spectra), _BLOCK):
        distances = left[start : start + _BLOCK] @ right[start:].T  # squared
        for row, close in enumerate(distances < NEAR_DB**2 * BANDS):
            one = start + row
            others = one + 1 + np.flatnonzero(close[row + 1 :])
            differ = np.bitwise_count(bits[:, others] ^ bits[:, one, None]).sum(axis=0, dtype=np.uint16)
            share = differ / (louder[others] + louder[one] + 1)
            others, share = others[share <= OTHER_BITS], share[share <= OTHER_BITS]
            yield from ((one, other) for other in others[np.argsort(share, kind="stable")[:CLOSEST]].tolist())
