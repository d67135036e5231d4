"""A large corpus decoded: python -m tests.benchmarks.store [FOLDER] (11 GB of disk, 105,000 clips of 1 s at 16 kHz)

1. Building the waveform store, from the manifest to the corpus as runs use it / decoding the same files with
   soundfile, in as many threads as there are cores. Once each: the clips are in the page cache for both.
2. Finding the store again.
"""

import csv
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from audio_mnist.config import to_plain
from audio_mnist.data.prepare import prepare
from tests.benchmarks.timing import composed, in_folder, machine

CLIPS, FEW, RATE_HZ = 105_000, 1_000, 16_000


def make_corpus(folder: Path, source: Path) -> None:
    """Windows of one second, each the sum of two real clips, few of them alike; manifests of all and of a few."""
    rng = np.random.default_rng(0)
    originals = []
    for path in sorted(source.glob("*.wav")):
        samples, rate = soundfile.read(path, dtype="float32")
        window = np.zeros(RATE_HZ, dtype=np.float32)
        samples = soxr.resample(samples, rate, RATE_HZ)[:RATE_HZ]
        window[: len(samples)] = samples
        originals.append((path.name.split("_")[0], window))
    rows = []
    for number in tqdm(range(CLIPS), desc="making clips"):
        label, window = originals[number % len(originals)]
        path = folder / str(number // 1000) / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        other = np.roll(originals[rng.integers(len(originals))][1], rng.integers(RATE_HZ))
        mixed = window / np.abs(window).max() + other / np.abs(other).max()
        soundfile.write(path, 0.4 * mixed, RATE_HZ, subtype="PCM_16")
        rows.append((path, label))
    for name, count in (("all.csv", CLIPS), ("few.csv", FEW)):
        with open(folder / name, "w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *rows[:: CLIPS // count]])


def corpus_in(folder: Path) -> None:
    """Makes the clips and manifests of `make_corpus` where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "few.csv").exists():
        make_corpus(folder, Path(os.environ["AUDIO_MNIST_DATA"]) / "fsdd" / "recordings")


def main(folder: Path) -> None:
    print(machine())
    corpus_in(folder)
    paths = [folder / str(n // 1000) / f"{n}.wav" for n in range(CLIPS)]
    began = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda path: len(soundfile.read(path, dtype="float32")[0]), paths))
    decoding = time.perf_counter() - began
    # two sums of one loud clip may be alike and differ in label; the search for copies runs all the same
    given = ["data=csv", "data.copies=samples", f"data.manifest={folder}/all.csv", f"data.cache_dir={folder}/cache"]
    data = to_plain(composed(*given))["data"]
    times = []
    for _ in range(2):
        began = time.perf_counter()
        prepare(data)
        times.append(time.perf_counter() - began)
    print(f"store of {CLIPS:,} clips: {times[0]:.1f} s; soundfile alone, in threads: {decoding:.1f} s")
    print(f"  ratio {times[0] / decoding:.2f}; found again in {times[1]:.1f} s")


if __name__ == "__main__":
    in_folder(main)
