"""Corpora: a `data` config becomes a manifest with one row per clip.

A new corpus is one file in this folder, with a subclass of `CorpusReader` that has a `name`, and
one file in `conf/data/`. Nothing else changes.
"""

import importlib
import pkgutil
from typing import Any

from audio_mnist.config import construct
from audio_mnist.data.corpora.base import Clip, Corpus, CorpusReader, build, fingerprint, sort_labels

__all__ = ["Clip", "Corpus", "CorpusReader", "build", "fingerprint", "load", "reader", "sort_labels"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def reader(data: dict[str, Any]) -> CorpusReader:
    """Return the reader of the corpus that the `data` config names.

    Raises:
        ConfigError: there is no such corpus, or `data.settings` does not fit it.
    """
    settings = {"name": data["name"]} | data["settings"]
    found: CorpusReader = construct(CorpusReader.registry, "data", settings, data, keys="data.settings")
    return found


def load(data: dict[str, Any]) -> Corpus:
    """Read the corpus that the `data` config names; make or download it where needed.

    Raises:
        ConfigError: the config is incomplete or names no such corpus.
        DataError: a file of the corpus is missing or wrong.
    """
    found = reader(data)
    return build(found.title, found.read(), similar_speakers=data.get("similar_speakers", False))
