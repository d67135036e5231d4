"""A GPU's figures: python -m tests.benchmarks.gpu

1. A training step with the net as CUDA graphs / as separate kernels.
2. Ten runs of the default sweep with one run on the GPU at a time / with `trainer.runs_per_gpu` as shipped.
3. The default sweep on the CPU / on the GPU.
"""

import sys
import tempfile
from pathlib import Path

import torch

from tests.benchmarks.step import whole_run
from tests.benchmarks.timing import command, composed, machine, ratio, real


def main(pairs: int = 3) -> None:
    if not torch.cuda.is_available():
        sys.exit("no GPU here")
    print(f"{machine()}; {torch.cuda.get_device_name()}")
    steps = real("trainer.accelerator=gpu", "trainer.max_steps=1000")
    ratio(
        "1,000 steps with CUDA graphs / without",
        ("graphs", lambda: whole_run(composed(*steps, "trainer.cuda_graph=true"))),
        ("kernels", lambda: whole_run(composed(*steps, "trainer.cuda_graph=false"))),
        repeats=pairs,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sweep = ("train.py", *real("resume=false"), "feature=mel,mfcc", "fold=0,1,2,3,4")
        gpu = ("trainer.accelerator=gpu", "-m")
        ratio(
            "ten runs, one at a time / side by side on the GPU",
            ("one at a time", lambda: command(folder, *sweep, "trainer.runs_per_gpu=1", *gpu)),
            ("as shipped", lambda: command(folder, *sweep, *gpu)),
            repeats=pairs,
        )
        ratio(
            "ten runs, CPU / GPU",
            ("CPU", lambda: command(folder, *sweep, "trainer.accelerator=cpu", "-m")),
            ("GPU", lambda: command(folder, *sweep, *gpu)),
            repeats=1,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
