"""AudioMNIST (Becker et al.): 30,000 spoken digits of 60 speakers at 48 kHz, five published folds by speaker.

Files are `data/SPEAKER/DIGIT_SPEAKER_TAKE.wav`.
"""

import re

from audio_mnist.data.corpora.base import Clip, CorpusReader
from audio_mnist.errors import DataError

NAME = re.compile(r"(?P<digit>[0-9])_(?P<speaker>[0-9]{2})_(?P<take>[0-9]+)\.wav")
# speakers of each test set; `preprocess_data.py` of github.com/soerenab/AudioMNIST
FOLDS = (
    (26, 52, 60, 18, 32, 42, 5, 13, 22, 33, 45, 51),
    (28, 56, 7, 19, 35, 1, 6, 16, 23, 34, 46, 53),
    (36, 57, 9, 24, 37, 2, 8, 17, 29, 39, 48, 54),
    (43, 58, 14, 25, 38, 3, 10, 20, 30, 40, 49, 55),
    (12, 47, 59, 15, 27, 41, 4, 11, 21, 31, 44, 50),
)


class AudioMnist(CorpusReader):
    """Clips of `data.root` (the repository, or its folder `data`)."""

    name = "audiomnist"

    def read(self) -> list[Clip]:
        root = self.root("SPEAKER/DIGIT_SPEAKER_TAKE.wav files")
        folder = root / "data" if (root / "data").is_dir() else root
        fold_of = {f"{speaker:02d}": str(fold) for fold, speakers in enumerate(FOLDS) for speaker in speakers}
        clips = []
        for path in sorted(folder.glob("*/*.wav")):
            match = NAME.fullmatch(path.name)
            if not match or match["speaker"] not in fold_of:
                raise DataError(
                    f"{path}: not a name of this corpus; expected DIGIT_SPEAKER_TAKE.wav, speakers 01 to 60"
                )
            speaker = match["speaker"]
            clip_id = f"{path.parent.name}/{path.name}"
            clips.append(Clip(clip_id, str(path), match["digit"], speaker, "train", fold_of[speaker]))
        if not clips:
            raise DataError(f"data.root={root}: no recordings found; expected data/SPEAKER/DIGIT_SPEAKER_TAKE.wav")
        return clips
