"""A person's own clips, in one folder per class."""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from audio_mnist.data.corpora.base import Clip, CorpusReader
from audio_mnist.data.decode import AUDIO_SUFFIXES
from audio_mnist.errors import ConfigError, DataError

log = logging.getLogger(__name__)
_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}


class OwnClips(CorpusReader):
    """Every audio file of `data.root`/CLASS/, at any depth.

    Args:
        data: the `data` config.
        speaker_pattern: regular expression with a group named speaker, searched in the file name; None where speakers
            are not known.
    """

    name = "folder"

    def __init__(self, data: dict[str, Any], *, speaker_pattern: str | None = None) -> None:
        super().__init__(data)
        self._pattern = _compiled(speaker_pattern)

    @property
    def title(self) -> str:
        """Name of the folder, since every corpus of this kind is one of its own."""
        given = self.data["root"]
        return f"{Path(given).expanduser().resolve().name} ({self.name})" if given else self.name

    def read(self) -> list[Clip]:
        root = self.root("one folder of recordings for each class")
        clips, ignored = [], []
        for path in _files_below(root):
            if path.suffix.lower() not in AUDIO_SUFFIXES:
                ignored.append(path)
                continue
            relative = path.relative_to(root)
            if len(relative.parts) == 1:
                raise DataError(f"{path}: a recording outside a class folder; expected {root}/CLASS/{path.name}")
            clips.append(Clip(relative.as_posix(), str(path), relative.parts[0], self._speaker(path), "train"))
        folders = {clip.label for clip in clips}
        if folders and {name.lower() for name in folders} <= _SPLITS:
            raise DataError(
                f"data.root={root}: its folders are named {', '.join(sorted(folders))}, which are names of splits, not "
                "of classes; expected a folder for each class: data.root=ONE_OF_THEM, or a csv with a column split "
                "(data=csv)"
            )
        if ignored:
            log.warning("%d files do not have the suffix of a recording; the first is %s", len(ignored), ignored[0])
        if not clips:
            raise DataError(f"data.root={root}: no recordings found; expected {root}/CLASS/*.wav (or flac, ogg, mp3)")
        return clips

    def _speaker(self, path: Path) -> str:
        if self._pattern is None:
            return ""
        match = self._pattern.search(path.name)
        if not match:
            raise DataError(f"{path}: the name does not match data.settings.speaker_pattern={self._pattern.pattern}")
        return match["speaker"]


def _files_below(root: Path) -> Iterator[Path]:
    """List files that are not hidden, in the order of their names; follow links, each folder once."""

    def unreadable(error: OSError) -> None:
        raise DataError(f"{error.filename}: the folder cannot be read ({error.strerror}); check its permissions")

    seen = set()
    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        if os.path.realpath(folder) in seen:  # a link to a folder above itself
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def _compiled(pattern: str | None) -> re.Pattern | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"data.settings.speaker_pattern={pattern}: not a regular expression ({error})") from None
    if "speaker" not in compiled.groupindex:
        raise ConfigError(f"data.settings.speaker_pattern={pattern}: expected a group named speaker, (?P<speaker>...)")
    return compiled
