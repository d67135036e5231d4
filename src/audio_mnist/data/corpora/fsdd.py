"""The Free Spoken Digit Dataset (Jackson et al., CC BY-SA 4.0): 3,000 clips, 6 speakers, 8 kHz.

Files are `{digit}_{speaker}_{take}.wav`. Takes 0 to 4 are the official test split.
"""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from audio_mnist.config import require
from audio_mnist.data.corpora.base import Clip, CorpusReader
from audio_mnist.errors import DataError
from audio_mnist.system.paths import unpack

COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
URL = f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{COMMIT}.zip"
# checksum of the recordings, not of the archive: the host may compress it again
SHA256 = "dbd573d7cafe79c4b49f65718115e1304e24e067fa39eff18a660dc6cb9c360f"
MAX_BYTES, MAX_FILES = 200 * 2**20, 10_000  # about ten times what the archive unpacks to
NAME = re.compile(r"(?P<digit>[0-9])_(?P<speaker>[a-z]+)_(?P<take>[0-9]+)\.wav")


class Fsdd(CorpusReader):
    """Clips of `data.root` (the folder, or the one above its `recordings/`), or of a download.

    Args:
        data: the `data` config.
        train_per_class: training clips drawn per digit, all others are test clips; None keeps the official split.
        draw_seed: random seed of the draw.
    """

    name = "fsdd"

    def __init__(self, data: dict[str, Any], *, train_per_class: int | None = None, draw_seed: int = 0) -> None:
        super().__init__(data)
        if train_per_class is not None:
            require(train_per_class >= 1, "data.settings.train_per_class", train_per_class, "1 or more")
            require(draw_seed >= 0, "data.settings.draw_seed", draw_seed, "0 or more")
        self._per_class, self._draw_seed = train_per_class, draw_seed

    def read(self) -> list[Clip]:
        example = "DIGIT_SPEAKER_TAKE.wav files"
        folder = self.root(example) if self.data["root"] else download(Path(self.data["cache_dir"]))
        if (folder / "recordings").is_dir():
            folder = folder / "recordings"
        clips, is_test = [], []
        for path in sorted(folder.glob("*.wav")):
            match = NAME.fullmatch(path.name)
            if not match:
                raise DataError(f"{path}: not a name of this corpus; expected DIGIT_SPEAKER_TAKE.wav")
            clips.append(Clip(path.name, str(path), match["digit"], match["speaker"], ""))
            is_test.append(int(match["take"]) < 5)
        if not clips:
            raise DataError(f"data.root={folder}: no recordings found; expected DIGIT_SPEAKER_TAKE.wav files")
        if self._per_class is not None:
            drawn = self._draw(clips, self._per_class)
            is_test = [clip.clip_id not in drawn for clip in clips]
        return [clip._replace(split="test" if test else "train") for clip, test in zip(clips, is_test, strict=True)]

    def _draw(self, clips: list[Clip], per_class: int) -> set[str]:
        """Draw the ids of the training clips."""
        drawn: set[str] = set()
        rng = np.random.default_rng(self._draw_seed)
        for digit in sorted({clip.label for clip in clips}):
            of_digit = [clip.clip_id for clip in clips if clip.label == digit]
            if len(of_digit) < per_class:
                raise DataError(f"data.settings.train_per_class={per_class}: digit {digit} has {len(of_digit)} clips")
            drawn.update(of_digit[i] for i in rng.choice(len(of_digit), per_class, replace=False))
        return drawn


def download(cache_dir: Path) -> Path:
    """Fetch the recordings at the pinned commit once, and check them.

    Raises:
        DataError: there is no connection, or the recordings differ from the pinned ones.
    """
    import pooch

    target = cache_dir / f"fsdd-{COMMIT[:7]}"
    try:
        target.mkdir(parents=True, exist_ok=True)
        with FileLock(target / ".lock"):
            done = target / "checked"
            recordings = target / "unpacked" / f"free-spoken-digit-dataset-{COMMIT}" / "recordings"
            if not done.exists():
                try:
                    # no checksum of the archive: the recordings are checked below
                    archive = pooch.retrieve(URL, None, fname="fsdd.zip", path=target, progressbar=True)
                    unpack(Path(archive), target / "unpacked", max_bytes=MAX_BYTES, max_files=MAX_FILES)
                    got = digest(recordings)
                    if got != SHA256:
                        shutil.rmtree(target / "unpacked")
                        raise DataError(f"{URL}: the recordings' checksum is {got}, expected {SHA256}; try again")
                    done.touch()
                finally:
                    (target / "fsdd.zip").unlink(missing_ok=True)
    except (OSError, ValueError, DataError) as error:
        raise DataError(
            f"FSDD could not be downloaded from {URL} ({error}); download and unpack it by hand, then data.root=FOLDER"
        ) from None
    return recordings


def digest(folder: Path) -> str:
    """Return the SHA-256 over the sorted names and contents of a folder's wav files."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.wav")):
        total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
