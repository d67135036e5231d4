"""Arrays -> matplotlib figures, without a display."""

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix


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
