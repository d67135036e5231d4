"""Arrays -> matplotlib figures, without a display."""

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

from audio_mnist.scoring.calibration import Reliability


def confusion(truth: np.ndarray, predicted: np.ndarray, class_names: tuple[str, ...], title: str) -> Figure:
    """Confusion matrix with counts.

    Args:
        truth: (n,) class numbers.
        predicted: (n,) class numbers.
        class_names: C names.
        title: above the picture.
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
    """Accuracy against confidence, before and after calibration, with the clips of each bin below.

    Args:
        before: bins of the raw probabilities.
        after: bins of the calibrated ones.
        title: above the picture.
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
