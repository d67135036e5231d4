"""Many short runs in one sweep: python -m tests.benchmarks.many_runs [RUNS [REPEATS]] (200 runs, 3 times)

Time from a run's end to the next one's start in a worker, and what the live view costs: the same sweep in a terminal
with and without it, in turn.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from audio_mnist.tracking.tracker import Tracker
from tests.benchmarks.timing import machine
from tests.conftest import write_tones
from tests.test_view import in_terminal

WORKERS = 2


def sweep(folder: Path, runs: int, view: bool) -> tuple[float, float]:
    """Return seconds from the first run's start to the last one's end, and mean seconds between two runs."""
    uri = f"sqlite:///{folder}/{time.time_ns()}/mlflow.db"
    seeds = ",".join(map(str, range(runs // 2)))
    shown = in_terminal(
        folder,
        *("train.py", "data=folder", "data.root=tones", "feature=mel", "fold=0,1", f"seed={seeds}"),
        *(
            "trainer.max_epochs=6",
            "trainer.batch_size=8",
            "trainer.accelerator=cpu",
            f"hydra.launcher.n_jobs={WORKERS}",
        ),
        *(f"trainer.progress_bar={'null' if view else 'false'}", f"tracking.uri={uri}", "-m"),
    )
    assert f"{runs} of {runs} runs finished" in shown, shown[-2000:]
    tracker = Tracker(uri, "audio-mnist")
    times = [tracker.client.get_run(run.id).info for run in tracker.search(kind="train")]
    seconds = (max(t.end_time for t in times) - min(t.start_time for t in times)) / 1000
    trained = sum(t.end_time - t.start_time for t in times) / 1000
    return seconds, (WORKERS * seconds - trained) / (runs - WORKERS)


def main(runs: int = 200, repeats: int = 3) -> None:
    print(machine())
    ratios, between = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_tones(folder / "tones", clips=40)
        for _ in range(repeats):
            without, plain = sweep(folder, runs, view=False)
            with_view, viewed = sweep(folder, runs, view=True)
            ratios.append(with_view / without)
            between += [plain, viewed]
    low, high = min(ratios), max(ratios)
    print(f"{runs} runs, with the view / without: {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})")
    print(f"between two runs: {statistics.median(between):.2f} s ({min(between):.2f} to {max(between):.2f})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
