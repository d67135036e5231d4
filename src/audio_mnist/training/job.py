"""One planned run. A sweep plans its jobs, and `training.run` runs one."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from audio_mnist.config import fingerprint, load_modules, to_plain
from audio_mnist.data.folds import Folds, cut_folds
from audio_mnist.data.prepare import PreparedCorpus, prepare
from audio_mnist.data.split import Split, split_clips
from audio_mnist.errors import ConfigError
from audio_mnist.schema import validate_train

OPTIMISTIC = "optimistic: epochs or settings were chosen on the clips scored here"


@dataclass(frozen=True)
class Job:
    """Everything that a run needs to know before it starts.

    Attributes:
        settings: the whole config, plain values.
        corpus: the decoded clips.
        folds: folds of all clips.
        split: the run's index sets.
    """

    settings: dict[str, Any]
    corpus: PreparedCorpus
    folds: Folds
    split: Split

    @property
    def fold(self) -> int:
        """The fold that is scored."""
        return self.settings["fold"]

    @property
    def feature(self) -> str:
        """Name of the feature."""
        return self.settings["feature"]["name"]

    @property
    def optimistic(self) -> bool:
        """Whether the epoch, or the settings, were chosen on the fold that is scored."""
        return self.settings["selection"] == "fold" or self.settings["optimistic"]

    @property
    def kind(self) -> str:
        """Kind of its tracked run: "train", or "trial" of a search, which does not see the scored fold."""
        return "trial" if self.settings["scored"] == "inner" else "train"

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes that a reader of the scores must know."""
        from audio_mnist.scoring import measures

        targets, folds = self.corpus.targets(), self.folds
        counts = np.bincount(targets[(folds.fold_of >= 0) & folds.scored], minlength=len(self.corpus.class_names))
        unequal = measures.note(counts, self.settings["score"])
        return (*folds.notes, *([unequal] if unequal else []))

    @property
    def resumable(self) -> bool:
        """Whether the run can be skipped when finished, and resumed when interrupted."""
        settings = self.settings
        return settings["resume"] and settings["trainer"]["devices"] == 1 and settings["tracking"]["uri"] is not None

    # the rest imports torch, which takes seconds

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The settings that the result depends on: `identity.used_recipe`."""
        from audio_mnist.training.identity import used_recipe

        return used_recipe(self.settings)

    @cached_property
    def config_fingerprint(self) -> str:
        """Identifies the recipe."""
        return fingerprint(self.recipe)

    @cached_property
    def recipe_fingerprint(self) -> str:
        """Identifies the recipe without the fold. All winners of a search share one: their settings differ by fold."""
        if self.settings["found_by"] is not None:
            return fingerprint(["found", self.settings["found_by"], self.settings["seed"]])
        return fingerprint({key: value for key, value in self.recipe.items() if key != "fold"})

    @cached_property
    def family(self) -> str:
        """Identifies the recipe without fold and seed."""
        return fingerprint({key: value for key, value in self.recipe.items() if key not in ("fold", "seed")})

    @cached_property
    def kin(self) -> str:
        """Identifies the recipe without fold, seed, feature and net.

        Runs of one kin can share one trainer, one optimiser and augmented waveforms.
        """
        others = ("fold", "seed", "feature", "model")
        return fingerprint({key: value for key, value in self.recipe.items() if key not in others})

    @cached_property
    def device(self) -> str:
        """Device type that trains: "cpu", "cuda", ..."""
        from audio_mnist.system import devices

        return devices.kind(self.settings["trainer"]["accelerator"])

    @cached_property
    def precision(self) -> str:
        """Lightning's name of the arithmetic that trains."""
        from audio_mnist.system import devices

        trainer = self.settings["trainer"]
        return devices.precision(trainer["precision"], trainer["accelerator"])

    @property
    def pool(self) -> np.ndarray | None:
        """Clips that any fold trains on, where runs like this one can share computed clips; else None."""
        if obstacles(self.settings):
            return None
        chosen = {name: self.settings[name] for name in ("selection", "subset")}
        try:
            splits = [split_clips(self.corpus.manifest, self.folds, fold=n, **chosen) for n in range(self.folds.count)]
        except ConfigError:  # another fold cannot be trained
            return None
        return np.unique(np.concatenate([split.train for split in splits]))

    @cached_property
    def key(self) -> str:
        """Identity of the run: `identity.job_key`."""
        from audio_mnist.training.identity import job_key

        return job_key(self.settings, self.corpus.fingerprint, self.folds.fingerprint)


def obstacles(settings: dict[str, Any]) -> list[str]:
    """Return what in a run's recipe keeps it from training together with others; [] where nothing does.

    Args:
        settings: the run's whole config.
    """
    from audio_mnist.models import Model
    from audio_mnist.system import devices

    trainer, name = settings["trainer"], settings["model"]["name"]
    needs = {
        "trainer.accelerator=cpu": devices.kind(trainer["accelerator"]) == "cpu",
        "trainer.devices=1": trainer["devices"] == 1,
        f"another model than {name}, which learns in one pass": not Model.registry[name].closed_form,
        "trainer.compile=false": not trainer["compile"],
        "trainer.gradient_clip_val=null": trainer["gradient_clip_val"] is None,
        "selection=last": settings["selection"] == "last",
        "optimizer.ema_decay=null": settings["optimizer"]["ema_decay"] is None,
        # two threads compute a batch of one matrix and of several with other bits
        "trainer.threads=1 or trainer.together=true": trainer["threads"] == 1 or trainer["together"],
    }
    return [f"needs {what}" for what, met in needs.items() if not met]


def plan(
    cfg: DictConfig,
    *,
    prepare: Callable[[dict[str, Any]], PreparedCorpus] = prepare,
    cut: Callable[[pd.DataFrame, dict[str, Any]], Folds] = cut_folds,
) -> Job:
    """Check a composed config, prepare its clips and cut its folds. Nothing heavy is imported.

    Args:
        cfg: the composed config of `conf/train.yaml`.
        prepare: replaces `data.prepare.prepare`, such as by one that remembers.
        cut: replaces `data.folds.cut_folds`, likewise.

    Raises:
        ConfigError: a key is wrong.
        DataError: the corpus cannot be used.
    """
    cfg = validate_train(cfg)
    for key in ("root", "manifest"):  # ensemble.py may be started in another folder
        if cfg.data[key]:
            cfg.data[key] = str(Path(cfg.data[key]).expanduser().resolve())
    cfg.modules = [str(Path(m).expanduser().resolve()) if m.endswith(".py") else m for m in cfg.modules]
    settings = to_plain(cfg)
    _pin_encoder(settings["feature"])
    load_modules(settings["modules"])
    corpus = prepare(settings["data"])
    folds = cut(corpus.manifest, settings["folds"])
    chosen = {name: settings[name] for name in ("fold", "selection", "inner_folds", "subset")}
    split = split_clips(corpus.manifest, folds, **chosen)
    if settings["scored"] == "inner":
        split = replace(split, fold=split.selection)  # so no step of the run can see the scored fold
    return Job(settings, corpus, folds, split)


def _pin_encoder(feature: dict[str, Any]) -> None:
    """Add the SHA-256 of an encoder's file to its settings, so that other weights are another recipe.

    Raises:
        ConfigError: the file cannot be read.
    """
    if feature["name"] != "onnx_encoder" or not feature.get("path"):
        return
    path = Path(feature["path"]).expanduser().resolve()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"feature.path={path}: cannot be read ({error.strerror or error})") from None
    feature |= {"path": str(path), "sha256": hashlib.sha256(content).hexdigest()}
