"""Scores -> tables and sentences."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from audio_mnist.features import title_of
from audio_mnist.scoring.calibration import Reliability
from audio_mnist.scoring.intervals import FEW, Paired, Score

ENSEMBLE = "Ensemble"


def member_labels(recipes: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Name every recipe by its feature, and by the settings that differ between recipes of that feature.

    Args:
        recipes: fingerprint -> config; a run's fold does not count.

    >>> member_labels({key: {"feature": {"name": "mel"}, "seed": seed} for key, seed in (("a", 0), ("b", 1))})
    {'a': 'Mel seed=0', 'b': 'Mel seed=1'}
    """
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


def fold_caption(clips: int, scored: int, count: int) -> str:
    """Describe a fold table in one line."""
    folds = f"{count} folds" if scored == count else f"{scored} of {count} folds"
    return f"Accuracy on each scored fold; n = {clips} clips in {folds}"


def mean_sd(values: Sequence[float]) -> str:
    """Format the mean and sample standard deviation over folds.

    >>> mean_sd([0.9, 1.0])
    '0.9500 ± 0.0707'
    """
    if not values:
        return "-"
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")


def score_table(rows: Mapping[str, Score]) -> Table:
    """Tabulate accuracies with interval and n, and the number of speakers that the interval resamples."""
    table = Table()
    grouped = any(s.speakers for s in rows.values())
    for name in ("", "accuracy", "95% interval", "n", *(["speakers"] if grouped else [])):
        table.add_column(name, justify="left" if name == "" else "right")
    for label, s in rows.items():
        style = "bold" if label == ENSEMBLE else ""
        cells = [f"{s.accuracy:.4f}", f"{s.low:.4f} to {s.high:.4f}", str(s.n), *([str(s.speakers)] if grouped else [])]
        table.add_row(Text(label), *cells, style=style)
    return table


def paired_line(first: str, second: str, result: Paired) -> str:
    """Describe the comparison of two classifiers on the same clips in one sentence."""
    over = f" over {result.speakers} speakers" if result.speakers else ""
    return (
        f"{first} minus {second}, paired on {result.n} recordings{over}: {100 * result.difference:+.2f} points "
        f"(95% interval {100 * result.low:+.2f} to {100 * result.high:+.2f}, p = {result.p_value:.2g}); "
        f"only one right: {first} {result.only_first}, {second} {result.only_second}"
    )


def speakers_line(speakers: int) -> str:
    """Explain a wide interval where speakers are few, "" where they are not.

    >>> speakers_line(6)
    'Only 6 speakers are scored, so the intervals are wide: they hold for other speakers too.\\n'
    """
    if not 0 < speakers < FEW:
        return ""
    return f"Only {speakers} speakers are scored, so the intervals are wide: they hold for other speakers too.\n"


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
