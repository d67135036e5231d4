"""Arrays, clips and features -> matplotlib figures, without a display."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

from audio_mnist.features import FrontEnd, title_of
from audio_mnist.scoring.calibration import Reliability
from audio_mnist.scoring.curve import Curve

COLOURS = "magma"
ROUND_HZ = (50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)  # ticks of a frequency axis


class LearningCurve(Protocol):
    """A learning curve to draw: `sweeps.learning_curve.Learned`."""

    @property
    def unit(self) -> str: ...
    @property
    def sizes(self) -> np.ndarray: ...
    @property
    def accuracies(self) -> np.ndarray: ...
    @property
    def fitted(self) -> Curve: ...
    @property
    def sentence(self) -> str: ...


def confusion(truth: np.ndarray, predicted: np.ndarray, class_names: tuple[str, ...], title: str) -> Figure:
    """Draw a confusion matrix with counts.

    Args:
        truth: (n,) class numbers.
        predicted: (n,) class numbers.
        class_names: C names.
        title: title of the picture.
    """
    classes = len(class_names)
    matrix = confusion_matrix(truth, predicted, labels=np.arange(classes))
    side = min(20.0, 2.5 + 0.45 * classes)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    display = ConfusionMatrixDisplay(matrix, display_labels=class_names)
    rotation = 0 if max(map(len, class_names)) <= 2 else 90
    display.plot(ax=axes, cmap="Blues", include_values=classes <= 40, xticks_rotation=rotation)
    axes.set(title=title, xlabel="predicted", ylabel="true")
    return figure


def reliability(before: Reliability, after: Reliability, title: str) -> Figure:
    """Draw accuracy against confidence, before and after calibration, above the number of clips per bin.

    Args:
        before: bins of the raw probabilities.
        after: bins of the calibrated ones.
        title: title of the picture.
    """
    figure = Figure(figsize=(8.6, 5.0), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[3, 1])
    edges = np.linspace(0, 1, len(before.count) + 1)
    for (upper, lower), bins, name in zip(axes.T, (before, after), ("raw", "calibrated"), strict=True):
        upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
        upper.bar(edges[:-1], bins.accuracy, np.diff(edges), align="edge", color="#9ecae1", edgecolor="white")
        upper.plot(bins.confidence, bins.accuracy, "o", color="#08519c", markersize=4, clip_on=False)
        upper.set(title=f"{title}, {name}: ECE {bins.error:.4f}", xlim=(0, 1), ylim=(0, 1))
        lower.bar(edges[:-1], bins.count, np.diff(edges), align="edge", color="0.6", edgecolor="white")
        lower.set(xlabel="confidence")
        lower.set_yscale("symlog")
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("clips")
    return figure


def learning_curves(learned: Sequence[LearningCurve]) -> Figure:
    """Draw error rates by the size of the training set, each with its fitted curve and band to twice the size.

    Args:
        learned: one per unit that sizes are counted in.
    """
    figure = Figure(figsize=(5.2 * len(learned), 4.2), layout="constrained")
    for axis, one in zip(figure.subplots(1, len(learned), squeeze=False, sharey=True)[0], learned, strict=True):
        sizes = np.geomspace(one.sizes.min(), 2 * one.sizes.max(), 100)
        error, low, high = (100 * part for part in one.fitted.errors(sizes))
        axis.fill_between(sizes, low, high, color="#9ecae1", alpha=0.5, label="95% band")
        axis.plot(sizes, error, color="#08519c", label="fitted power law")
        axis.plot(one.sizes, 100 * (1 - one.accuracies), "o", color="#08519c", label="out of fold")
        axis.axvline(one.sizes.max(), color="0.6", linewidth=1, linestyle="--")
        axis.set(xscale="log", yscale="log", xlabel=f"training {one.unit}", title=one.sentence)
        for which in (axis.xaxis, axis.yaxis):
            which.set_major_formatter("{x:g}")
            which.set_minor_formatter("{x:g}")
        axis.tick_params(which="minor", labelsize="x-small")
        axis.title.set_fontsize("small")
    figure.axes[0].set_ylabel("error rate (%)")
    figure.axes[0].legend()
    return figure


def training_curves(curves: Mapping[str, Mapping[str, Sequence[Mapping[int, float]]]]) -> Figure:
    """Draw losses by epoch: one panel per row of a sweep, the mean of its runs as a line, each run thin behind it.

    Args:
        curves: label -> metric ("train/loss" or "fold/loss") -> epoch -> value, one mapping per run.
    """
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axis, (label, metrics) in zip(axes, curves.items(), strict=False):
        for (metric, runs), colour in zip(metrics.items(), ("#e6550d", "#08519c"), strict=True):
            for run in runs:
                axis.plot(list(run), list(run.values()), color=colour, alpha=0.25, linewidth=0.8)
            together = pd.DataFrame(runs).mean().sort_index()
            axis.plot(
                together.index, together, color=colour, label="training" if metric == "train/loss" else "scored fold"
            )
        axis.set(title=label, xlabel="epoch", yscale="log")
    for axis in axes[len(curves) :]:
        axis.set_axis_off()
    axes[0].set_ylabel("loss (nats)")
    axes[0].legend()
    return figure


def anatomy(clip: np.ndarray, rate_hz: int, fronts: dict[str, FrontEnd], title: str) -> Figure:
    """Draw one clip as a waveform and, below on the same time axis, each feature before scaling.

    Args:
        clip: (T,) samples.
        rate_hz: sample rate.
        fronts: name -> front end.
        title: title of the picture.
    """
    figure = Figure(figsize=(8.0, 2.0 + 2.4 * len(fronts)), layout="constrained")
    axes = figure.subplots(1 + len(fronts), 1, sharex=True, height_ratios=[1.2, *[2.0] * len(fronts)])
    axes = np.atleast_1d(axes)
    seconds = np.arange(len(clip)) / rate_hz
    axes[0].plot(seconds, clip, color="#08519c", linewidth=0.6)
    axes[0].set(title=title, ylabel="amplitude", xlim=(0, len(clip) / rate_hz))
    for axis, (name, front_end) in zip(axes[1:], fronts.items(), strict=True):
        with torch.no_grad():
            x = front_end.transform(torch.from_numpy(clip).view(1, 1, -1))[0, 0].numpy()  # (F, N)
        drawn = _image(axis, x, front_end, *limits(x[None], front_end))
        axis.set_title(title_of(name), loc="left", fontsize="medium")
        figure.colorbar(drawn, ax=axis, label=front_end.unit, extend="both")
    axes[-1].set_xlabel("time (s)")
    return figure


def grid(features: np.ndarray, front_end: FrontEnd, title: str, names: Sequence[str] | None = None) -> Figure:
    """Draw features side by side, in one colour scale, as the net receives them.

    Args:
        features: (n, F, N).
        front_end: front end that computed them.
        title: title of the picture.
        names: title of each feature; None for none.
    """
    columns = min(4, len(features))
    rows = -(-len(features) // columns)
    figure = Figure(figsize=(2.6 * columns + 1.2, 1.9 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    low, high = limits(features, front_end)
    for number, axis in enumerate(axes.flat):
        if number >= len(features):
            axis.set_axis_off()
            continue
        drawn = _image(axis, features[number], front_end, low, high)
        if names is not None:
            axis.set_title(names[number], fontsize="small")
        if number % columns:
            axis.set_ylabel("")
        if number >= len(features) - columns:
            axis.set_xlabel("time (s)")
            axis.tick_params(labelbottom=True)
    figure.colorbar(drawn, ax=axes, label=front_end.scaled_unit, shrink=0.8, extend="both")
    figure.suptitle(title, fontsize="medium")
    return figure


def durations(seconds: np.ndarray, window_s: float) -> Figure:
    """Draw a histogram of durations, and the window that clips are placed in."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axis = figure.add_subplot()
    axis.hist(seconds, bins=min(50, max(5, len(seconds) // 10)), color="#9ecae1", edgecolor="white")
    axis.axvline(window_s, color="#cb181d", linestyle="--", label=f"window, {window_s:.2f} s")
    axis.set(xlabel="duration (s)", ylabel="clips", title=f"{len(seconds)} clips")
    axis.legend(frameon=False)
    return figure


def classes(counts: pd.DataFrame) -> Figure:
    """Draw the number of clips per class.

    Args:
        counts: one row per class, one column per split.
    """
    figure = Figure(figsize=(min(20.0, 2.5 + 0.5 * len(counts)), 3.4), layout="constrained")
    axis = figure.add_subplot()
    below = np.zeros(len(counts))
    for split, colour in (("train", "#08519c"), ("test", "#9ecae1")):
        if split in counts:
            axis.bar(np.arange(len(counts)), counts[split], bottom=below, color=colour, label=split)
            below += counts[split].to_numpy()
    axis.set_xticks(np.arange(len(counts)), [str(name) for name in counts.index])
    axis.set(xlabel="class", ylabel="clips")
    if max(len(str(name)) for name in counts.index) > 3:
        axis.tick_params(axis="x", rotation=90)
    axis.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    return figure


def limits(features: np.ndarray, front_end: FrontEnd) -> tuple[float, float]:
    """Return the ends of the colour scale for (n, F, N) features: 99% of all values.

    Coefficient 0, the level of the whole clip, does not count.
    """
    shown = features[:, 1:] if front_end.row_label == "coefficient" and features.shape[1] > 1 else features
    low, high = np.percentile(shown, (0.5, 99.5))
    return float(low), float(high)


def _image(axis: Axes, x: np.ndarray, front_end: FrontEnd, low: float, high: float):
    """Draw (F, N) as an image; its axes are seconds and the values of the rows."""
    rows, frames = x.shape
    hop_s = front_end.hop / front_end.sample_rate_hz
    extent = (-hop_s / 2, (frames - 0.5) * hop_s, -0.5, rows - 0.5)
    drawn = axis.imshow(
        x, origin="lower", aspect="auto", interpolation="nearest", cmap=COLOURS, extent=extent, vmin=low, vmax=high
    )
    axis.set_yticks(*_ticks(front_end.row_values(), rows, front_end.row_label.endswith("(Hz)")))
    axis.set_ylabel(front_end.row_label)
    return drawn


def _ticks(values: np.ndarray, rows: int, in_hz: bool) -> tuple[np.ndarray, list[str]]:
    """Return positions and texts of ticks: round frequencies, or five rows."""
    if in_hz:
        rising = np.maximum.accumulate(values)
        ticks: dict[int, float] = {}
        for hz in reversed(ROUND_HZ):
            at = float(np.interp(hz, rising, np.arange(rows)))
            if rising[0] <= hz <= rising[-1] and at <= min(ticks.values(), default=rows) - rows / 14:  # texts apart
                ticks[hz] = at
        if len(ticks) >= 2:
            return np.array([*ticks.values()]), [f"{hz // 1000}k" if hz >= 1000 else str(hz) for hz in ticks]
    shown = np.unique(np.linspace(0, rows - 1, min(5, rows)).round().astype(int))
    return shown, [f"{values[row]:.0f}" for row in shown]
