"""A running sweep: what its process knows, and what its runs find in its folder."""

import contextlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from audio_mnist.sweeps.launchers import Launcher

if TYPE_CHECKING:
    from audio_mnist.sweeps.plan import PlannedJob

RESULT_FILE = "result.json"  # in a job's folder: metrics of a run that is not tracked
ERROR_FILE = "error.txt"  # in a job's folder: why it ended before it was a tracked run
RUNS_FILE = "runs.csv"  # in the sweep's folder, at its end: one row per run
_SWEEP_FILE = "sweep.json"  # in the sweep's folder: its tracked run, and the jobs that are finished already


@dataclass
class Sweep:
    """A sweep in the process that started it.

    Attributes:
        run_id: the sweep's tracked run.
        uri: where runs are tracked; None where they are not.
        experiment: their experiment.
        jobs: the planned runs.
        folder: folder that they share.
        launcher: how they are started.
        caption: description of the table.
        notes: what a reader of the scores must know.
        group_of: clip id -> group, such as its speaker, where folds are by group.
        taken_over: job key -> finished run that is not trained again.
        resume_dir: folder of half-trained runs; None where none is kept.
        resume_id: id of that folder.
        lock: held for the length of the sweep.
        uri_override: the override that named the tracking store, as it was typed.
        began: when it began, s.
    """

    run_id: str
    uri: str | None
    experiment: str
    jobs: "list[PlannedJob]"
    folder: Path
    launcher: Launcher
    caption: str = ""
    notes: list[str] = field(default_factory=list)
    group_of: dict[str, str] | None = None
    taken_over: dict[str, str] = field(default_factory=dict)
    resume_dir: Path | None = None
    resume_id: str = ""
    lock: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    uri_override: str | None = None
    began: float = field(default_factory=time.monotonic)

    def write(self) -> None:
        """Write what the runs need into the sweep's folder. Any launcher that shares the file system works with it."""
        over = [number for number, planned in enumerate(self.jobs) if planned.job.key in self.taken_over]
        text = json.dumps({"run_id": self.run_id, "taken_over": over})
        (self.folder / _SWEEP_FILE).write_text(text)


def parent_of(sweep_dir: Path) -> str | None:
    """Return the id of the tracked run that the runs of a sweep hang under."""
    path = sweep_dir / _SWEEP_FILE
    return json.loads(path.read_text())["run_id"] if path.exists() else None


def is_taken_over(sweep_dir: Path, number: int) -> bool:
    """Tell whether the sweep's job of that number was finished before the sweep began."""
    path = sweep_dir / _SWEEP_FILE
    return path.exists() and number in json.loads(path.read_text())["taken_over"]
