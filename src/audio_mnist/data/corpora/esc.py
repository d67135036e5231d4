"""ESC-50 and ESC-10 (Piczak, 2015): environmental sounds of 5 s in five published folds.

File names are `FOLD-SOURCE-TAKE-TARGET.wav` in ESC-50 and `FOLD-SOURCE-TAKE.ogg` in ESC-10. Clips of one source, a
recording of Freesound, share a fold.
"""

import re
from pathlib import Path

from audio_mnist.data.corpora.base import Clip, CorpusReader
from audio_mnist.data.tables import read_table
from audio_mnist.errors import DataError

NAME = re.compile(r"(?P<fold>\d)-(?P<source>\d+)-[A-Z].*\.(wav|ogg)")
FOLDER = re.compile(r"\d{3} - (?P<label>.+)")


class Esc50(CorpusReader):
    """Clips of `data.root`, as ESC-50 unpacks: `audio/` and `meta/esc50.csv`."""

    name = "esc50"
    only_esc10 = False

    def read(self) -> list[Clip]:
        root = self.root("audio/ and meta/esc50.csv")
        return self._of_esc50(root)

    def _of_esc50(self, root: Path) -> list[Clip]:
        columns = ("filename", "fold", "category", "esc10", "src_file")
        table = read_table(root / "meta" / "esc50.csv", "data.root", columns)
        if self.only_esc10:
            table = table[table["esc10"].str.lower() == "true"]
        return [
            Clip(name, str(root / "audio" / Path(name).name), label, "", "train", fold, (("source", source),))
            for name, fold, label, _, source in table[list(columns)].itertuples(index=False)
        ]


class Esc10(Esc50):
    """Clips of `data.root`: as ESC-10 unpacks, a folder `NNN - CLASS` for each class; or ESC-50's ten classes."""

    name = "esc10"
    only_esc10 = True

    def read(self) -> list[Clip]:
        root = self.root("a folder 'NNN - CLASS' for each class, or ESC-50's audio/ and meta/esc50.csv")
        if (root / "meta" / "esc50.csv").exists():
            return self._of_esc50(root)
        clips = []
        for folder in sorted(path for path in root.iterdir() if FOLDER.fullmatch(path.name)):
            label = FOLDER.fullmatch(folder.name)
            assert label is not None
            for path in sorted(folder.glob("*.[ow][ga][gv]")):
                match = NAME.fullmatch(path.name)
                if not match:
                    raise DataError(f"{path}: not a name of this corpus; expected FOLD-SOURCE-TAKE.ogg")
                others = (("source", match["source"]),)
                clip_id = f"{folder.name}/{path.name}"
                clips.append(Clip(clip_id, str(path), label["label"], "", "train", match["fold"], others))
        if not clips:
            raise DataError(f"data.root={root}: no recordings found; expected 'NNN - CLASS/FOLD-SOURCE-TAKE.ogg'")
        return clips
