"""The table of variants, from variants made by hand."""

import numpy as np

from audio_mnist import ablation, report

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
