"""Google Speech Commands v0.02 (Warden, 2018; CC BY 4.0): 105,829 clips of 35 words, 16 kHz, 1 s.

Files are `WORD/SPEAKER_nohash_N.wav`. `testing_list.txt` and `validation_list.txt` name the published split.
"""

import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from audio_mnist.data.corpora.base import Clip, CorpusReader
from audio_mnist.errors import ConfigError, DataError

URL = "https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
SHA256 = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
MAX_BYTES = 6 * 2**30  # about twice what the archive unpacks to
NAME = re.compile(r"(?P<speaker>[0-9a-f]+)_nohash_[0-9]+\.wav")
LISTS = {"test": "testing_list.txt", "val": "validation_list.txt"}


class SpeechCommands(CorpusReader):
    """Clips of `data.root` (the unpacked archive), or of a download of 2.4 GB.

    Args:
        data: the `data` config.
        words: the words that are classes; None takes all 35.
    """

    name = "speech_commands"

    def __init__(self, data: dict[str, Any], *, words: list[str] | None = None) -> None:
        super().__init__(data)
        self._words = words

    def read(self) -> list[Clip]:
        given = "WORD/SPEAKER_nohash_N.wav, testing_list.txt and validation_list.txt"
        root = self.root(given) if self.data["root"] else download(Path(self.data["cache_dir"]))
        split_of: dict[str, str] = {}
        for split, name in LISTS.items():
            try:
                lines = (root / name).read_text().split()
            except OSError as error:
                raise DataError(f"{root / name}: cannot be read ({error.strerror}); expected {given}") from None
            split_of |= dict.fromkeys(lines, split)
        words = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[:1] not in "._")
        missing = sorted(set(self._words or words) - set(words))
        if missing:
            raise ConfigError(f"data.settings.words: {missing[0]} is none of {', '.join(words)}")
        clips = []
        for word in self._words or words:
            for path in sorted((root / word).glob("*.wav")):
                match, clip_id = NAME.fullmatch(path.name), f"{word}/{path.name}"
                if not match:
                    raise DataError(f"{path}: not a name of this corpus; expected SPEAKER_nohash_N.wav")
                clips.append(Clip(clip_id, str(path), word, match["speaker"], split_of.get(clip_id, "train")))
        if not clips:
            raise DataError(f"data.root={root}: no recordings found; expected {given}")
        return clips


def download(cache_dir: Path) -> Path:
    """Fetch the archive once, check it and unpack it.

    Raises:
        DataError: there is no connection, the archive is another one, or the folder cannot be written.
    """
    import pooch

    target = cache_dir / f"speech_commands-{SHA256[:7]}"
    unpacked, archive = target / "unpacked", target / "archive.tar.gz"
    try:
        target.mkdir(parents=True, exist_ok=True)
        with FileLock(target / ".lock"):
            if not unpacked.exists():
                pooch.retrieve(URL, f"sha256:{SHA256}", fname=archive.name, path=target, progressbar=True)
                _unpack(archive, unpacked)
                archive.unlink()
    except (OSError, ValueError, tarfile.TarError) as error:
        raise DataError(
            f"Speech Commands could not be downloaded from {URL} ({error}); download and unpack it by hand, then "
            "data.root=FOLDER"
        ) from None
    return unpacked


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive, whole or not at all; its entries cannot leave the folder."""
    partial = folder.with_name("partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as file:
        total = sum(entry.size for entry in file)
        if total > MAX_BYTES:
            raise DataError(f"{archive}: it unpacks to {total} bytes, expected at most {MAX_BYTES}")
        file.extractall(partial, filter="data")
    os.replace(partial, folder)
