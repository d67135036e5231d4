"""Ten-run sweeps: python -m tests.benchmarks.sweep [PAIRS] [OVERRIDE ...]

1. One core, one run after another / as shipped, on two cores.
2. Tracked in SQLite / tracking switched off.
3. The second ensemble of ten runs of 400 clips, whole process.
"""

import sys
import tempfile
from pathlib import Path

from tests.benchmarks.timing import command, machine, ratio, real


def main(pairs: int, overrides: list[str]) -> None:
    print(machine(), *overrides)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sweep = ("train.py", *real("resume=false", *overrides), "feature=mel,mfcc", "fold=0,1,2,3,4")
        command(folder, "train.py", *real("trainer.max_epochs=1", "trainer.min_epochs=1"))  # decodes the clips
        ratio(
            "one core / two cores",
            ("one after another", lambda: command(folder, *sweep, "hydra/launcher=basic", "-m", cores={0})),
            ("as shipped", lambda: command(folder, *sweep, "-m", cores={0, 1})),
            repeats=pairs,
        )
        ratio(
            "tracked / not",
            ("SQLite", lambda: command(folder, *sweep, "-m")),
            ("tracking=none", lambda: command(folder, *sweep, "tracking=none", "-m")),
            repeats=pairs,
        )
        for which in ("first", "second"):
            print(f"{which} ensemble.py: {command(folder, 'ensemble.py', 'run_ids=latest'):.1f} s")


if __name__ == "__main__":
    given = sys.argv[1:]
    pairs = int(given.pop(0)) if given and given[0].isdigit() else 5
    main(pairs, given or ["trainer.max_steps=300"])
