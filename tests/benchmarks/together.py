"""Ten runs one after another / as grouped nets, one core: python -m tests.benchmarks.together [PAIRS] [OVERRIDE ...]"""

import sys
import tempfile
from pathlib import Path

from tests.benchmarks.timing import command, machine, ratio, real


def main(pairs: int, overrides: list[str]) -> None:
    print(machine(), *overrides)
    with tempfile.TemporaryDirectory() as temporary:
        command(Path(temporary), "train.py", *real("trainer.max_epochs=1", "trainer.min_epochs=1"))  # decodes the clips

        def sweep(launcher: str) -> float:
            with tempfile.TemporaryDirectory() as folder:  # another tracking database: no run is finished there
                arguments = ("train.py", *real(*overrides), "feature=mel,mfcc", "fold=0,1,2,3,4")
                launch = (f"hydra/launcher={launcher}", "hydra.launcher.n_jobs=1", "-m")
                return command(Path(folder), *arguments, *launch, cores={0})

        ratio(
            "ten runs on one core, one after another / together",
            ("one after another", lambda: sweep("side_by_side")),
            ("together", lambda: sweep("together")),
            repeats=pairs,
        )


if __name__ == "__main__":
    given = sys.argv[1:]
    pairs = int(given.pop(0)) if given and given[0].isdigit() else 3
    main(pairs, given or ["trainer.max_steps=300"])
