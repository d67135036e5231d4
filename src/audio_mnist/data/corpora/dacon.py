"""The spoken-digit competition's archive, as it unpacks.

`train.csv` (file_name,label), `train/*.wav`, `test.csv` (file_name),
`test/*.wav`, `sample_submission.csv` (file_name,label). The test split has no
labels.
"""

from typing import Any

import pandas as pd

from audio_mnist.data.corpora.base import Clip, CorpusReader
from audio_mnist.data.tables import read_table
from audio_mnist.errors import DataError
from audio_mnist.system.paths import inside


class Dacon(CorpusReader):
    """Clips of both splits; clip ids are `train/NAME` and `test/NAME`.

    Args:
        data: the `data` config.
        allow_outside: whether file names may leave `train/` and `test/`.
    """

    name = "dacon"

    def __init__(self, data: dict[str, Any], *, allow_outside: bool = False) -> None:
        super().__init__(data)
        self._allow_outside = allow_outside

    def read(self) -> list[Clip]:
        root = self.root("train.csv, train/, test.csv and test/")
        train = read_table(root / "train.csv", "data.root", ("file_name", "label"))
        test = read_table(root / "test.csv", "data.root", ("file_name",))
        unlabelled = train.index[train["label"] == ""]
        if len(unlabelled):
            raise DataError(f"{root / 'train.csv'}, line {unlabelled[0] + 2}: the label is missing")
        clips, key = [], "data.settings.allow_outside"
        for split, names, labels in (
            ("train", train["file_name"], train["label"]),
            ("test", test["file_name"], [""] * len(test)),
        ):
            source = f"{root / split}.csv"
            for name, label in zip(names, labels, strict=True):
                path = inside(root / split, name, allowed=self._allow_outside, source=source, key=key)
                clips.append(Clip(f"{split}/{name}", path, label, "", split))
        return clips

    def submission(self, predicted: pd.DataFrame) -> pd.DataFrame:
        """Return file_name and label, in the order of `sample_submission.csv` where it exists."""
        table = predicted.rename(columns={"clip_id": "file_name", "predicted": "label"})
        table["file_name"] = table["file_name"].str.removeprefix("test/")
        template = self.root("sample_submission.csv") / "sample_submission.csv"
        if not template.exists():
            return table
        order = read_table(template, "data.root", ("file_name",))["file_name"]
        table = table.set_index("file_name").reindex(order).reset_index()
        missing = table["file_name"][table["label"].isna()]
        if len(missing):
            raise DataError(f"{template} lists {len(missing)} clips without a prediction, {missing.iloc[0]} first")
        return table
