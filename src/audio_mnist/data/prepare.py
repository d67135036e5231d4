"""The corpus as every run uses it: checked clips in a store, class names, and the length of the window."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from audio_mnist.data import corpora
from audio_mnist.data.build_store import build_store
from audio_mnist.data.decode import Limits
from audio_mnist.data.store import WaveformStore
from audio_mnist.errors import DataError


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus with its clips decoded.

    Attributes:
        name: name of the corpus.
        manifest: `corpora.Corpus.manifest` of the usable clips, with content, duration_s and recording.
        class_names: in the order of every probability vector.
        store: samples of the clips; clip i is row i of the manifest.
        clip_samples: T, the window that clips are placed in.
        fingerprint: identifies the clips' bytes, labels, speakers and splits.
        left_out: ids of clips that could not be used (data.on_bad_clip=skip).
    """

    name: str
    manifest: pd.DataFrame
    class_names: tuple[str, ...]
    store: WaveformStore
    clip_samples: int
    fingerprint: str
    left_out: tuple[str, ...] = ()

    def targets(self) -> np.ndarray:
        """Return (clips,) int64 class numbers, -1 where the label is unknown."""
        numbers = {name: number for number, name in enumerate(self.class_names)}
        return self.manifest["label"].map(lambda label: numbers.get(label, -1)).to_numpy(dtype=np.int64, copy=True)


def prepare(data: dict[str, Any]) -> PreparedCorpus:
    """Find, check and decode the corpus that the `data` config describes.

    `data.clip_s=null` takes the 99th percentile of the training clips'
    durations, rounded up to a tenth of a second.

    Raises:
        ConfigError: the config is incomplete.
        DataError: the corpus or one of its clips cannot be used.
    """
    corpus = corpora.load(data)
    manifest, store = build_store(
        corpus.manifest,
        sample_rate_hz=data["sample_rate_hz"],
        limits=Limits(data["min_clip_s"], data["max_clip_s"]),
        on_bad_clip=data["on_bad_clip"],
        cache_dir=Path(data["cache_dir"]),
        copies=data.get("copies", "sound"),  # runs of earlier versions lack these keys
        verify=data.get("verify_store", False),
    )
    is_train = manifest["split"] == "train"
    lost = set(corpus.class_names) - set(manifest.loc[is_train, "label"])
    if lost:
        raise DataError(f"no usable training clip is left of class {min(lost)!r}; see the clips that were left out")
    clip_s = data["clip_s"]
    if clip_s is None:
        clip_s = math.ceil(np.percentile(manifest.loc[is_train, "duration_s"], 99) * 10) / 10
    return PreparedCorpus(
        name=corpus.name,
        manifest=manifest,
        class_names=corpus.class_names,
        store=store,
        clip_samples=max(1, round(clip_s * store.sample_rate_hz)),
        fingerprint=corpora.fingerprint(manifest),
        left_out=tuple(sorted(set(corpus.manifest["clip_id"]) - set(manifest["clip_id"]))),
    )
