"""Results of a sweep, as values."""

from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from audio_mnist.data.folds import ALL
from audio_mnist.tracking.tracker import RunRecord


@dataclass(frozen=True)
class JobOutcome:
    """Result of one job.

    Attributes:
        overrides: its overrides.
        variant: name of its variant.
        label: its row in the table.
        title: what tells it from other runs of its variant and fold.
        fold: the scored fold.
        run: the tracked run, None where there is none.
        reason: why it did not finish, "" where it did.
        subset: the share of the training clips that it was given.
        trained_on: number of its training clips, and of their speakers.
    """

    overrides: str
    variant: str
    label: str
    title: str
    fold: int
    run: RunRecord | None
    reason: str = ""
    subset: str = ALL
    trained_on: tuple[int, int] = (0, 0)

    @property
    def finished(self) -> bool:
        """Whether the run finished."""
        return self.run is not None and self.run.status == "FINISHED"

    @property
    def cell(self) -> float | str:
        """Accuracy, or a word where there is none."""
        if self.run is None:
            return "not run"
        return self.run.metrics["best/accuracy"] if self.finished else self.run.status


@dataclass(frozen=True)
class Outcome:
    """Result of a sweep.

    Attributes:
        jobs: one for each planned run.
        caption: description of the table.
        notes: what a reader of the scores must know.
        ensemble: fold -> accuracy of the mean of all features, where all of them finished that fold.
        comparison: the table of a sweep over variants or subsets, "" for others.
        figures: name -> picture.
        tracked: whether the runs are tracked.
        finished_before: jobs that were finished before the sweep began.
        seconds: duration of the sweep.
    """

    jobs: tuple[JobOutcome, ...]
    caption: str
    notes: tuple[str, ...] = ()
    ensemble: dict[int, float] = field(default_factory=dict)
    comparison: str = ""
    figures: dict[str, Figure] = field(default_factory=dict)
    tracked: bool = True
    finished_before: int = 0
    seconds: float = 0.0

    @property
    def unfinished(self) -> list[JobOutcome]:
        """Jobs that did not finish."""
        return [job for job in self.jobs if not job.finished]

    @property
    def run_ids(self) -> list[str]:
        """Ids of the finished runs, each once."""
        return list(dict.fromkeys(job.run.id for job in self.jobs if job.run is not None and job.finished))

    def table(self) -> pd.DataFrame:
        """Return one row per job: run_id, overrides, variant, label, fold, status, accuracy, loss, reason."""
        rows = []
        for job in self.jobs:
            metrics = job.run.metrics if job.run is not None and job.finished else {}
            row: dict[str, object] = {"run_id": job.run.id if job.run is not None else "", "overrides": job.overrides}
            row |= {"variant": job.variant, "label": job.label, "fold": job.fold}
            row |= {"status": job.run.status if job.run is not None else "not run"}
            row |= {key: metrics.get(f"best/{key}") for key in ("accuracy", "loss")} | {"reason": job.reason}
            rows.append(row)
        return pd.DataFrame(rows)
