"""The spoken-digit competition's archive, as it unpacks.

`train.csv` (file_name,label), `train/*.wav`, `test.csv` (file_name),
`test/*.wav`, `sample_submission.csv` (file_name,label). The test split has no
labels.
"""

from audio_mnist.data.corpora import required_root
from audio_mnist.data.corpora.tables import read_table
from audio_mnist.errors import DataError
from audio_mnist.system.paths import inside


def read(data: dict) -> list[tuple]:
    """Rows of both splits; clip ids are `train/NAME` and `test/NAME`."""
    root = required_root(data, "train.csv, train/, test.csv and test/")
    train = read_table(root / "train.csv", "data.root", ("file_name", "label"))
    test = read_table(root / "test.csv", "data.root", ("file_name",))
    unlabelled = train.index[train["label"] == ""]
    if len(unlabelled):
        raise DataError(f"{root / 'train.csv'}, line {unlabelled[0] + 2}: the label is missing")
    rows, allowed = [], data["settings"].get("allow_outside", False)
    for split, names, labels in (
        ("train", train["file_name"], train["label"]),
        ("test", test["file_name"], [""] * len(test)),
    ):
        for name, label in zip(names, labels, strict=True):
            said = f"{root / split}.csv"
            path = inside(root / split, name, allowed=allowed, said=said, key="data.settings.allow_outside")
            rows.append((f"{split}/{name}", path, label, "", split))
    return rows
