"""A person's own clips, listed in a csv with columns path and label."""

from pathlib import Path
from typing import Any

from audio_mnist.data.corpora.base import Clip, CorpusReader
from audio_mnist.data.tables import read_table
from audio_mnist.errors import ConfigError, DataError
from audio_mnist.system.paths import inside


class CsvTable(CorpusReader):
    """Clips of `data.manifest`, a csv with columns path, label and optional speaker and split.

    Paths are relative to the csv. A test clip may lack its label.

    Args:
        data: the `data` config.
        allow_outside: whether paths may be absolute, or leave the csv's folder.
    """

    name = "csv"

    def __init__(self, data: dict[str, Any], *, allow_outside: bool = False) -> None:
        super().__init__(data)
        self._allow_outside = allow_outside

    def read(self) -> list[Clip]:
        if not self.data["manifest"]:
            raise ConfigError("data=csv needs data.manifest, a csv with columns path,label: data.manifest=clips.csv")
        path = Path(self.data["manifest"]).expanduser().resolve()
        table = read_table(path, "data.manifest", ("path", "label"))
        for name in ("speaker", "split"):
            if name not in table:
                table[name] = "" if name == "speaker" else "train"
        table["split"] = table["split"].replace("", "train")
        clips = []
        for line, row in zip(table.index.to_numpy() + 2, table.itertuples(index=False), strict=True):  # 1: the header
            source = f"{path}, line {line}"
            if row.path == "":
                raise DataError(f"{source}: the path is empty")
            if row.split not in ("train", "test"):
                raise DataError(f"{source}: split is {row.split!r}; expected train or test")
            if row.label == "" and row.split == "train":
                raise DataError(f"{source}: the label of {row.path} is missing")
            key = "data.settings.allow_outside"
            where = inside(path.parent, str(row.path), allowed=self._allow_outside, source=source, key=key)
            clips.append(Clip(str(row.path), where, str(row.label), str(row.speaker), str(row.split)))
        return clips
