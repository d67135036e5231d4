"""`fold_predictions.csv`, the artifact with a run's predictions for its fold: written and read here."""

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd

from audio_mnist.tracking.run import Run
from audio_mnist.tracking.tracker import AnyTracker

FOLD_PREDICTIONS = "fold_predictions.csv"


def log_predictions(run: Run, clips: pd.DataFrame, probabilities: np.ndarray, class_names: Sequence[str]) -> str:
    """Log a run's predictions for its fold; return the text.

    Args:
        run: the run.
        clips: (n,) rows of the manifest.
        probabilities: (n, C).
        class_names: C names.
    """
    table = pd.DataFrame({"clip_id": clips["clip_id"].to_numpy(), "label": clips["label"].to_numpy()})
    table["predicted"] = np.asarray(class_names)[probabilities.argmax(axis=1)]
    columns = [f"p:{name}" for name in class_names]
    table = pd.concat([table, pd.DataFrame(probabilities, columns=columns)], axis=1)
    buffer = io.StringIO()
    table.to_csv(buffer, index=False, float_format="%.9g")  # 9 digits restore every float32
    run.log_text(buffer.getvalue(), FOLD_PREDICTIONS)
    return buffer.getvalue()


def logged_predictions(tracker: AnyTracker, run_id: str) -> pd.DataFrame:
    """Read a run's predictions for its fold: clip_id, label, predicted and a column `p:CLASS` per class.

    Raises:
        RunError: the run has none.
    """
    with tracker.artifact(run_id, FOLD_PREDICTIONS) as path:
        return pd.read_csv(path, dtype={"clip_id": str, "label": str, "predicted": str}, keep_default_na=False)


def probabilities_of(table: pd.DataFrame) -> np.ndarray:
    """Return the (n, C) float64 probabilities of a table of predictions."""
    return table[[c for c in table.columns if c.startswith("p:")]].to_numpy(dtype=np.float64)


def classes_of(table: pd.DataFrame) -> list[str]:
    """Return the class names of a table of predictions, in the order of its probabilities.

    >>> classes_of(pd.DataFrame(columns=["clip_id", "label", "predicted", "p:no", "p:yes"]))
    ['no', 'yes']
    """
    return [c.removeprefix("p:") for c in table.columns if c.startswith("p:")]
