"""The table of variants, from variants made by hand."""

from typing import cast

import numpy as np
import pytest

from audio_mnist import ablation, report
from audio_mnist.tracking import RunRecord, Tracker

CLIPS = tuple("abcd")


def variant(singles: dict[str, float], right: list[bool]) -> ablation.Variant:
    return ablation.Variant(singles, np.array(right), np.where(right, 0.1, 2.0), CLIPS)


def test_table_takes_features_that_the_default_lacks() -> None:
    """A feature of one variant alone has its column; the others show none; the difference is paired."""
    table = ablation.table(
        {
            "default": variant({"Mel": 0.5}, [True, True, False, False]),
            "other": variant({"Mel": 0.75, "MFCC": 0.25}, [True, True, True, False]),
        },
        None,
    )
    assert [str(column.header) for column in table.columns][:4] == ["variant", "Mel", "MFCC", "ensemble"]
    lines = {line.split("│")[1].strip(): line for line in report.render(table).splitlines() if "│" in line}
    assert "nan" in lines["default"] and "+25.00 (" in lines["other"] and "-0.475 (" in lines["other"]


def test_render_leaves_out_a_variant_that_is_not_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named under the table; without the default there is no table."""
    found = {"1": variant({"Mel": 0.5}, [True, True, False, False]), "2": variant({"Mel": 1.0}, [True] * 4)}
    monkeypatch.setattr(ablation, "read", lambda _tracker, runs, _title_of: found[runs[0].id])
    runs = {i: [RunRecord(i, i, "FINISHED", None, {"feature": "mel", "seed": "0", "fold": "0"}, {})] for i in found}
    tracker = cast(Tracker, None)
    text = ablation.render(tracker, {"default": runs["1"], "other": runs["2"], "half": []}, None)
    assert "│ other" in text and "│ half" not in text
    assert text.endswith("left out, since not all of their runs finished: half\n")
    assert ablation.render(tracker, {"default": [], "other": runs["2"]}, None) == ""
