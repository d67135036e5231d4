"""Scores -> tables and sentences."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from audio_mnist.config import fingerprint, recipe
from audio_mnist.features import title_of
from audio_mnist.scoring.calibration import Reliability
from audio_mnist.scoring.intervals import FEW, Paired, Score
from audio_mnist.scoring.measures import MEASURES

ENSEMBLE = "Ensemble"


def member_labels(recipes: Mapping[str, dict[str, Any]], *, seeds: bool = False) -> dict[str, str]:
    """Name every recipe by its feature, and by the settings that differ between recipes of that feature.

    Args:
        recipes: fingerprint -> config; a run's fold does not count.
        seeds: whether seeds do not count either. Recipes that differ in the seed alone then share a name.

    >>> member_labels({key: {"feature": {"name": "mel"}, "seed": seed} for key, seed in (("a", 0), ("b", 1))})
    {'a': 'Mel seed=0', 'b': 'Mel seed=1'}
    """
    if seeds:
        alike = {key: _without_seed(config) for key, config in recipes.items()}
        firsts = {text: key for key, text in reversed(alike.items())}
        named = member_labels({key: recipes[key] | {"seed": 0} for key in firsts.values()})
        return {key: named[firsts[text]] for key, text in alike.items()}
    flat = {key: _flatten(value) for key, value in recipes.items()}
    labels = {}
    for key, config in flat.items():
        rivals = [other for other in flat.values() if other["feature.name"] == config["feature.name"]]
        differing = sorted(
            k for k in config if k not in ("fold", "feature.name") and len({str(other.get(k)) for other in rivals}) > 1
        )
        labels[key] = " ".join([title_of(config["feature.name"]), *(f"{k}={config[k]}" for k in differing)])
    # two features of one title, or recipes that differ in nothing that is shown
    for distinguish in (lambda key: flat[key]["feature.name"], lambda key: key[:6]):
        counts = Counter(labels.values())
        labels = {k: f"{label} ({distinguish(k)})" if counts[label] > 1 else label for k, label in labels.items()}
    return labels


def _without_seed(config: dict[str, Any]) -> str:
    return fingerprint({key: value for key, value in recipe(config).items() if key not in ("fold", "seed")})


def fold_table(rows: Mapping[str, Mapping[int, float | str]], folds: Sequence[int]) -> Table:
    """Tabulate accuracies by fold.

    Args:
        rows: label -> fold number -> accuracy, or a word where there is none.
        folds: fold numbers to show, in order.
    """
    table = Table()
    table.add_column("")
    for fold in folds:
        table.add_column(f"fold {fold}", justify="right")
    table.add_column("mean ± sd", justify="right")
    for label, cells in rows.items():
        values = [v for v in cells.values() if isinstance(v, float)]
        shown = [_cell(cells.get(fold, "-")) for fold in folds]
        table.add_row(Text(label), *shown, mean_sd(values), style="bold" if label == ENSEMBLE else "")
    return table


def fold_caption(clips: int, scored: int, count: int, measure: str = "accuracy") -> str:
    """Describe a fold table in one line."""
    name = MEASURES[measure][0].upper() + MEASURES[measure][1:]
    folds = f"{count} folds" if scored == count else f"{scored} of {count} folds"
    return f"{name} on each scored fold; n = {clips} clips in {folds}"


def metric_name(label: str) -> str:
    """Replace what MLflow does not allow in a metric's name.

    >>> metric_name("Mel seed=0")
    'Mel seed_0'
    """
    return "".join(c if c.isalnum() or c in "._- " else "_" for c in label)


def mean_sd(values: Sequence[float]) -> str:
    """Format the mean and sample standard deviation over folds.

    >>> mean_sd([0.9, 1.0])
    '0.9500 ± 0.0707'
    """
    if not values:
        return "-"
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")


def score_table(rows: Mapping[str, Mapping[str, Score]], unit: str = "speaker") -> Table:
    """Tabulate scores with interval, n, and the number of groups that the intervals are about.

    Args:
        rows: measure -> label -> score; the leading measure first.
        unit: what a group is.
    """
    table = Table()
    leading = next(iter(rows.values()))
    grouped, seeded = (any(getattr(s, key) for s in leading.values()) for key in ("speakers", "seeds"))
    for name in ("", *(part for measure in rows for part in (MEASURES[measure], "95% interval")), "n"):
        table.add_column(name, justify="left" if name == "" else "right")
    if seeded:
        table.add_column("over seeds", justify="right")
    if grouped:
        table.add_column(f"{unit}s", justify="right")
    for label, s in leading.items():
        cells = []
        for of_label in (of_measure[label] for of_measure in rows.values()):
            cells += [f"{of_label.value:.4f}", f"{of_label.low:.4f} to {of_label.high:.4f}"]
        span = f"{min(s.seeds):.4f} to {max(s.seeds):.4f}" if s.seeds else ""
        cells += [str(s.n), *([span] if seeded else []), *([str(s.speakers)] if grouped else [])]
        table.add_row(Text(label), *cells, style="bold" if label == ENSEMBLE else "")
    return table


def paired_line(first: str, second: str, results: Mapping[str, Paired], unit: str = "speaker") -> str:
    """Describe the comparison of two classifiers on the same clips in one sentence.

    Args:
        first: name of the first.
        second: name of the second.
        results: measure -> comparison; the leading measure first.
        unit: what a group is.
    """
    (leading, result), *others = results.items()
    over = f" over {result.speakers} {unit}s" if result.speakers else ""
    of = "" if leading == "accuracy" else f" of {MEASURES[leading]}"
    line = (
        f"{first} minus {second}, paired on {result.n} recordings{over}: {_points(result, of)}; "
        f"only one right: {first} {result.only_first}, {second} {result.only_second}"
    )
    return line + "".join(f"; {MEASURES[measure]} {_points(other)}" for measure, other in others)


def _points(result: Paired, of: str = "") -> str:
    return (
        f"{100 * result.difference:+.2f} points{of} "
        f"(95% interval {100 * result.low:+.2f} to {100 * result.high:+.2f}, p = {result.p_value:.2g})"
    )


def speakers_line(speakers: int, unit: str = "speaker") -> str:
    """Explain a wide interval where speakers, or other groups, are few, "" where they are not.

    >>> speakers_line(6)
    'Only 6 speakers are scored, so the intervals are wide: they hold for other speakers too.\\n'
    """
    if not 0 < speakers < FEW:
        return ""
    return f"Only {speakers} {unit}s are scored, so the intervals are wide: they hold for other {unit}s too.\n"


def calibration_line(label: str, before: Reliability, after: Reliability, temperature: float) -> str:
    """Describe the effect of temperature scaling in one sentence."""
    line = f"expected calibration error of {label}, out of fold: {before.error:.4f}"
    if temperature == 1:
        return line
    return f"{line}, after temperature scaling {after.error:.4f} (T = {temperature:.2f}, cross-fitted)"


def render(*parts: Table | str) -> str:
    """Render tables and lines as plain text, as wide as they need."""
    buffer = io.StringIO()
    # tables are as wide as their content; in a notebook rich would display them and leave the text without them
    console = Console(file=buffer, width=100_000, color_system=None, force_jupyter=False)
    for part in parts:
        if isinstance(part, str):
            buffer.write(part + "\n")
        else:
            console.print(part)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _cell(value: float | str) -> str:
    return f"{value:.4f}" if isinstance(value, float) else value


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, part in value.items():
        flat |= _flatten(part, f"{prefix}{key}.") if isinstance(part, dict) else {f"{prefix}{key}": part}
    return flat
