"""Variants of a recipe, each scored on the same clips -> one table of paired differences from the default."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from audio_mnist.ensemble.members import logged_predictions, probabilities_of
from audio_mnist.report import tables as report
from audio_mnist.scoring import calibration
from audio_mnist.scoring import intervals as scores
from audio_mnist.scoring import mixture as ensembling
from audio_mnist.tracking.tracker import RunRecord, Tracker

DEFAULT = "default"


@dataclass(frozen=True)
class Variant:
    """Out-of-fold probabilities of one variant's runs.

    Attributes:
        singles: feature -> mean accuracy of its runs' clips.
        right: (n,) booleans of the mean over features.
        loss: (n,) log loss of that mean, nats.
        clips: (n,) clip ids, in the order of the others.
    """

    singles: dict[str, float]
    right: np.ndarray
    loss: np.ndarray
    clips: tuple[str, ...]


def read(tracker: Tracker, runs: Sequence[RunRecord], title_of: dict[str, str]) -> Variant | None:
    """One variant from what its finished runs logged; None where a feature lacks a fold that another has.

    Args:
        tracker: of the runs.
        runs: of one variant.
        title_of: run id -> name of its feature (and of what else differs within the variant).
    """
    by_title: dict[str, list[pd.DataFrame]] = {}
    for run in sorted(runs, key=lambda run: int(run.tags["fold"])):
        by_title.setdefault(title_of[run.id], []).append(logged_predictions(tracker, run.id))
    tables = {title: pd.concat(parts, ignore_index=True) for title, parts in by_title.items()}
    first = next(iter(tables.values()))
    if any(table["clip_id"].tolist() != first["clip_id"].tolist() for table in tables.values()):
        return None
    names = [c.removeprefix("p:") for c in first.columns if c.startswith("p:")]
    truth = first["label"].map({name: number for number, name in enumerate(names)}).to_numpy()
    p = np.stack([probabilities_of(table) for table in tables.values()])  # (titles, n, C)
    joint = ensembling.combine(p, "mean")
    return Variant(
        {title: float((own.argmax(axis=1) == truth).mean()) for title, own in zip(tables, p, strict=True)},
        joint.argmax(axis=1) == truth,
        calibration.log_loss(joint, truth),
        tuple(first["clip_id"]),
    )


def table(variants: dict[str, Variant], speaker_of: dict[str, str] | None) -> Table:
    """A row a variant: accuracy of each feature and of their mean, and the mean's difference from the default.

    Args:
        variants: name -> variant, "default" among them, all of the same clips.
        speaker_of: clip id -> speaker where folds are by speaker: the intervals then resample speakers.
    """
    base = variants[DEFAULT]
    speakers = None if speaker_of is None else np.array([speaker_of[clip] for clip in base.clips])
    titles = list(dict.fromkeys(title for v in variants.values() for title in v.singles))
    drawn = Table()
    drawn.add_column("variant")
    for name in (*titles, "ensemble", "less default, points", "p", "log loss", "less default"):
        drawn.add_column(name, justify="right")
    for name, variant in variants.items():
        cells = [f"{variant.singles.get(title, float('nan')):.4f}" for title in titles]
        cells.append(f"{variant.right.mean():.4f}")
        if name == DEFAULT:
            cells += ["", "", f"{variant.loss.mean():.4f}", ""]
        else:
            paired = scores.compare(variant.right, base.right, speakers)
            cells.append(f"{100 * paired.difference:+.2f} ({100 * paired.low:+.2f} to {100 * paired.high:+.2f})")
            worse, low, high = scores.mean_difference(variant.loss, base.loss, speakers)
            cells += [
                f"{paired.p_value:.2g}",
                f"{variant.loss.mean():.4f}",
                f"{worse:+.3f} ({low:+.3f} to {high:+.3f})",
            ]
        drawn.add_row(Text(name), *cells, style="bold" if name == DEFAULT else "")
    return drawn


def render(
    tracker: Tracker,
    by_variant: Mapping[str, Sequence[RunRecord]],
    title_of: Mapping[str, dict[str, str]],
    speaker_of: dict[str, str] | None,
) -> str:
    """The whole table of a sweep over variants, with what stands under it; "" where there is nothing to compare.

    Args:
        tracker: of the runs.
        by_variant: name -> its runs, none where not all of them finished; two variants share a run where they are the
            same for its feature.
        title_of: name -> run id -> what tells a run from others of its variant and fold.
        speaker_of: clip id -> speaker where folds are by speaker.
    """
    left_out = [name for name, runs in by_variant.items() if not runs]
    by_variant = {name: runs for name, runs in by_variant.items() if runs}
    if len(by_variant) < 2 or DEFAULT not in by_variant:
        return ""
    variants: dict[str, Variant] = {}
    for name, own in sorted(by_variant.items(), key=lambda item: item[0] != DEFAULT):
        found = read(tracker, own, title_of[name])
        if found is not None and (not variants or found.clips == variants[DEFAULT].clips):
            variants[name] = found
        elif name == DEFAULT:
            return ""
        else:
            left_out.append(name)
    n = len(variants[DEFAULT].right)
    text = report.render(
        table(variants, speaker_of),
        "Each variant out of fold; its ensemble is the mean of its features' probabilities.",
    )
    by = "speakers are resampled" if speaker_of else "clips count as independent"
    text += f"n = {n} clips, the same for all; 95% intervals, {by}\n"
    if left_out:
        text += f"left out, since not all of their runs finished or they score other clips: {', '.join(left_out)}\n"
    return text
