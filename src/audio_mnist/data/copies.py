"""Which clips of a corpus are the same recording, in whatever form. Pure numpy and scipy.

Two clips are copies where their decoded samples are equal, or where their sound is: the same
recording louder, shifted, cut or padded at its ends, encoded with losses, or at another sample
rate. Two takes of one word by one voice are not.

The search has two steps. Each clip gets a fingerprint, its long-term spectrum in 32 bands, which
none of these changes moves far. Clips with close fingerprints are then correlated, sample by
sample, at every shift. Their spectra are flattened for that by a square root. So a loud tone that
two recordings share does not make them copies.
"""

from collections.abc import Callable, Iterator

import numpy as np
import soxr
from scipy.fft import irfft, next_fast_len, rfft
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

RATE_HZ = 8000  # of the comparison; clips at a lower rate keep theirs
BANDS = 32
NEAR_DB = 2.0  # largest root mean square distance of two copies' spectra
ALIKE = 0.82  # least correlation of copies; MP3 at 8 kHz has 0.85 and more, other takes of a word 0.75 at most
_FLOOR = 1e-5  # of a band, below the loudest one
_BLOCK = 1024  # clips at a time; their distances to all others are computed
_FINE = 4  # shifts per sample


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

    def reduced(number: int) -> np.ndarray:
        return _reduced(clips(int(distinct[number])), rate_hz)

    spectra = np.stack([fingerprint(reduced(number), min(RATE_HZ, rate_hz)) for number in range(len(distinct))])
    found = [pair for pair in _near(spectra) if correlation(*map(reduced, pair)) >= ALIKE]
    edges = np.concatenate(
        [distinct[np.array(found, dtype=np.int64)].reshape(-1, 2), np.c_[np.arange(len(equal)), equal]]
    )
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(equal), len(equal)))
    groups = connected_components(graph, directed=False)[1]
    _, first, which = np.unique(groups, return_index=True, return_inverse=True)
    return equal, first[which].astype(np.int64)


def fingerprint(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """Return the (32,) long-term spectrum of (T,) samples, dB, mean 0."""
    length = next_fast_len(len(samples), real=True)
    spectrum = rfft(samples - samples.mean(), length)
    power = np.concatenate([[0.0], np.cumsum(spectrum.real**2 + spectrum.imag**2, dtype=np.float64)])
    edges_hz = np.geomspace(100, 0.45 * rate_hz, BANDS + 1)
    bins = np.minimum(np.ceil(edges_hz * length / rate_hz).astype(int), len(power) - 1)
    bands = power[bins[1:]] - power[bins[:-1]]
    bands = 10 * np.log10(np.maximum(bands, _FLOOR * bands.max() + 1e-30))
    return (bands - bands.mean()).astype(np.float32)


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


def _near(spectra: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the pairs of close fingerprints, each once."""
    squares, limit = (spectra**2).sum(axis=1), NEAR_DB**2 * BANDS
    for start in range(0, len(spectra), _BLOCK):
        block = slice(start, start + _BLOCK)
        distances = squares[block, None] + squares - 2 * spectra[block] @ spectra.T
        for one, other in np.argwhere(distances < limit):
            if start + one < other:
                yield int(start + one), int(other)
