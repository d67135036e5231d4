"""Configs of a sweep's jobs. Hydra takes 0.2 s to compose one; jobs that differ in fold and seed alone share it."""

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from omegaconf import DictConfig

from audio_mnist.errors import AudioMnistError
from audio_mnist.tracking.uri import without_password

_NUMBER = re.compile(r"(fold|seed)=(0|[1-9]\d*)")  # an override; nothing else in the config depends on its value
_KEPT = 8  # compositions that a worker keeps, 0.2 MB each


def compose_all(config_name: str, overrides: list[list[str]]) -> Iterator[DictConfig]:
    """Compose the configs of all jobs, without their `hydra` part.

    Raises:
        AudioMnistError: Hydra cannot compose one of them.
    """
    from hydra import compose
    from hydra.errors import HydraException

    composed: dict[tuple[str, ...], DictConfig] = {}
    try:
        for one_job in overrides:
            key = _without_numbers(one_job)
            if key not in composed:
                composed[key] = compose(config_name, one_job)
            yield _numbered(composed[key], one_job)
    except HydraException as error:
        raise AudioMnistError(_explained(error, one_job)) from None


def skip_validation() -> None:
    """Let Hydra's sweeper trust `compose_all`; else it composes every job once more before the first one starts."""
    from hydra.plugins.sweeper import Sweeper

    Sweeper.validate_batch_is_legal = lambda *_: None  # type: ignore[method-assign]


class SharingLoader:
    """Hydra's config loader, as a worker uses it for the jobs of a sweep.

    Args:
        loader: Hydra's own.
    """

    _composed: ClassVar[dict[tuple[str, ...], DictConfig]] = {}  # of the process: each job brings a loader

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return the config that Hydra's loader of that name returns."""
        from hydra._internal.config_loader_impl import get_overrides_dirname
        from hydra.core.override_parser.overrides_parser import OverridesParser

        key = (str(master_config.hydra.sweep.dir), *_without_numbers(sweep_overrides))
        if key not in self._composed:
            if len(self._composed) >= _KEPT:
                self._composed.clear()
            self._composed[key] = self._loader.load_sweep_config(master_config, sweep_overrides)
        cfg = _numbered(self._composed[key], sweep_overrides)
        job, parsed = cfg.hydra.job, OverridesParser.create().parse_overrides(sweep_overrides)
        task_overrides = [override for override in parsed if not override.is_hydra_override()]
        cfg.hydra.overrides.task = [override.input_line for override in task_overrides]
        job.override_dirname = get_overrides_dirname(task_overrides, **job.config.override_dirname)
        return cfg


def _without_numbers(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return what jobs must have in common to share a config."""
    return tuple(_NUMBER.sub(r"\1", one) if _NUMBER.fullmatch(one) else one for one in overrides)


def _numbered(shared: DictConfig, overrides: Sequence[str]) -> DictConfig:
    cfg = copy.deepcopy(shared)
    for number in filter(None, map(_NUMBER.fullmatch, overrides)):
        cfg[number[1]] = int(number[2])
    return cfg


def _explained(error: Exception, overrides: list[str]) -> str:
    """Name the job that has no such key; Hydra would advise to add the key, which no part reads."""
    text = str(error)
    if not text.startswith("Could not override"):
        return text
    job = " ".join(map(without_password, overrides))
    remedy = "correct its name. Where only some choices of the sweep have that key, sweep those by themselves"
    return f"{text.splitlines()[0].rstrip('.')}, a key that this job does not have: {job}; {remedy}"
