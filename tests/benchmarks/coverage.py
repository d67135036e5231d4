"""How often the 95% intervals cover the truth, for a score and for a paired difference.

`python -m tests.benchmarks.coverage REPEATS` simulates answers of speakers who differ, over the
whole grid, and prints the two tables of docs/scoring.md. 100 repeats took 27 minutes on 2 busy cores.

The truth is the accuracy for a new speaker. A speaker's logit of being right is normally distributed. Unequal
numbers of clips per speaker are log-normal with standard deviation 0.8, a factor of nine between most extremes.
"""

import functools
import itertools
import sys
from collections.abc import Iterable
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit

from audio_mnist.scoring import intervals

SPEAKERS = (6, 10, 20, 40, 137)
CLIPS = (10, 50, 500)
SPREADS = (0.0, 0.5, 1.0, 1.5)
ACCURACIES = (0.7, 0.9, 0.97, 0.99)
PAIRS = ((0.7, 0.7), (0.9, 0.9), (0.99, 0.99), (0.9, 0.7), (0.99, 0.97))
ALIKE = (0.8, 0.0)  # share of the speaker effect's variance that two classifiers have in common
SAME_CLIPS = 0.6  # share of the clips that are as hard for the one classifier as for the other
_NODES = np.linspace(-8, 8, 401)
_WEIGHTS = np.exp(-0.5 * _NODES**2) / np.exp(-0.5 * _NODES**2).sum()


class Cell(NamedTuple):
    """One point of the grid; `second` and `alike` are None for a score."""

    speakers: int
    clips: int
    unequal: bool
    spread: float
    accuracy: float
    second: float | None = None
    alike: float | None = None


def scores() -> list[Cell]:
    """The grid of scores."""
    return [Cell(*one) for one in itertools.product(SPEAKERS, CLIPS, (False, True), SPREADS, ACCURACIES)]


def differences() -> list[Cell]:
    """The grid of paired differences."""
    grid = itertools.product(SPEAKERS, CLIPS[::2], (False, True), SPREADS, PAIRS, ALIKE)
    cells = [Cell(*one[:4], *one[4], one[5]) for one in grid]
    return [cell for cell in cells if cell.spread > 0 or cell.alike == ALIKE[0]]  # without an effect they are the same


@functools.cache
def centre(accuracy: float, spread: float) -> float:
    """The mean logit that gives a mean accuracy."""
    return float(brentq(lambda mean: expit(mean + spread * _NODES) @ _WEIGHTS - accuracy, -40, 40))


def coverage(cell: Cell, repeats: int, seed: int = 0) -> dict[str, float]:
    """Share of simulated intervals that cover the truth, their mean width, and how often p and interval disagree."""
    rng = np.random.default_rng([seed, *np.frombuffer(repr(cell).encode(), dtype=np.uint8)])
    covered, widths, disagree = [], [], 0
    for _ in range(repeats):
        sizes = np.full(cell.speakers, cell.clips)
        if cell.unequal:
            sizes = np.exp(rng.normal(0, 0.8, cell.speakers))
            sizes = np.maximum(2, np.rint(sizes / sizes.mean() * cell.clips)).astype(int)
        names = np.repeat(np.arange(cell.speakers), sizes)
        effects = rng.normal(size=(3, cell.speakers)) * cell.spread
        if cell.second is None or cell.alike is None:
            p = expit(centre(cell.accuracy, cell.spread) + effects[0])
            result = intervals.score(rng.random(len(names)) < p[names], names)
            truth = cell.accuracy
        else:
            first = expit(centre(cell.accuracy, cell.spread) + _mixed(effects[0], effects[1], cell.alike))
            second = expit(centre(cell.second, cell.spread) + _mixed(effects[0], effects[2], cell.alike))
            draws = rng.random((2, len(names)))
            draws[1] = np.where(rng.random(len(names)) < SAME_CLIPS, draws[0], draws[1])
            result = intervals.compare(draws[0] < first[names], draws[1] < second[names], names)
            truth = cell.accuracy - cell.second
            disagree += (result.p_value < 0.05) != (not result.low <= 0 <= result.high)
        covered.append(result.low - 1e-12 <= truth <= result.high + 1e-12)
        widths.append(result.high - result.low)
    return {"coverage": float(np.mean(covered)), "width": float(np.mean(widths)), "disagree": disagree}


def _mixed(shared: np.ndarray, own: np.ndarray, alike: float) -> np.ndarray:
    return np.sqrt(alike) * shared + np.sqrt(1 - alike) * own


def table(cells: Iterable[Cell], repeats: int) -> pd.DataFrame:
    """A row per cell: its settings, coverage, width, disagreements."""
    cells = list(cells)
    found = joblib.Parallel(n_jobs=-1, batch_size=4)(joblib.delayed(coverage)(cell, repeats) for cell in cells)
    return pd.DataFrame([cell._asdict() | one for cell, one in zip(cells, found, strict=True)])


def markdown(results: pd.DataFrame) -> str:
    """Least and mean coverage by number of speakers and by spread of the speaker effect."""
    spreads = sorted(results["spread"].unique())
    lines = ["| speakers | " + " | ".join(f"sd {spread:g}" for spread in spreads) + " |"]
    lines.append("| --- |" + " --- |" * len(spreads))
    for speakers, rows in results.groupby("speakers"):
        by = rows.groupby("spread")["coverage"]
        cells = [f"{low:.3f}, {mean:.3f}" for low, mean in zip(by.min(), by.mean(), strict=True)]
        lines.append(f"| {speakers} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(repeats: int) -> None:
    """Print both tables."""
    for name, cells in (("a score", scores()), ("a paired difference", differences())):
        results = table(cells, repeats)
        print(f"\n{name}: {len(cells)} cells, {repeats} repeats; least and mean coverage in each group of cells")
        print(markdown(results))
        print(results.sort_values("coverage").head(12).to_string())
        print("interval and p-value disagree:", int(results["disagree"].sum()), flush=True)


if __name__ == "__main__":
    from tests.benchmarks import coverage as importable  # functions of __main__ cannot be sent to other processes

    importable.main(int(sys.argv[1]))
