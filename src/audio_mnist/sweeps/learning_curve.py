"""Runs on nested shares of the training clips -> a table, a curve, and what more clips would bring."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from audio_mnist.data.split import ALL
from audio_mnist.report import plots, tables
from audio_mnist.scoring import curve, intervals
from audio_mnist.scoring.curve import Curve
from audio_mnist.sweeps.ablation import Variant, class_scores, groups_of, read, seed_sentence
from audio_mnist.sweeps.outcome import JobOutcome
from audio_mnist.tracking.tracker import AnyTracker


@dataclass(frozen=True)
class Learned:
    """Accuracies by the size of the training set, counted in one unit.

    Attributes:
        unit: "clips" or "speakers".
        sizes: (K,) mean number of units that a run trained on.
        accuracies: (K,) out of fold.
        fitted: the curve.
    """

    unit: str
    sizes: np.ndarray
    accuracies: np.ndarray
    fitted: Curve

    @property
    def sentence(self) -> str:
        """Gain in accuracy from twice the units, in words."""
        gain, low, high = (100 * part for part in self.fitted.gain(float(self.sizes.max())))
        return f"Twice the {self.unit} would bring about {gain:.1f} points ({low:.1f} to {high:.1f})."


def render(
    tracker: AnyTracker, jobs: Sequence[JobOutcome], group_of: dict[str, str] | None, unit: str = "speaker"
) -> tuple[str, Figure | None]:
    """Describe a learning curve as text and as a picture; "" and None where the whole set or any share is lacking.

    Args:
        tracker: where the runs are tracked.
        jobs: all jobs of the sweep.
        group_of: clip id -> group where folds are by group.
        unit: what a group is.
    """
    by_subset: dict[str, list[JobOutcome]] = {}
    for job in jobs:
        by_subset.setdefault(job.subset, []).append(job)
    complete = {name: some for name, some in by_subset.items() if all(job.finished for job in some)}
    found = {name: read(tracker, some) for name, some in complete.items()}
    whole = found.get(ALL)
    shares = {name: one for name, one in found.items() if whole is not None and one is not None}
    in_order = sorted(shares, key=lambda name: (name.split("/")[0], -_size(complete[name], "clips")))
    shares = {name: shares[name] for name in in_order if whole is not None and shares[name].clips == whole.clips}
    if whole is None or len(shares) < 2:
        return "", None
    groups = groups_of(whole, group_of)
    text = tables.render(_table(complete, shares, groups), "Out of fold, by the training clips that the runs had")
    text += class_scores(shares, group_of, jobs[0].score)
    learned = [_learned(counted, complete, shares, groups) for counted in ("clips", "speakers")]
    curves = [one for one in learned if one is not None]
    about = "other recordings" if groups is None else f"other {unit}s"
    text += f"n = {len(whole.right)} recordings, the same for all; 95% intervals for {about}\n"
    text += f"{seed_sentence(whole, of_means=True)}\n" if whole.by_seed else ""
    text += "".join(f"{one.sentence}\n" for one in curves)
    missing = [name for name in by_subset if name not in shares]
    if missing:
        text += f"left out, since not all of their runs finished: {', '.join(missing)}\n"
    return text, plots.learning_curves(curves) if curves else None


def _table(jobs: dict[str, list[JobOutcome]], shares: dict[str, Variant], groups: np.ndarray | None) -> Table:
    drawn = Table()
    for name in ("trained on", "clips", "speakers", "accuracy", "95% interval", "log loss"):
        drawn.add_column(name, justify="left" if name == "trained on" else "right")
    for name, share in shares.items():
        score = intervals.score(share.right, groups)
        sizes = [f"{_size(jobs[name], unit):.0f}" for unit in ("clips", "speakers")]
        interval = f"{score.low:.4f} to {score.high:.4f}"
        drawn.add_row(name, *sizes, f"{score.value:.4f}", interval, f"{share.loss.mean():.4f}")
    return drawn


def _size(jobs: list[JobOutcome], unit: str) -> float:
    return float(np.mean([job.trained_on[0 if unit == "clips" else 1] for job in jobs]))


def _learned(
    unit: str, jobs: dict[str, list[JobOutcome]], shares: dict[str, Variant], groups: np.ndarray | None
) -> Learned | None:
    """Fit the curve of one unit; None where no share is counted in it."""
    names = sorted((n for n in shares if n == ALL or n.startswith(f"{unit}/")), key=lambda n: _size(jobs[n], unit))
    sizes = np.array([_size(jobs[name], unit) for name in names])
    if len(np.unique(sizes)) < 2:
        return None
    wrong = np.stack([1.0 - shares[name].right for name in names], axis=1)  # (n, K)
    which = np.arange(len(wrong)) if groups is None else np.unique(groups, return_inverse=True)[1]
    summed = np.stack([np.bincount(which, weights=column) for column in wrong.T], axis=1)  # (G, K)
    clips = np.bincount(which).astype(float)
    return Learned(unit, sizes, 1 - wrong.mean(axis=0), curve.fit(sizes, summed, clips))
