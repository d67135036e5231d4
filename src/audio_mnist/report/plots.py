"""Clips and features -> matplotlib figures, without a display."""

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from audio_mnist.features import FrontEnd

COLOURS = "magma"


def anatomy(clip: np.ndarray, rate_hz: int, fronts: dict[str, FrontEnd], title: str) -> Figure:
    """One clip as a waveform and, below it on the same time axis, each feature before it is scaled.

    Args:
        clip: (T,) samples.
        rate_hz: of the samples.
        fronts: name -> front end.
        title: above the picture.
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
        axis.set_title(name, loc="left", fontsize="medium")
        figure.colorbar(drawn, ax=axis, label=front_end.unit, extend="both")
    axes[-1].set_xlabel("time (s)")
    return figure


def grid(features: np.ndarray, front_end: FrontEnd, title: str) -> Figure:
    """Features side by side, in one colour scale, as the net receives them.

    Args:
        features: (n, F, N).
        front_end: that they are of.
        title: above the picture.
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
        if number % columns:
            axis.set_ylabel("")
        if number >= len(features) - columns:
            axis.set_xlabel("time (s)")
            axis.tick_params(labelbottom=True)
    figure.colorbar(drawn, ax=axes, label=front_end.scaled_unit, shrink=0.8, extend="both")
    figure.suptitle(title, fontsize="medium")
    return figure


def durations(seconds: np.ndarray, window_s: float) -> Figure:
    """Histogram of durations, with the window that clips are placed in."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axis = figure.add_subplot()
    axis.hist(seconds, bins=min(50, max(5, len(seconds) // 10)), color="#9ecae1", edgecolor="white")
    axis.axvline(window_s, color="#cb181d", linestyle="--", label=f"window, {window_s:.2f} s")
    axis.set(xlabel="duration (s)", ylabel="clips", title=f"{len(seconds)} clips")
    axis.legend(frameon=False)
    return figure


def classes(counts: pd.DataFrame) -> Figure:
    """Clips of each class, a bar for each split: rows are classes, columns splits."""
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
    """Ends of the colour scale for (n, F, N): nearly all there is, without the level of the whole, coefficient 0."""
    shown = features[:, 1:] if front_end.row_label == "coefficient" and features.shape[1] > 1 else features
    low, high = np.percentile(shown, (0.5, 99.5))
    return float(low), float(high)


def _image(axis: Axes, x: np.ndarray, front_end: FrontEnd, low: float, high: float):
    """(F, N) as an image whose axes are seconds and what the rows are."""
    rows, frames = x.shape
    hop_s = front_end.hop / front_end.sample_rate_hz
    extent = (-hop_s / 2, (frames - 0.5) * hop_s, -0.5, rows - 0.5)
    drawn = axis.imshow(
        x, origin="lower", aspect="auto", interpolation="nearest", cmap=COLOURS, extent=extent, vmin=low, vmax=high
    )
    places = np.unique(np.linspace(0, rows - 1, min(5, rows)).round().astype(int))
    values = front_end.row_values()
    axis.set_yticks(places, [f"{values[place]:.0f}" for place in places])
    axis.set_ylabel(front_end.row_label)
    return drawn
