"""A person's own clips: `root/CLASS/*.wav`, or a csv with columns path and label."""

import logging
import os
import re
import warnings
from pathlib import Path

import pandas as pd

from audio_mnist.data.corpora import required_root
from audio_mnist.data.decode import AUDIO_SUFFIXES
from audio_mnist.errors import ConfigError, DataError
from audio_mnist.system.paths import inside

log = logging.getLogger(__name__)
_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}


def read_folder(data: dict) -> list[tuple]:
    """Every audio file of `root/CLASS/`, its folder as its class.

    `data.settings.speaker_pattern` is a regular expression with a group named
    speaker, searched in the file name; null where speakers are not known.
    """
    root = required_root(data, "one folder of recordings for each class")
    pattern = _speaker_pattern(data["settings"].get("speaker_pattern"))
    rows = []

    def unreadable(error: OSError) -> None:
        raise DataError(f"{error.filename}: the folder cannot be read ({error.strerror}); check its permissions")

    seen, ignored = set(), []
    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        if os.path.realpath(folder) in seen:  # a link to a folder above itself
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        here = Path(folder)
        for name in sorted(names):
            path = here / name
            if name.startswith("."):
                continue
            if path.suffix.lower() not in AUDIO_SUFFIXES:
                ignored.append(path)
                continue
            relative = path.relative_to(root)
            if len(relative.parts) == 1:
                raise DataError(f"{path}: a recording outside a class folder; expected {root}/CLASS/{name}")
            speaker = ""
            if pattern:
                match = pattern.search(name)
                if not match:
                    raise DataError(f"{path}: the name does not match data.settings.speaker_pattern={pattern.pattern}")
                speaker = match["speaker"]
            rows.append((relative.as_posix(), str(path), relative.parts[0], speaker, "train"))
    splits = {row[2] for row in rows}
    if splits and {name.lower() for name in splits} <= _SPLITS:
        raise DataError(
            f"data.root={root}: its folders are named {', '.join(sorted(splits))}, as splits are and classes are not; "
            "expected a folder for each class: data.root=ONE_OF_THEM, or a csv with a column split (data=csv)"
        )
    if ignored:
        log.warning("%d files are not taken for recordings by their suffix, %s first", len(ignored), ignored[0])
    if not rows:
        raise DataError(f"data.root={root}: no recordings found; expected {root}/CLASS/*.wav (or flac, ogg, mp3)")
    return rows


def read_csv(data: dict) -> list[tuple]:
    """The clips of `data.manifest`: path, label and optional speaker and split.

    Paths are relative to the csv; with `data.settings.allow_outside` they may
    also be absolute, or lead out of its folder. A test clip may lack its label.
    """
    if not data["manifest"]:
        raise ConfigError("data=csv needs data.manifest, a csv with columns path,label: data.manifest=clips.csv")
    path = Path(data["manifest"]).expanduser().resolve()
    table = read_table(path, "data.manifest", ("path", "label"))
    for name in ("speaker", "split"):
        if name not in table:
            table[name] = "" if name == "speaker" else "train"
    table["split"] = table["split"].replace("", "train")
    allowed = data["settings"].get("allow_outside", False)
    rows = []
    for line, row in zip(table.index.to_numpy() + 2, table.itertuples(index=False), strict=True):  # 1 is the header
        said = f"{path}, line {line}"
        if row.path == "":
            raise DataError(f"{said}: the path is empty")
        if row.split not in ("train", "test"):
            raise DataError(f"{said}: split is {row.split!r}; expected train or test")
        if row.label == "" and row.split == "train":
            raise DataError(f"{said}: the label of {row.path} is missing")
        where = inside(path.parent, str(row.path), allowed=allowed, said=said, key="data.settings.allow_outside")
        rows.append((row.path, where, row.label, row.speaker, row.split))
    return rows


def read_table(path: Path, key: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """A csv as text, "" for an empty cell.

    Raises:
        DataError: the file is missing, is no csv, or lacks one of `columns`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path,
                dtype=str,
                keep_default_na=False,
                skipinitialspace=True,
                skip_blank_lines=False,  # dropped below, so that line numbers are the file's
                index_col=False,  # or a column too many would become an index
                encoding="utf-8-sig",
            )
    except pd.errors.ParserWarning:
        raise DataError(
            f"{key}={path}: lines have more values than the header has columns; quote a path that has a comma, "
            "and end no line with one"
        ) from None
    except FileNotFoundError:
        raise DataError(f"{key}={path}: no such file") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{key}={path}: not a readable csv ({str(error).strip()})") from None
    table.columns = [str(c).strip() for c in table.columns]
    missing = [c for c in columns if c not in table]
    if missing:
        raise DataError(f"{key}={path}: column {missing[0]!r} is missing; found {', '.join(table.columns)}")
    table = table.fillna("").apply(lambda column: column.str.strip())
    table = table[(table != "").any(axis=1)]
    if table.empty:
        raise DataError(f"{key}={path}: the csv lists no clips")
    return table


def _speaker_pattern(text: str | None) -> re.Pattern | None:
    if text is None:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError(f"data.settings.speaker_pattern={text}: not a regular expression ({error})") from None
    if "speaker" not in pattern.groupindex:
        raise ConfigError(f"data.settings.speaker_pattern={text}: expected a group named speaker, (?P<speaker>...)")
    return pattern
