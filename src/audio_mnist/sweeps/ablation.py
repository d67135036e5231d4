"""Variants of a recipe, each scored on the same clips -> one table of paired differences from the default."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text
from scipy.stats import t as student

from audio_mnist.report import tables
from audio_mnist.report.tables import ENSEMBLE
from audio_mnist.scoring import calibration, intervals, measures, mixture
from audio_mnist.sweeps.outcome import JobOutcome
from audio_mnist.tracking.predictions import classes_of, logged_predictions, probabilities_of
from audio_mnist.tracking.tracker import AnyTracker

DEFAULT = "default"


@dataclass(frozen=True)
class Variant:
    """Out-of-fold answers of one variant's runs.

    Runs of several seeds count as one: each number is then the mean over seeds, so that no clip counts twice.

    Attributes:
        singles: title -> (n,) right answers of its runs, 0 to 1.
        right: (n,) right answers of the titles together, 0 to 1.
        loss: (n,) log loss of that ensemble, nats.
        clips: (n,) clip ids, in the order of the others.
        answers: (2, n) class numbers of one seed's ensemble: the true ones, those predicted.
        classes: C.
        by_seed: the variant of each seed; empty where there is one seed.
    """

    singles: dict[str, np.ndarray]
    right: np.ndarray
    loss: np.ndarray
    clips: tuple[str, ...]
    answers: np.ndarray
    classes: int
    by_seed: tuple["Variant", ...] = ()


def read(tracker: AnyTracker, jobs: Sequence[JobOutcome], combine: str = "mean") -> Variant | None:
    """Read one variant from what its finished runs logged.

    Args:
        tracker: where the runs are tracked.
        jobs: finished jobs of one variant.
        combine: how its features are joined: "mean", or "stack" with weights of the other folds.

    Returns:
        The variant; None where a feature or a seed lacks a fold that another has.
    """
    found = [
        _read_seed(tracker, [job for job in jobs if job.seed == seed], combine)
        for seed in sorted({job.seed for job in jobs})
    ]
    whole = [one for one in found if one is not None]
    if len(whole) < len(found) or any(
        one.clips != whole[0].clips or set(one.singles) != set(whole[0].singles) for one in whole
    ):
        return None
    return whole[0] if len(whole) == 1 else average(whole)


def average(variants: Sequence[Variant]) -> Variant:
    """Return the mean of one variant's seeds."""
    singles = {title: np.mean([one.singles[title] for one in variants], axis=0) for title in variants[0].singles}
    right, loss = (np.mean([getattr(one, key) for one in variants], axis=0) for key in ("right", "loss"))
    first = variants[0]
    return Variant(singles, right, loss, first.clips, first.answers, first.classes, tuple(variants))


def _read_seed(tracker: AnyTracker, jobs: Sequence[JobOutcome], combine: str) -> Variant | None:
    by_title: dict[str, dict[int, pd.DataFrame]] = {}
    for job in sorted(jobs, key=lambda job: job.fold):
        assert job.run is not None
        by_title.setdefault(job.title, {})[job.fold] = logged_predictions(tracker, job.run.id)
    joined = {title: pd.concat(list(parts.values()), ignore_index=True) for title, parts in by_title.items()}
    first = next(iter(joined.values()))
    if any(table["clip_id"].tolist() != first["clip_id"].tolist() for table in joined.values()):
        return None
    truth = first["label"].map({name: number for number, name in enumerate(classes_of(first))}).to_numpy()
    p = np.stack([probabilities_of(table) for table in joined.values()])  # (titles, n, C)
    if combine == "stack":
        parts = next(iter(by_title.values()))
        together = mixture.stack(p, truth, np.repeat(list(parts), [len(part) for part in parts.values()]))
    else:
        together = mixture.combine(p, combine)
    return Variant(
        {title: answers.argmax(axis=1) == truth for title, answers in zip(joined, p, strict=True)},
        together.argmax(axis=1) == truth,
        calibration.log_loss(together, truth),
        tuple(first["clip_id"]),
        np.stack([truth, together.argmax(axis=1)]),
        p.shape[2],
    )


def seed_rows(whole: Variant) -> list[tuple[str, np.ndarray, list[float]]]:
    """Return label, (n,) right answers averaged over seeds, and each seed's accuracy, of every row."""
    found = [
        (title, right, [float(one.singles[title].mean()) for one in whole.by_seed])
        for title, right in whole.singles.items()
    ]
    if len(whole.singles) > 1:
        found.append((ENSEMBLE, whole.right, [float(one.right.mean()) for one in whole.by_seed]))
    return found


