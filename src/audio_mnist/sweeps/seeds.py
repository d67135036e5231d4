"""A recipe trained with several seeds -> one row: its mean, the interval over clips, the range over seeds."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table
from rich.text import Text

from audio_mnist.report import tables
from audio_mnist.scoring import intervals
from audio_mnist.sweeps.ablation import Variant, class_scores, groups_of, read, seed_rows, seed_sentence
from audio_mnist.sweeps.outcome import JobOutcome
from audio_mnist.tracking.tracker import AnyTracker


def render(
    tracker: AnyTracker, jobs: Sequence[JobOutcome], group_of: Mapping[str, str] | None, unit: str = "speaker"
) -> str:
    """Render the table of a sweep over seeds; "" for one seed, or where a run did not finish.

    Args:
        tracker: where the runs are tracked.
        jobs: all jobs of the sweep.
        group_of: clip id -> group where folds are by group.
        unit: what a group is.
    """
    if len({job.seed for job in jobs}) < 2 or not all(job.finished for job in jobs):
        return ""
    whole = read(tracker, jobs, combine="stack")
    if whole is None:
        return ""
    groups = groups_of(whole, group_of)
    by = f"other {unit}s" if groups is not None else "other recordings"
    title = f"Out of fold: means of {len(whole.by_seed)} seeds; n = {len(whole.right)} recordings, each counted once"
    text = "\n" + tables.render(table(whole, groups), title)
    text += class_scores({seed_rows(whole)[-1][0]: whole}, group_of, jobs[0].score)
    return text + f"95% intervals for {by}. {seed_sentence(whole)}\n"


def table(whole: Variant, groups: np.ndarray | None) -> Table:
    """Tabulate accuracy, its interval over clips and its range over seeds; of the ensemble also log loss.

    Args:
        whole: all seeds of one recipe, by feature.
        groups: (n,) groups that the intervals are about; None where recordings are independent.
    """
    drawn = Table()
    for name in ("", "accuracy", "95% interval", "over seeds", "log loss"):
        drawn.add_column(name, justify="left" if name == "" else "right")
    for label, right, of_seeds in seed_rows(whole):
        score, loss = intervals.score(right, groups), ""
        if label == tables.ENSEMBLE or len(whole.singles) == 1:
            loss = f"{whole.loss.mean():.4f}"
        span = f"{min(of_seeds):.4f} to {max(of_seeds):.4f}"
        drawn.add_row(Text(label), f"{score.value:.4f}", f"{score.low:.4f} to {score.high:.4f}", span, loss)
    return drawn
