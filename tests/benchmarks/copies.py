"""Copies of real recordings in other forms: how many are found, how many others are taken for copies, in what time.

`python -m tests.benchmarks.copies` prints the detection table of docs/scoring.md. It needs AUDIO_MNIST_DATA.
"""

import io
import os
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr

from audio_mnist.data.copies import first_copies
from audio_mnist.data.decode import Limits, decode, digest

CLIPS = 50
CORPORA = {"FSDD": ("fsdd/recordings", 8000), "Speech Commands digits": ("speech_commands_digits", 16_000)}


def encoded(samples: np.ndarray, rate_hz: int, **form: str) -> bytes:
    """An audio file in memory."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, **form)
    return buffer.getvalue()


def with_chunk(wav: bytes) -> bytes:
    """The same WAV file with one more chunk in its header."""
    chunk = b"note" + (8).to_bytes(4, "little") + b"one more"
    size = int.from_bytes(wav[4:8], "little") + len(chunk)
    return wav[:4] + size.to_bytes(4, "little") + wav[8:12] + chunk + wav[12:]


def forms(samples: np.ndarray, rate_hz: int, wav: bytes) -> dict[str, tuple[bytes, str]]:
    """Each form of a recording: name -> the file and its suffix."""
    cut = len(samples) // 20

    def pcm(changed: np.ndarray, hz: int = rate_hz) -> tuple[bytes, str]:
        return encoded(changed, hz, format="WAV", subtype="PCM_16"), "wav"

    other_hz = 16_000 if rate_hz == 8000 else 8000
    return {
        "one more header chunk": (with_chunk(wav), "wav"),
        "FLAC": (encoded(samples, rate_hz, format="FLAC", subtype="PCM_16"), "flac"),
        "MP3": (encoded(samples, rate_hz, format="MP3"), "mp3"),
        "another gain (-14 dB)": pcm(0.2 * samples),
        "one sample later": pcm(np.r_[0.0, samples[:-1]]),
        "Vorbis": (encoded(samples, rate_hz, format="OGG", subtype="VORBIS"), "ogg"),
        "half or twice the rate": pcm(soxr.resample(samples, rate_hz, other_hz), other_hz),
        "0.3 s of silence around it": pcm(np.pad(samples, round(0.3 * rate_hz))),
        "5% cut from each end": pcm(samples[cut : len(samples) - cut]),
    }


def stored(path: Path, rate_hz: int) -> tuple[np.ndarray, str]:
    """A recording as the waveform store has it, and the digest of its own samples."""
    samples, own_hz, reason = decode(str(path), Limits(0.0, 60.0))
    assert samples is not None, reason
    return (samples if own_hz == rate_hz else soxr.resample(samples, own_hz, rate_hz)), digest(samples, own_hz)


def detected(folder: Path, rate_hz: int, scratch: Path, clips: int = CLIPS) -> tuple[dict[str, float], float, float]:
    """Share of the copies found in each form, share of the others that are taken for copies, ms for each clip."""
    paths = sorted(folder.rglob("*.wav"))
    originals = [stored(path, rate_hz) for path in paths]
    began = time.perf_counter()
    _, alike = first_copies(lambda i: originals[i][0], rate_hz, np.array([sound for _, sound in originals]))
    milliseconds = 1000 * (time.perf_counter() - began) / len(paths)
    alarms = float((alike != np.arange(len(paths))).mean())
    chosen = np.random.default_rng(0).choice(len(paths), clips, replace=False)
    copies: dict[str, list[tuple[np.ndarray, str]]] = {}
    for number in chosen:
        samples, own_hz = soundfile.read(paths[number])
        for form, (content, suffix) in forms(samples, own_hz, paths[number].read_bytes()).items():
            copy = scratch / f"copy.{suffix}"
            copy.write_bytes(content)
            copies.setdefault(form, []).append(stored(copy, rate_hz))
    found = {}
    for form, made in copies.items():
        every = originals + made
        _, alike = first_copies(lambda i, every=every: every[i][0], rate_hz, np.array([sound for _, sound in every]))
        found[form] = float((alike[len(originals) :] == alike[chosen]).mean())
    return found, alarms, milliseconds


if __name__ == "__main__":
    import tempfile

    for name, (folder, rate_hz) in CORPORA.items():
        with tempfile.TemporaryDirectory() as scratch:
            found, alarms, milliseconds = detected(
                Path(os.environ["AUDIO_MNIST_DATA"]) / folder, rate_hz, Path(scratch)
            )
        print(f"{name}: other clips taken for copies {100 * alarms:.3f}%, {milliseconds:.2f} ms a clip")
        for form, share in found.items():
            print(f"| {form} | {100 * share:.0f}% |", flush=True)
