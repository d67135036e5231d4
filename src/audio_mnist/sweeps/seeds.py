"""A recipe trained with several seeds -> one row: its mean, the interval over clips, the range over seeds."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table
from rich.text import Text
from scipy.stats import t as student

from audio_mnist.report import tables
from audio_mnist.scoring import intervals
from audio_mnist.sweeps.ablation import Variant, class_scores, groups_of, read
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
    text += class_scores({rows(whole)[-1][0]: whole}, group_of, jobs[0].score)
    return text + f"95% intervals for {by}. {sentence(whole)}\n"


def table(whole: Variant, groups: np.ndarray | None) -> Table:
    """Tabulate accuracy, its interval over clips and its range over seeds; of the ensemble also log loss.

    Args:
        whole: all seeds of one recipe, by feature.
        groups: (n,) groups that the intervals are about; None where recordings are independent.
    """
    drawn = Table()
    for name in ("", "accuracy", "95% interval", "over seeds", "log loss"):
        drawn.add_column(name, justify="left" if name == "" else "right")
    for label, right, of_seeds in rows(whole):
        score, loss = intervals.score(right, groups), ""
        if label == tables.ENSEMBLE or len(whole.singles) == 1:
            loss = f"{whole.loss.mean():.4f}"
        span = f"{min(of_seeds):.4f} to {max(of_seeds):.4f}"
        drawn.add_row(Text(label), f"{score.value:.4f}", f"{score.low:.4f} to {score.high:.4f}", span, loss)
    return drawn


def rows(whole: Variant) -> list[tuple[str, np.ndarray, list[float]]]:
    """Return label, (n,) right answers averaged over seeds, and each seed's accuracy, of every row."""
    found = [
        (title, right, [float(one.singles[title].mean()) for one in whole.by_seed])
        for title, right in whole.singles.items()
    ]
    if len(whole.singles) > 1:
        found.append((tables.ENSEMBLE, whole.right, [float(one.right.mean()) for one in whole.by_seed]))
    return found


def sentence(whole: Variant) -> str:
    """Say how much of a difference between two runs the seed alone can make.

    The variance over seeds is averaged over the rows; the rest is Student's 95% quantile of a difference.
    """
    of_seeds = np.array([values for _, _, values in rows(whole)])  # (rows, seeds)
    spread = float(np.sqrt(of_seeds.var(axis=1, ddof=1).mean()))
    reach = float(student.ppf(0.975, of_seeds.shape[1] - 1)) * np.sqrt(2) * spread
    return (
        f"The seed alone: accuracies of one recipe differ by {100 * spread:.2f} points (sd over seeds), so two runs "
        f"may differ by {100 * reach:.1f} points for no other reason."
    )
