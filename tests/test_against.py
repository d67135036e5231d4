"""`ensemble.py against=RUN`: two ensembles on the same clips."""

import re

import numpy as np
import pandas as pd
import pytest

from audio_mnist.errors import RunError
from audio_mnist.tracking.tracker import newest
from tests.conftest import Trained


def test_against_is_the_paired_difference_of_what_was_written(trained: Trained, capsys: pytest.CaptureFixture) -> None:
    """The difference of accuracies on all clips, each class's clips counted, and log loss, from predictions.csv."""
    before = trained.join("stack")
    capsys.readouterr()
    earlier = newest(trained.tracker.search(kind="ensemble"))
    assert earlier is not None
    after = trained.join("mean", f"against={earlier.id}")
    text = capsys.readouterr().out
    run = newest(trained.tracker.search(kind="ensemble"))
    assert run is not None and run.id != earlier.id
    ours, theirs = (t[t["scored"] == "out of fold"].set_index("clip_id") for t in (after, before))
    right = [(t["label"] == t["predicted"]).to_numpy() for t in (ours, theirs)]
    assert run.metrics["against/accuracy"] == pytest.approx(right[0].mean() - right[1].mean())

    def loss(table: pd.DataFrame) -> float:
        p = np.array([row[f"p:{row['label']}"] for _, row in table.iterrows()])
        return float(-np.log(np.maximum(p, 1e-12)).mean())

    assert run.metrics["against/loss"] == pytest.approx(loss(ours) - loss(theirs), abs=1e-3)
    assert f"run {earlier.id[:8]}, paired on {len(ours)} recordings" in text
    for label, count in ours["label"].value_counts().items():
        assert re.search(rf"│ {label} +│ +{count} │", text), text
    assert "3 comparisons" in text


def test_an_ensemble_against_itself_differs_in_nothing(trained: Trained, capsys: pytest.CaptureFixture) -> None:
    """All differences are 0, with p = 1."""
    trained.join("stack", f"against={trained.ensemble}")
    run = newest(trained.tracker.search(kind="ensemble"))
    assert run is not None
    assert run.metrics["against/accuracy"] == 0 and run.metrics["against/loss"] == pytest.approx(0, abs=1e-5)
    assert "p = 1" in capsys.readouterr().out


def test_against_refuses_what_is_no_ensemble(trained: Trained) -> None:
    """A training run, and an id that nobody has."""
    with pytest.raises(RunError, match=f"against={trained.ids[0]}: .* is no finished ensemble; give the id"):
        trained.join("stack", f"against={trained.ids[0]}")
    with pytest.raises(RunError, match="against=nobody: no such run"):
        trained.join("stack", "against=nobody")
