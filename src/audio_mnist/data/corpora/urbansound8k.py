"""UrbanSound8K (Salamon et al., 2014): 8,732 sounds of up to 4 s, ten classes, in ten published folds.

Clips that were cut from one recording of Freesound share a fold.
"""

from audio_mnist.data.corpora.base import Clip, CorpusReader
from audio_mnist.data.tables import read_table
from audio_mnist.system.paths import inside


class UrbanSound8K(CorpusReader):
    """Clips of `data.root`, as the archive unpacks: `audio/foldN/` and `metadata/UrbanSound8K.csv`."""

    name = "urbansound8k"

    def read(self) -> list[Clip]:
        root = self.root("audio/ and metadata/UrbanSound8K.csv")
        columns = ("slice_file_name", "fsID", "fold", "class")
        table = read_table(root / "metadata" / "UrbanSound8K.csv", "data.root", columns)
        clips, folder = [], root / "audio"
        for name, source, fold, label in table[list(columns)].itertuples(index=False):
            where = inside(folder, f"fold{fold}/{name}", allowed=False, source=f"clip {name}", key="nothing")
            clips.append(Clip(name, where, label, "", "train", fold, (("source", source),)))
        return clips
