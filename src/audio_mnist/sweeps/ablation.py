"""Variants of a recipe, each scored on the same clips -> one table of paired differences from the default."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from audio_mnist.report import tables
from audio_mnist.scoring import calibration, intervals, mixture
from audio_mnist.sweeps.outcome import JobOutcome
from audio_mnist.tracking.predictions import classes_of, logged_predictions, probabilities_of
from audio_mnist.tracking.tracker import AnyTracker

DEFAULT = "default"


@dataclass(frozen=True)
class Variant:
    """Out-of-fold probabilities of one variant's runs.

    Attributes:
        singles: title -> accuracy of its runs' clips.
        right: (n,) booleans of the mean over titles.
        loss: (n,) log loss of that mean, nats.
        clips: (n,) clip ids, in the order of the others.
    """

    singles: dict[str, float]
    right: np.ndarray
    loss: np.ndarray
    clips: tuple[str, ...]


def read(tracker: AnyTracker, jobs: Sequence[JobOutcome]) -> Variant | None:
    """Read one variant from what its finished runs logged.

    Args:
        tracker: where the runs are tracked.
        jobs: finished jobs of one variant.

    Returns:
        The variant; None where a feature lacks a fold that another has.
    """
    by_title: dict[str, list[pd.DataFrame]] = {}
    for job in sorted(jobs, key=lambda job: job.fold):
        assert job.run is not None
        by_title.setdefault(job.title, []).append(logged_predictions(tracker, job.run.id))
    joined = {title: pd.concat(parts, ignore_index=True) for title, parts in by_title.items()}
    first = next(iter(joined.values()))
    if any(table["clip_id"].tolist() != first["clip_id"].tolist() for table in joined.values()):
        return None
    truth = first["label"].map({name: number for number, name in enumerate(classes_of(first))}).to_numpy()
    p = np.stack([probabilities_of(table) for table in joined.values()])  # (titles, n, C)
    mean = mixture.combine(p, "mean")
    return Variant(
        {title: float((answers.argmax(axis=1) == truth).mean()) for title, answers in zip(joined, p, strict=True)},
        mean.argmax(axis=1) == truth,
        calibration.log_loss(mean, truth),
        tuple(first["clip_id"]),
    )


def groups_of(variant: Variant, group_of: Mapping[str, str] | None) -> np.ndarray | None:
    """Return the (n,) groups of a variant's clips; None where folds are not by group, or one group is scored."""
    groups = None if group_of is None else np.array([group_of[clip] for clip in variant.clips])
    return groups if groups is not None and len(np.unique(groups)) > 1 else None


def table(variants: Mapping[str, Variant], group_of: Mapping[str, str] | None) -> Table:
    """Tabulate each feature's accuracy, that of their mean, and the mean's difference from the default.

    Args:
        variants: name -> variant, "default" among them, all of the same clips.
        group_of: clip id -> group, such as its speaker, where folds are by group; intervals are for other groups.
    """
    base = variants[DEFAULT]
    groups = groups_of(base, group_of)
    titles = list(dict.fromkeys(title for v in variants.values() for title in v.singles))
    drawn = Table()
    drawn.add_column("variant")
    for name in (*titles, "ensemble", "minus default, points", "p", "log loss", "minus default"):
        drawn.add_column(name, justify="right")
    for name, variant in variants.items():
        cells = [f"{variant.singles.get(title, float('nan')):.4f}" for title in titles]
        cells.append(f"{variant.right.mean():.4f}")
        if name == DEFAULT:
            cells += ["", "", f"{variant.loss.mean():.4f}", ""]
        else:
            paired = intervals.compare(variant.right, base.right, groups)
            cells.append(f"{100 * paired.difference:+.2f} ({100 * paired.low:+.2f} to {100 * paired.high:+.2f})")
            worse, low, high = intervals.mean_difference(variant.loss, base.loss, groups)
            cells += [f"{paired.p_value:.2g}", f"{variant.loss.mean():.4f}"]
            cells.append(f"{worse:+.3f} ({low:+.3f} to {high:+.3f})")
        drawn.add_row(Text(name), *cells, style="bold" if name == DEFAULT else "")
    return drawn


def render(tracker: AnyTracker, jobs: Sequence[JobOutcome], group_of: Mapping[str, str] | None) -> str:
    """Render the table of a sweep over variants, with what stands under it; "" where there is nothing to compare.

    Args:
        tracker: where the runs are tracked.
        jobs: all jobs of the sweep. Two variants share a run where they are the same for its feature.
        group_of: clip id -> group where folds are by group.
    """
    names = sorted(dict.fromkeys(job.variant for job in jobs), key=lambda name: name != DEFAULT)  # the default first
    by_variant = {name: [job for job in jobs if job.variant == name] for name in names}
    complete = {name: of_variant for name, of_variant in by_variant.items() if all(job.finished for job in of_variant)}
    if len(complete) < 2 or DEFAULT not in complete:
        return ""

    # variants that score the default's clips
    variants: dict[str, Variant] = {}
    for name, of_variant in complete.items():
        found = read(tracker, of_variant)
        if found is not None and (name == DEFAULT or found.clips == variants[DEFAULT].clips):
            variants[name] = found
        elif name == DEFAULT:
            return ""
    left_out = [name for name in names if name not in variants]

    by = "recordings count as independent" if groups_of(variants[DEFAULT], group_of) is None else "for other speakers"
    title = "Each variant out of fold; its ensemble is the mean of its features' probabilities."
    text = tables.render(table(variants, group_of), title)
    text += f"n = {len(variants[DEFAULT].right)} recordings, the same for all; 95% intervals, {by}\n"
    if left_out:
        text += f"left out, since not all of their runs finished or they score other clips: {', '.join(left_out)}\n"
    return text