def seed_sentence(whole: Variant, *, of_means: bool = False) -> str:
    """Say how much of a difference the seed alone can make.

    The variance over seeds is averaged over the rows; the rest is Student's 95% quantile of a difference.

    Args:
        whole: all seeds of one recipe, by feature.
        of_means: whether the difference is between means over these seeds, not between two runs.
    """
    of_seeds = np.array([values for _, _, values in seed_rows(whole)])  # (rows, seeds)
    spread = float(np.sqrt(of_seeds.var(axis=1, ddof=1).mean()))
    count = of_seeds.shape[1]
    reach = float(student.ppf(0.975, count - 1)) * np.sqrt(2 / (count if of_means else 1)) * spread
    what = f"two means of {count} seeds" if of_means else "two runs"
    return (
        f"The seed alone: accuracies of one recipe differ by {100 * spread:.2f} points (sd over seeds), so {what} "
        f"may differ by {100 * reach:.1f} points for no other reason."
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
    several = len(base.by_seed) > 1
    for name in (
        *titles,
        "ensemble",
        "minus default, points",
        "by seed" if several else "p",
        "log loss",
        "minus default",
    ):
        drawn.add_column(name, justify="right")
    for name, variant in variants.items():
        cells = [f"{variant.singles[title].mean():.4f}" if title in variant.singles else "-" for title in titles]
        cells.append(f"{variant.right.mean():.4f}")
        if name == DEFAULT:
            cells += ["", "", f"{variant.loss.mean():.4f}", ""]
        else:
            cells += _difference(variant, base, groups)
            worse, low, high = intervals.mean_difference(variant.loss, base.loss, groups)
            cells.append(f"{variant.loss.mean():.4f}")
            cells.append(f"{worse:+.3f} ({low:+.3f} to {high:+.3f})")
        drawn.add_row(Text(name), *cells, style="bold" if name == DEFAULT else "")
    return drawn


def class_scores(
    variants: Mapping[str, Variant], group_of: Mapping[str, str] | None, leading: str, base: str = ""
) -> str:
    """Tabulate balanced accuracy and macro F1 of ensembles; "" where classes are about equal and accuracy leads.

    Of several seeds each number is the mean; so are the ends of the intervals, which are then for a run of one seed.

    Args:
        variants: name -> variant, all of the same clips.
        group_of: clip id -> group where folds are by group.
        leading: the leading score, which comes first.
        base: name of the variant that the others are compared with, "" for none.
    """
    first = next(iter(variants.values()))
    if leading == "accuracy" and not measures.note(np.bincount(first.answers[0], minlength=first.classes), leading):
        return ""
    groups = groups_of(first, group_of)
    drawn = Table()
    drawn.add_column("")
    names = sorted((name for name in measures.MEASURES if name != "accuracy"), key=lambda name: name != leading)
    for measure in names:
        drawn.add_column(measures.MEASURES[measure], justify="right")
        drawn.add_column(f"minus {base}, points" if base else "95% interval", justify="right")
    for name, variant in variants.items():
        cells = []
        for measure in names:
            of_seeds = [(one.answers[0], one.answers[1], one.classes) for one in variant.by_seed or (variant,)]
            if base:
                value = float(np.mean([measures.value(measure, *of_seed) for of_seed in of_seeds]))
                beside = _class_difference(measure, variant, variants[base], groups) if name != base else ""
            else:
                score = intervals.average([measures.score(measure, *of_seed, groups) for of_seed in of_seeds])
                value, beside = score.value, f"{score.low:.4f} to {score.high:.4f}"
            cells += [f"{value:.4f}", beside]
        drawn.add_row(Text(name), *cells)
    several = "; of several seeds the mean, with the interval of one" if first.by_seed else ""
    return tables.render(drawn, f"Ensembles by scores that count classes alike{several}")


def _class_difference(measure: str, variant: Variant, base: Variant, groups: np.ndarray | None) -> str:
    pairs = zip(variant.by_seed or (variant,), base.by_seed or (base,), strict=True)
    found = [
        measures.compare(measure, one.answers[0], one.answers[1], other.answers[1], one.classes, groups)
        for one, other in pairs
    ]
    difference, low, high = 100 * np.mean([(one.difference, one.low, one.high) for one in found], axis=0)
    return f"{difference:+.2f} ({low:+.2f} to {high:+.2f})"


def _alike(one: Variant, other: Variant) -> bool:
    return one.clips == other.clips and len(one.by_seed) == len(other.by_seed)


def _difference(variant: Variant, base: Variant, groups: np.ndarray | None) -> list[str]:
    """Return the difference in points with its interval; then its p-value or, of several seeds, each seed's own."""
    if not base.by_seed:
        paired = intervals.compare(variant.right, base.right, groups)
        difference, low, high, last = paired.difference, paired.low, paired.high, f"{paired.p_value:.2g}"
    else:
        difference, low, high = intervals.mean_difference(variant.right, base.right, groups)
        within = [
            100 * (one.right.mean() - other.right.mean())
            for one, other in zip(variant.by_seed, base.by_seed, strict=True)
        ]
        last = ", ".join(f"{points:+.1f}" for points in within)
    return [f"{100 * difference:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})", last]


def render(
    tracker: AnyTracker, jobs: Sequence[JobOutcome], group_of: Mapping[str, str] | None, unit: str = "speaker"
) -> str:
    """Render the table of a sweep over variants, with what stands under it; "" where there is nothing to compare.

    Args:
        tracker: where the runs are tracked.
        jobs: all jobs of the sweep. Two variants share a run where they are the same for its feature.
        group_of: clip id -> group where folds are by group.
        unit: what a group is.
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
        if found is not None and (name == DEFAULT or _alike(found, variants[DEFAULT])):
            variants[name] = found
        elif name == DEFAULT:
            return ""
    left_out = [name for name in names if name not in variants]

    by = "recordings count as independent" if groups_of(variants[DEFAULT], group_of) is None else f"for other {unit}s"
    title = "Each variant out of fold; its ensemble is the mean of its features' probabilities."
    text = tables.render(table(variants, group_of), title)
    text += class_scores(variants, group_of, jobs[0].score, DEFAULT)
    text += f"n = {len(variants[DEFAULT].right)} recordings, the same for all; 95% intervals, {by}\n"
    if variants[DEFAULT].by_seed:
        text += "Every number is the mean over seeds; differences are paired within a seed.\n"
        text += f"{seed_sentence(variants[DEFAULT], of_means=True)}\n"
    if left_out:
        text += f"left out, since not all of their runs finished or they score other clips: {', '.join(left_out)}\n"
    return text
