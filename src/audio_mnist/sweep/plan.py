"""The runs of a sweep before they are begun: their overrides, their configs, what tells them apart."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from audio_mnist.config import fingerprint, recipe
from audio_mnist.errors import AudioMnistError


@dataclass(frozen=True)
class Job:
    """One planned run.

    Attributes:
        overrides: as they are typed.
        config_fingerprint: of its recipe.
        recipe_fingerprint: of its recipe but for the fold.
        recipe: `config.recipe`.
        fold: that it scores.
        variant: name of its `conf/variant/`.
        key: `resuming.job_key`.
    """

    overrides: str
    config_fingerprint: str
    recipe_fingerprint: str
    recipe: dict[str, Any]
    fold: int
    variant: str
    key: str


def given_overrides(config: DictConfig) -> list[str]:
    """The overrides of a command as they were typed, the values of variables left out."""
    given = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    assert isinstance(given, list)
    return [str(one) for one in given]


def overrides_of(config: DictConfig) -> list[list[str]]:
    """The overrides of every job, as Hydra's basic sweeper deals them out.

    Raises:
        AudioMnistError: another sweeper is chosen.
    """
    sweeper = config.hydra.sweeper["_target_"]
    if not sweeper.endswith(".BasicSweeper"):
        raise AudioMnistError(f"hydra/sweeper is {sweeper}: only hydra/sweeper=basic says its runs before they start")
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    fixed = config.hydra.sweeper.get("params") or {}
    given = [f"{key}={value}" for key, value in fixed.items()] + given_overrides(config)
    return BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(given), None)[0]


def compose_all(config_name: str, jobs: list[list[str]]) -> Iterator[DictConfig]:
    """The configs of all jobs. Those that differ in nothing but the fold are composed once: it takes a tenth second.

    Raises:
        AudioMnistError: Hydra cannot compose one of them.
    """
    from hydra import compose
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    composed: dict[tuple[str, ...], DictConfig] = {}
    try:
        for overrides in jobs:
            folds = [override for override in overrides if override.startswith("fold=")]
            others = tuple(override for override in overrides if override not in folds)
            if others not in composed:
                composed[others] = compose(config_name, list(others))
            cfg = copy.deepcopy(composed[others])
            for override in OverridesParser.create().parse_overrides(folds):
                OmegaConf.update(cfg, "fold", override.value())
            yield cfg
    except HydraException as error:
        raise AudioMnistError(str(error)) from None


def plan(overrides: str, config: dict[str, Any], key: str) -> Job:
    """A run of these overrides, of this whole config, and of `resuming.job_key`."""
    own = recipe(config)
    return Job(
        overrides,
        fingerprint(own),
        fingerprint({k: v for k, v in own.items() if k != "fold"}),
        own,
        own["fold"],
        config["variant"],
        key,
    )
