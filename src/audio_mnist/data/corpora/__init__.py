"""A named corpus -> a manifest: one row a clip."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from audio_mnist.config import check_settings
from audio_mnist.errors import ConfigError, DataError

COLUMNS = ["clip_id", "path", "label", "speaker", "split"]


@dataclass(frozen=True)
class Corpus:
    """Clips and class names.

    Attributes:
        name: of the corpus.
        manifest: strings; clip_id (unique, stable between machines), path
            (absolute), label ("" where unknown), speaker ("" where unknown),
            split ("train" or "test"). Rows are in the order of clip_id.
        class_names: labels of the training clips, sorted (as numbers where all
            are numbers); the order of every probability vector.
    """

    name: str
    manifest: pd.DataFrame
    class_names: tuple[str, ...]


def load(data: dict) -> Corpus:
    """The corpus that the `data` config names, made or downloaded where it must be.

    Raises:
        ConfigError: the config is incomplete or names no such corpus.
        DataError: a file of the corpus is missing or wrong.
    """
    from audio_mnist.data.corpora import dacon, fsdd, synthetic, tables

    readers: dict[str, tuple] = {  # how it is read, types of its settings
        "synthetic": (synthetic.read, synthetic.SETTINGS),
        "fsdd": (fsdd.read, fsdd.SETTINGS),
        "dacon": (dacon.read, {"allow_outside": bool}),
        "folder": (tables.read_folder, {"speaker_pattern": str | None}),
        "csv": (tables.read_csv, {"allow_outside": bool}),
    }
    if data["name"] not in readers:
        raise ConfigError(f"data.name={data['name']}: expected one of {', '.join(readers)}")
    read, settings = readers[data["name"]]
    check_settings(data["settings"], settings)
    rows = read(data)
    manifest = pd.DataFrame(rows, columns=COLUMNS).astype(str)
    manifest = manifest.sort_values("clip_id", kind="stable", ignore_index=True)
    repeated = manifest["clip_id"][manifest["clip_id"].duplicated()]
    if len(repeated):
        raise DataError(f"{data['name']}: clip {repeated.iloc[0]} is listed twice; list every file once")
    train = manifest[manifest["split"] == "train"]
    if train.empty:
        raise DataError(f"{data['name']}: the corpus has no training clips")
    names = sort_labels(train["label"].unique())
    if "" in names:
        clip = train.loc[train["label"] == "", "clip_id"].iloc[0]
        raise DataError(f"{data['name']}: training clip {clip} has no label")
    if len(names) < 2:
        raise DataError(f"{data['name']}: the training clips are all of class {names[0]!r}; at least 2 are needed")
    strange = set(manifest["label"]) - set(names) - {""}
    if strange:
        raise DataError(f"{data['name']}: test clips have classes that no training clip has: {sorted(strange)[:5]}")
    return Corpus(data["name"], manifest, names)


def sort_labels(labels) -> tuple[str, ...]:
    """Sorted as numbers where all are whole numbers, else as text."""
    labels = [str(label) for label in labels]
    numeric = all(label.isascii() and label.isdigit() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label), label) if numeric else (0, label)))


def fingerprint(manifest: pd.DataFrame) -> str:
    """16 hex digits that stand for the clips' bytes, labels, speakers and splits, not for where they lie."""
    columns = (manifest[name] for name in ("clip_id", "content", "label", "speaker", "split"))
    lines = map("\t".join, zip(*columns, strict=True))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def required_root(data: dict, example: str) -> Path:
    """`data.root` as an existing directory.

    Raises:
        ConfigError: it is not set.
        DataError: it is no readable directory.
    """
    if not data["root"]:
        raise ConfigError(f"data={data['name']} needs data.root, the folder with {example}: data.root=PATH")
    root = Path(data["root"]).expanduser().resolve()
    if not root.is_dir():
        raise DataError(f"data.root={data['root']}: no such folder; expected one with {example}")
    if not os.access(root, os.R_OK | os.X_OK):
        raise DataError(f"data.root={data['root']}: the folder cannot be read; check its permissions")
    return root
