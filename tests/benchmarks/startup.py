"""Seconds until the commands answer: python -m tests.benchmarks.startup"""

import statistics
import tempfile
from pathlib import Path

from tests.benchmarks.timing import command, machine


def main() -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        for arguments in (("train.py", "--help"), ("ensemble.py", "--help"), ("train.py", "fold=9"), ("ensemble.py",)):
            seconds = [command(Path(folder), *arguments, status=int("--help" not in arguments)) for _ in range(7)]
            print(f"{' '.join(arguments)}: median {statistics.median(seconds):.2f} s, slowest {max(seconds):.2f} s")


if __name__ == "__main__":
    main()
