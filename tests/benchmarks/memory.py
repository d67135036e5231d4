"""A large corpus: python -m tests.benchmarks.memory [FOLDER] (11 GB of disk, 105,000 clips of 1 s at 16 kHz)

1. Building the waveform store / decoding the same files with soundfile, as many threads.
2. Peak resident memory of a training on 105,000 clips / on 1,000 clips.
3. The same run again: seconds until its first step.
"""

import csv
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from audio_mnist.config import to_plain
from audio_mnist.corpora import load
from audio_mnist.prepared import prepare
from tests.benchmarks.timing import PROJECT, composed, machine

CLIPS, FEW, RATE_HZ = 105_000, 1_000, 16_000


def make_corpus(folder: Path, source: Path) -> None:
    """Real clips in windows of one second, each with noise of its own, and manifests of all and of a few."""
    rng = np.random.default_rng(0)
    noises = rng.standard_normal((100, RATE_HZ), dtype=np.float32)
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
        noise = np.roll(noises[number % 100], number)
        soundfile.write(path, 0.9 * window + 0.003 * rng.uniform(0.5, 2) * noise, RATE_HZ, subtype="PCM_16")
        rows.append((path, label))
    for name, count in (("all.csv", CLIPS), ("few.csv", FEW)):
        with open(folder / name, "w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *rows[:: CLIPS // count]])


def train(folder: Path, manifest: str) -> tuple[float, float]:
    """(seconds, peak resident MB) of one epoch in a process of its own."""
    arguments = [
        *(sys.executable, str(PROJECT / "train.py"), "data=csv", f"data.manifest={folder / manifest}"),
        *("data.clip_s=1.0", f"data.cache_dir={folder / 'cache'}", "trainer.max_epochs=1", "trainer.min_epochs=1"),
        *("trainer.max_steps=null", "trainer.accelerator=cpu", f"hydra.run.dir={folder / 'hydra'}"),
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
    ]
    began = time.perf_counter()
    process = subprocess.Popen(arguments, cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"training on {manifest} failed")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def main(folder: Path) -> None:
    print(machine())
    source = Path(os.environ["AUDIO_MNIST_DATA"]) / "fsdd" / "recordings"
    if not (folder / "few.csv").exists():
        make_corpus(folder, source)
    paths = [folder / str(n // 1000) / f"{n}.wav" for n in range(CLIPS)]
    began = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda path: len(soundfile.read(path, dtype="float32")[0]), paths))
    decoding = time.perf_counter() - began
    data = to_plain(composed("data=csv", f"data.manifest={folder}/all.csv", f"data.cache_dir={folder}/cache"))["data"]
    began = time.perf_counter()
    load(data)
    reading = time.perf_counter() - began
    began = time.perf_counter()
    prepare(data)
    first = time.perf_counter() - began
    began = time.perf_counter()
    prepare(data)
    again = time.perf_counter() - began
    print(f"store of {CLIPS:,} clips: {first:.1f} s, of which the manifest {reading:.1f} s; soundfile alone, as many")
    print(f"  threads: {decoding:.1f} s; ratio {first / decoding:.2f}; found again in {again:.1f} s")
    few_s, few = train(folder, "few.csv")
    many_s, many = train(folder, "all.csv")
    print(
        f"peak resident memory, one epoch: {many:.0f} MB on {CLIPS:,} clips ({many_s:.0f} s), {few:.0f} MB on {FEW:,}"
    )
    print(f"  ({few_s:.0f} s); ratio {many / few:.3f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        main(Path(sys.argv[1]).resolve())
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
