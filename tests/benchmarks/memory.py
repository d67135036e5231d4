"""Memory of a large corpus: python -m tests.benchmarks.memory [FOLDER] (11 GB of disk, 105,000 clips of 1 s at 16 kHz)

Peak resident memory of a training on 105,000 clips / on 1,000 clips, an epoch each. FOLDER may be that of
`tests.benchmarks.store`.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.store import CLIPS, FEW, corpus_in
from tests.benchmarks.timing import PROJECT, in_folder, machine


def train(folder: Path, manifest: str) -> tuple[float, float]:
    """(seconds, peak resident MB) of one epoch in a process of its own."""
    arguments = [
        *(sys.executable, str(PROJECT / "train.py"), "data=csv", f"data.manifest={folder / manifest}"),
        "data.copies=samples",  # two sums of one loud clip may be alike and differ in label
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
    corpus_in(folder)
    few_s, few = train(folder, "few.csv")
    many_s, many = train(folder, "all.csv")
    print(
        f"peak resident memory, one epoch: {many:.0f} MB on {CLIPS:,} clips ({many_s:.0f} s), {few:.0f} MB on {FEW:,}"
    )
    print(f"  ({few_s:.0f} s); ratio {many / few:.3f}")


if __name__ == "__main__":
    in_folder(main)
