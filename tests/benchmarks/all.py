"""The figures of docs/speed.md that two cores give in ten minutes: python -m tests.benchmarks.all

Each part prints what it measures. A table of all follows.
"""

import tempfile
from pathlib import Path
from unittest import mock

from threadpoolctl import threadpool_limits

from tests.benchmarks import features, step, timing, together
from tests.benchmarks.timing import command, figures, machine, real
from tests.pretended_gpu import pretended_gpu
from tests.test_gpu import StepCounts


def launches() -> None:
    """Launches and waits of a training step of the default recipe, on a GPU that is not there."""
    from audio_mnist.training.run import train

    with tempfile.TemporaryDirectory() as folder, pretended_gpu() as counts:
        noted = StepCounts(counts)
        tracking = f"tracking.uri=sqlite:///{folder}/mlflow.db"
        gpu = ("trainer.accelerator=gpu", "trainer.precision=32-true", "trainer.max_epochs=3", "trainer.min_epochs=1")
        train(timing.composed(*real(*gpu, tracking)), callbacks=[noted])
    launched = sum(noted.launched.values()) / noted.count
    waits = sum(sum(waits.values()) for _, waits in noted.steps)
    figures.append(("launches per step, pretended GPU", f"{launched:.0f} (mean of {noted.count} steps)"))
    figures.append(("waits within an epoch, pretended GPU", str(waits)))


def default_sweep() -> None:
    """The default sweep, from the command to the table."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = command(Path(folder), "train.py", *real("feature=mel,mfcc", "fold=0,1,2,3,4"), "-m")
    figures.append(("ten runs as shipped, FSDD-400", f"{seconds:.0f} s, once"))


def main() -> None:
    print(machine(), flush=True)
    with mock.patch.object(timing, "PAIRS", 3):
        with threadpool_limits(1):
            features.main()
        step.main([])
        together.main(1, ["trainer.max_steps=300"])
    launches()
    default_sweep()
    print(f"\n{machine()}\n\n| figure | measured |\n| --- | --- |")
    for title, result in figures:
        print(f"| {title} | {result} |")


if __name__ == "__main__":
    main()
