"""Results of a sweep, as values."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from audio_mnist.data.split import ALL
from audio_mnist.report.tables import ENSEMBLE
from audio_mnist.tracking.tracker import RunRecord

FOUND = "found"  # variant: the settings that a search found
_METRICS = ("accuracy", "loss", "balanced_accuracy", "macro_f1")


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
        score: the leading score.
        seed: its random seed.
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
    score: str = "accuracy"
    seed: int = 0

    @property
    def finished(self) -> bool:
        """Whether the run finished."""
        return self.run is not None and self.run.status == "FINISHED"

    @property
    def cell(self) -> float | str:
        """The leading score, or a word where there is none."""
        if self.run is None:
            return "not run"
        return self.run.metrics[f"best/{self.score}"] if self.finished else self.run.status


@dataclass(frozen=True)
class Outcome:
    """Result of a sweep.

    Attributes:
        jobs: one for each planned run.
        caption: description of the table.
        notes: what a reader of the scores must know.
        ensemble: seed -> fold -> leading score of all features, weighed, where all of them finished that fold.
        comparison: the table of a sweep over variants or subsets, "" for others.
        seeds: what a sweep over seeds shows, "" for others.
        figures: name -> picture.
        tracked: whether the runs are tracked.
        finished_before: jobs that were finished before the sweep began.
        seconds: duration of the sweep.
        clips: number of clips that its folds score, each once.
    """

    jobs: tuple[JobOutcome, ...]
    caption: str
    notes: tuple[str, ...] = ()
    ensemble: dict[int, dict[int, float]] = field(default_factory=dict)
    comparison: str = ""
    seeds: str = ""
    figures: dict[str, Figure] = field(default_factory=dict)
    tracked: bool = True
    finished_before: int = 0
    seconds: float = 0.0
    clips: int = 0

    @property
    def unfinished(self) -> list[JobOutcome]:
        """Jobs that did not finish."""
        return [job for job in self.jobs if not job.finished]

    @property
    def run_ids(self) -> list[str]:
        """Ids of the finished runs, each once; of a search those with the found settings."""
        jobs = [job for job in self.jobs if job.variant == FOUND] or self.jobs
        return list(dict.fromkeys(job.run.id for job in jobs if job.run is not None and job.finished))

    def rows(self) -> dict[str, dict[int, float | str]]:
        """Return label -> fold -> leading score, the mean over seeds; a word where a run did not finish."""
        cells: dict[str, dict[int, list[float | str]]] = {}
        for job in self.jobs:
            cells.setdefault(job.label, {}).setdefault(job.fold, []).append(job.cell)
        for of_seed in self.ensemble.values():
            for fold, value in of_seed.items():
                cells.setdefault(ENSEMBLE, {}).setdefault(fold, []).append(value)
        return {label: {fold: _mean(some) for fold, some in of.items()} for label, of in cells.items()}

    def table(self) -> pd.DataFrame:
        """Return one row per job: run_id, overrides, variant, label, fold, seed, status, scores, loss, reason."""
        rows = []
        for job in self.jobs:
            metrics = job.run.metrics if job.run is not None and job.finished else {}
            row: dict[str, object] = {"run_id": job.run.id if job.run is not None else "", "overrides": job.overrides}
            row |= {"variant": job.variant, "label": job.label, "fold": job.fold, "seed": job.seed}
            row |= {"status": job.run.status if job.run is not None else "not run"}
            row |= {key: metrics.get(f"best/{key}") for key in _METRICS} | {"reason": job.reason}
            rows.append(row)
        return pd.DataFrame(rows)


def _mean(cells: list[float | str]) -> float | str:
    words = [cell for cell in cells if isinstance(cell, str)]
    return words[0] if words else float(np.mean([cell for cell in cells if not isinstance(cell, str)]))
