"""The table of variants, from variants made by hand."""

from dataclasses import replace
from typing import cast

import numpy as np
import pandas as pd
import pytest

from audio_mnist.report import tables
from audio_mnist.sweeps import ablation
from audio_mnist.sweeps.outcome import JobOutcome
from audio_mnist.tracking.tracker import RunRecord, Tracker

CLIPS = tuple("abcd")
TRACKER = cast(Tracker, None)


def variant(singles: dict[str, float], right: list[bool]) -> ablation.Variant:
    return ablation.Variant(
        {title: np.array([value]) for title, value in singles.items()},
        np.array(right),
        np.where(right, 0.1, 2.0),
        CLIPS,
        np.array([[0, 0, 0, 1], [0 if one else 1 for one in right[:3]] + [int(right[3])]]),
        2,
    )


def job(run_id: str, name: str, title: str = "Mel", fold: int = 0, status: str = "FINISHED") -> JobOutcome:
    return JobOutcome("", name, title, title, fold, RunRecord(run_id, run_id, status, None, {}, {}))


def test_table_takes_features_that_the_default_lacks() -> None:
    """A feature of one variant only has its column; the others show none; the difference is paired."""
    table = ablation.table(
        {
            "default": variant({"Mel": 0.5}, [True, True, False, False]),
            "other": variant({"Mel": 0.75, "MFCC": 0.25}, [True, True, True, False]),
        },
        None,
    )
    assert [str(column.header) for column in table.columns][:4] == ["variant", "Mel", "MFCC", "ensemble"]
    lines = {line.split("│")[1].strip(): line for line in tables.render(table).splitlines() if "│" in line}
    assert "│      - │" in lines["default"] and "+25.00 (" in lines["other"] and "-0.475 (" in lines["other"]


def test_scores_that_count_classes_alike() -> None:
    """Classes of 3 and 1: the missed clip of the small class costs half of the recall; equal classes need no table."""
    variants = {"default": variant({}, [True, True, True, False]), "other": variant({}, [True] * 4)}
    lines = ablation.class_scores(variants, None, "accuracy", "default").splitlines()
    assert "balanced accuracy" in lines[1] and "│ default │            0.5000 │ " in lines[3]
    assert "│ other   │            1.0000 │ +50.00 (" in lines[4]
    assert "macro F1" in ablation.class_scores(variants, None, "macro_f1").splitlines()[1].split("┃")[2]
    equal = {"default": replace(variants["default"], answers=np.array([[0, 0, 1, 1], [0, 0, 1, 0]]))}
    assert ablation.class_scores(equal, None, "accuracy") == ""
    several = {"Mel": ablation.average([variants["default"], variants["other"]])}
    better = {"default": several["Mel"], "other": ablation.average([variants["other"]] * 2)}
    assert "│ other   │            1.0000 │ +25.00 (" in ablation.class_scores(better, None, "accuracy", "default")
    assert "│ Mel │            0.7500 │" in ablation.class_scores(several, None, "accuracy")


def test_render_leaves_out_a_variant_that_is_not_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named under the table; without the default there is no table."""
    found = {"1": variant({"Mel": 0.5}, [True, True, False, False]), "2": variant({"Mel": 1.0}, [True] * 4)}
    monkeypatch.setattr(ablation, "read", lambda _tracker, jobs: found[jobs[0].run.id])
    jobs = [job("2", "other"), job("1", "default"), job("3", "half", status="FAILED")]
    text = ablation.render(TRACKER, jobs, None)
    assert "│ other" in text and "│ half" not in text
    assert "macro F1" in text and "Ensembles by scores that count classes alike\n" in text  # classes of 3 and 1
    assert text.endswith("left out, since not all of their runs finished or they score other clips: half\n")
    assert ablation.render(TRACKER, [jobs[0], job("1", "default", status="KILLED")], None) == ""


def test_read_tells_runs_apart_by_their_titles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs of a fold that differ in a setting are two members; each clip counts once."""
    p = {"1": 0.9, "2": 0.3, "3": 0.8, "4": 0.6}  # of the right class
    clips = {"1": "a", "2": "a", "3": "b", "4": "b"}

    def logged(_tracker: Tracker, run_id: str) -> pd.DataFrame:
        row = {"clip_id": clips[run_id], "label": "x", "predicted": "x", "p:x": p[run_id], "p:y": 1 - p[run_id]}
        return pd.DataFrame([row])

    monkeypatch.setattr(ablation, "logged_predictions", logged)
    titles = {"1": "batch 32", "2": "batch 64", "3": "batch 32", "4": "batch 64"}
    found = ablation.read(TRACKER, [job(i, "default", titles[i], int(i > "2")) for i in p])
    assert found is not None and found.clips == ("a", "b")
    assert {title: right.mean() for title, right in found.singles.items()} == {"batch 32": 1.0, "batch 64": 0.5}
    np.testing.assert_allclose(found.loss, -np.log([0.6, 0.7]))
    assert found.answers.tolist() == [[0, 0], [0, 0]] and found.classes == 2  # the truth, then the mean's choice
