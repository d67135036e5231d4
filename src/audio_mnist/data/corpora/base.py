"""What all corpora share: the rows that they give and the corpus that becomes of them."""

import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pandas as pd

from audio_mnist.config import Registered
from audio_mnist.errors import ConfigError, DataError

log = logging.getLogger(__name__)
_INVISIBLE = ("Cc", "Cf")  # Unicode categories: control and format characters


class Clip(NamedTuple):
    """One row of a manifest.

    Attributes:
        clip_id: unique, and the same on every machine.
        path: absolute path of the file.
        label: class name, "" where unknown.
        speaker: "" where unknown.
        split: "train", "val" or "test".
        fold: name of a published fold, "" where there is none.
        others: further columns, as (name, value) pairs, such as the source of a recording.
    """

    clip_id: str
    path: str
    label: str
    speaker: str
    split: str
    fold: str = ""
    others: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Corpus:
    """Clips and class names.

    Attributes:
        name: name of the corpus.
        manifest: one row per clip, columns of `Clip`, each of its others as a column, sorted by clip_id.
        class_names: labels of the training clips, sorted (as numbers where all are numbers); the order of every
            probability vector.
    """

    name: str
    manifest: pd.DataFrame
    class_names: tuple[str, ...]


class CorpusReader(Registered):
    """Base of every corpus.

    A subclass has a `name` and reads its clips. The keyword-only arguments of
    its constructor are the keys of `data.settings`.

    Args:
        data: the `data` config.
    """

    registry: ClassVar[dict[str, Any]] = {}

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    @property
    def title(self) -> str:
        """Name of the corpus in tables, messages and MLflow."""
        return str(self.data["name"])

    def read(self) -> list[Clip]:
        """Find, make or download the clips.

        Raises:
            ConfigError: the config is incomplete or impossible.
            DataError: a file is missing or wrong.
        """
        raise NotImplementedError

    def submission(self, predicted: pd.DataFrame) -> pd.DataFrame | None:
        """Return the table that a competition asks for, None where there is no competition.

        Args:
            predicted: clip_id and predicted class of each test clip.

        Raises:
            DataError: the competition lists clips that have no prediction.
        """
        return None

    def root(self, example: str) -> Path:
        """Return `data.root` as an existing folder.

        Args:
            example: what the folder holds, for the message.

        Raises:
            ConfigError: it is not set.
            DataError: it is not a readable folder.
        """
        given = self.data["root"]
        if not given:
            raise ConfigError(f"data={self.name} needs data.root, the folder with {example}: data.root=PATH")
        root = Path(given).expanduser().resolve()
        if not root.is_dir():
            raise DataError(f"data.root={given}: no such folder; expected one with {example}")
        if not os.access(root, os.R_OK | os.X_OK):
            raise DataError(f"data.root={given}: the folder cannot be read; check its permissions")
        return root


def build(name: str, clips: list[Clip], *, similar_speakers: bool = False) -> Corpus:
    """Check a corpus's clips and sort its classes. Labels and speakers are compared in Unicode form NFC.

    Args:
        name: name of the corpus.
        clips: its clips.
        similar_speakers: whether speakers with almost equal names may be different people.

    Raises:
        DataError: a clip is listed twice, a file's name cannot be written, a training label is missing, a class cannot
            be learnt, or names are almost equal.
    """
    _check_writable(clips)
    table = pd.DataFrame(clips, columns=list(Clip._fields))
    others = pd.DataFrame([dict(one) for one in table.pop("others")], index=table.index).fillna("")
    manifest = pd.concat([table, others], axis=1).astype(str)
    for column in ("label", "speaker"):
        manifest[column] = manifest[column].map(lambda text: unicodedata.normalize("NFC", text).strip())
    manifest = manifest.sort_values("clip_id", kind="stable", ignore_index=True)
    repeated = manifest["clip_id"][manifest["clip_id"].duplicated()]
    if len(repeated):
        raise DataError(f"{name}: clip {repeated.iloc[0]} is listed twice; list every file once")
    train = manifest[manifest["split"] == "train"]
    if train.empty:
        raise DataError(f"{name}: the corpus has no training clips")
    names = sort_labels(train["label"].unique())
    if "" in names:
        clip = train.loc[train["label"] == "", "clip_id"].iloc[0]
        raise DataError(f"{name}: training clip {clip} has no label")
    if len(names) < 2:
        raise DataError(f"{name}: the training clips are all of class {names[0]!r}; at least 2 are needed")
    _check_similar(manifest, similar_speakers)
    unknown = set(manifest["label"]) - set(names) - {""}
    if unknown:
        raise DataError(
            f"{name}: test or validation clips have classes that no training clip has: {sorted(unknown)[:5]}"
        )
    return Corpus(name, manifest, names)


def _check_writable(clips: list[Clip]) -> None:
    for clip in clips:
        try:
            "".join(map(str, clip)).encode()  # its others too
        except UnicodeEncodeError:
            raise DataError(f"{clip.path!a}: the name is not valid UTF-8; rename the file or folder") from None


def _check_similar(manifest: pd.DataFrame, similar_speakers: bool) -> None:
    """Report labels with names that are probably one; refuse such speakers."""
    for names in similar(manifest["label"].unique()):
        log.warning("labels %s are probably one class, written in several ways; they are trained as several", names)
    for names in similar(manifest["speaker"].unique()):
        if not similar_speakers:
            raise DataError(
                f"speakers {names} are probably one, written in several ways, and could be on both sides of a split; "
                "write them alike, or set data.similar_speakers=true where they are different people"
            )


def similar(names: Iterable[str]) -> list[str]:
    """Return each group of names that differ only in case, zeros, runs of spaces or invisible characters, as one text.

    >>> similar(["Anna", "anna", "01", "1.0", "2", "10"])
    ["'Anna', 'anna'", "'01', '1.0'"]
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        text = unicodedata.normalize("NFKC", name)
        visible = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in _INVISIBLE)
        key = " ".join(visible.casefold().split())
        key = re.sub(r"(?<![\d.])0+(?=\d)", "", key)  # leading zeros
        key = re.sub(r"^(\d+)\.0*$", r"\1", key)
        groups.setdefault(key, []).append(name)
    return [", ".join(map(ascii, sorted(group))) for group in groups.values() if len(group) > 1]


def sort_labels(labels: Iterable[Any]) -> tuple[str, ...]:
    """Sort class names, as numbers where all are whole numbers, else as text.

    >>> sort_labels(["10", "9", "1"])
    ('1', '9', '10')
    """
    texts = [str(label) for label in labels]
    numeric = all(label.isascii() and label.isdigit() for label in texts)
    return tuple(sorted(texts, key=lambda label: (int(label), label) if numeric else (0, label)))


def fingerprint(manifest: pd.DataFrame) -> str:
    """Return 16 hex digits that identify the clips' bytes, labels, speakers and splits, wherever they are stored."""
    columns = (manifest[name] for name in ("clip_id", "content", "label", "speaker", "split"))
    lines = map("\t".join, zip(*columns, strict=True))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]
