"""A running sweep: what its process knows, and what its runs find in its folder."""

import contextlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audio_mnist.sweeps.launchers import Launcher
    from audio_mnist.sweeps.plan import PlannedJob
    from audio_mnist.sweeps.search import Search
    from audio_mnist.sweeps.view import View

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
        unit: what a group is, such as "speaker".
        taken_over: job key -> finished run that is not trained again.
        resume_dir: folder of half-trained runs; None where none is kept.
        resume_id: id of that folder.
        lock: held for the length of the sweep.
        elsewhere: job number -> folder of a job that an earlier command started.
        died: job number -> why its process ended.
        search: the search that adds jobs; None for a plain sweep.
        trials: job number -> what its trial needs to find out whether to finish.
        view: what a person sees meanwhile; None for nothing.
        uri_override: the override that named the tracking store, as it was typed.
        began: when it began, s.
    """

    run_id: str
    uri: str | None
    experiment: str
    jobs: "list[PlannedJob]"
    folder: Path
    launcher: "Launcher"
    caption: str = ""
    notes: list[str] = field(default_factory=list)
    group_of: dict[str, str] | None = None
    unit: str = "speaker"
    taken_over: dict[str, str] = field(default_factory=dict)
    resume_dir: Path | None = None
    resume_id: str = ""
    lock: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    elsewhere: dict[int, Path] = field(default_factory=dict)
    died: dict[int, str] = field(default_factory=dict)
    search: "Search | None" = None
    trials: dict[int, dict[str, Any]] = field(default_factory=dict)
    view: "View | None" = None
    uri_override: str | None = None
    began: float = field(default_factory=time.monotonic)

    def folder_of(self, number: int) -> Path:
        """Return the folder that the job of that number writes into."""
        return self.elsewhere.get(number, self.folder / str(number))

    def write(self) -> None:
        """Write what the runs need into the sweep's folder. Any launcher that shares the file system works with it."""
        over = [number for number, planned in enumerate(self.jobs) if planned.job.key in self.taken_over]
        text = json.dumps({"run_id": self.run_id, "taken_over": over, "trials": self.trials})
        partial = self.folder / f"{_SWEEP_FILE}.partial"
        partial.write_text(text)
        os.replace(partial, self.folder / _SWEEP_FILE)


def parent_of(sweep_dir: Path) -> str | None:
    """Return the id of the tracked run that the runs of a sweep hang under."""
    path = sweep_dir / _SWEEP_FILE
    return json.loads(path.read_text())["run_id"] if path.exists() else None


def trial_of(sweep_dir: Path, number: int) -> dict[str, Any]:
    """Return what the trial of a job needs to find out whether to finish; {} for a job that runs to its end."""
    path = sweep_dir / _SWEEP_FILE
    trials = json.loads(path.read_text()).get("trials", {}) if path.exists() else {}
    found: dict[str, Any] = trials.get(str(number), {})
    return found


def is_taken_over(sweep_dir: Path, number: int) -> bool:
    """Tell whether the sweep's job of that number was finished before the sweep began."""
    path = sweep_dir / _SWEEP_FILE
    return path.exists() and number in json.loads(path.read_text())["taken_over"]
