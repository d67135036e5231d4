"""The Free Spoken Digit Dataset (Jackson et al., CC BY-SA 4.0): 3,000 clips, 6 speakers, 8 kHz.

Files are `{digit}_{speaker}_{take}.wav`. Takes 0 to 4 are the official test split.
"""

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
from filelock import FileLock

from audio_mnist.data.corpora import required_root
from audio_mnist.errors import ConfigError, DataError
from audio_mnist.system.paths import unpack

COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
URL = f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{COMMIT}.zip"
# of the recordings rather than of the archive, whose bytes the host may compress anew
SHA256 = "dbd573d7cafe79c4b49f65718115e1304e24e067fa39eff18a660dc6cb9c360f"
MAX_BYTES, MAX_FILES = 200 * 2**20, 10_000  # of the archive, unpacked: about ten times what it has
SETTINGS = {"train_per_class": int | None, "draw_seed": int}
NAME = re.compile(r"(?P<digit>[0-9])_(?P<speaker>[a-z]+)_(?P<take>[0-9]+)\.wav")


def read(data: dict) -> list[tuple]:
    """Rows from `data.root` (the folder, or the one above its `recordings/`), or downloaded.

    `data.settings.train_per_class` draws that many training clips a digit with
    `data.settings.draw_seed`, and makes every other clip a test clip; null
    keeps the official split.

    Raises:
        DataError: the folder holds other files, or the download differs from
            the pinned one.
    """
    folder = required_root(data, "DIGIT_SPEAKER_TAKE.wav files") if data["root"] else download(Path(data["cache_dir"]))
    if (folder / "recordings").is_dir():
        folder = folder / "recordings"
    clips = []
    for path in sorted(folder.glob("*.wav")):
        match = NAME.fullmatch(path.name)
        if not match:
            raise DataError(f"{path}: not a name of this corpus; expected DIGIT_SPEAKER_TAKE.wav")
        clips.append((path, match["digit"], match["speaker"], int(match["take"])))
    if not clips:
        raise DataError(f"data.root={folder}: no recordings found; expected DIGIT_SPEAKER_TAKE.wav files")
    per_class = data["settings"]["train_per_class"]
    if per_class is None:
        return [(p.name, str(p), digit, who, "test" if take < 5 else "train") for p, digit, who, take in clips]
    for key, least in (("train_per_class", 1), ("draw_seed", 0)):
        if data["settings"][key] < least:
            raise ConfigError(f"data.settings.{key}={data['settings'][key]}: expected {least} or more")
    drawn: set[Path] = set()
    rng = np.random.default_rng(data["settings"]["draw_seed"])
    for digit in sorted({clip[1] for clip in clips}):
        of_digit = [clip[0] for clip in clips if clip[1] == digit]
        if len(of_digit) < per_class:
            raise DataError(
                f"data.settings.train_per_class={per_class}: digit {digit} has {len(of_digit)} clips in {folder}"
            )
        drawn.update(of_digit[i] for i in rng.choice(len(of_digit), per_class, replace=False))
    return [(p.name, str(p), digit, who, "train" if p in drawn else "test") for p, digit, who, _ in clips]


def download(cache_dir: Path) -> Path:
    """The recordings at the pinned commit, fetched once and checked.

    Raises:
        DataError: no connection, or other recordings than the pinned ones.
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
                    # the recordings are checked below
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
    """SHA-256 over the sorted names and contents of the folder's wav files."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.wav")):
        total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
