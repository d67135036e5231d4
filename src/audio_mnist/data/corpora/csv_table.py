"""A person's own clips, listed in a csv with columns path and label."""

from pathlib import Path
from typing import Any

from audio_mnist.data.corpora.base import Clip, CorpusReader
from audio_mnist.data.tables import read_table
from audio_mnist.errors import ConfigError, DataError
from audio_mnist.system.paths import inside

_COMPUTED = ("content", "duration_s", "recording")  # columns that the manifest gets later


class CsvTable(CorpusReader):
    """Clips of `data.manifest`, a csv with columns path, label and optional speaker, split and fold.

    Paths are relative to the csv. A test clip may lack its label. `folds.group`
    can name any further column.

    Args:
        data: the `data` config.
        allow_outside: whether paths may be absolute, or leave the csv's folder.
    """

    name = "csv"

    def __init__(self, data: dict[str, Any], *, allow_outside: bool = False) -> None:
        super().__init__(data)
        self._allow_outside = allow_outside

    @property
    def title(self) -> str:
        """Name of the csv, since every corpus of this kind is one of its own."""
        given = self.data["manifest"]
        return f"{Path(given).expanduser().resolve().name} ({self.name})" if given else self.name

    def read(self) -> list[Clip]:
        if not self.data["manifest"]:
            raise ConfigError("data=csv needs data.manifest, a csv with columns path,label: data.manifest=clips.csv")
        path = Path(self.data["manifest"]).expanduser().resolve()
        table = read_table(path, "data.manifest", ("path", "label"))
        for name in ("speaker", "split", "fold"):
            if name not in table:
                table[name] = ""
        table["split"] = table["split"].replace("", "train")
        names = [str(name) for name in table if name and name not in (*Clip._fields, *_COMPUTED)]
        others = [tuple(zip(names, values, strict=True)) for values in table[names].to_numpy().tolist()]
        named = table[["path", "label", "speaker", "split", "fold"]].itertuples(index=False)
        clips = []
        for line, row, extra in zip(table.index.to_numpy() + 2, named, others, strict=True):  # 1: the header
            source = f"{path}, line {line}"
            if row.path == "":
                raise DataError(f"{source}: the path is empty")
            if row.split not in ("train", "val", "test"):
                raise DataError(f"{source}: split is {row.split!r}; expected train, val or test")
            if row.label == "" and row.split != "test":
                raise DataError(f"{source}: the label of {row.path} is missing")
            key = "data.settings.allow_outside"
            where = inside(path.parent, str(row.path), allowed=self._allow_outside, source=source, key=key)
            texts = (str(row.label), str(row.speaker), str(row.split), str(row.fold))
            clips.append(Clip(str(row.path), where, *texts, extra))
        return clips
