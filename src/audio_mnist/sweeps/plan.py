"""The runs of a sweep before they start: their overrides, their configs, their jobs, all checked."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from audio_mnist.config import fingerprint
from audio_mnist.data.folds import Folds, cut_folds
from audio_mnist.data.prepare import PreparedCorpus, prepare
from audio_mnist.errors import AudioMnistError
from audio_mnist.schema import validate_train
from audio_mnist.sweeps.compose import compose_all
from audio_mnist.tracking.uri import without_password
from audio_mnist.training import job as jobs
from audio_mnist.training.job import Job


class PlannedJob(NamedTuple):
    """One run of a sweep.

    Attributes:
        overrides: its overrides as they are typed, without passwords.
        job: the run.
    """

    overrides: str
    job: Job

    @property
    def variant(self) -> str:
        """Name of its `conf/variant/`."""
        return self.job.settings["variant"]


def given_overrides(config: DictConfig) -> list[str]:
    """Return the overrides of a command as they were typed, without the values of variables."""
    given = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    assert isinstance(given, list)
    return [str(one) for one in given]


def swept_overrides(config: DictConfig) -> list[str]:
    """Return the overrides that make the jobs: those of an experiment's `hydra.sweeper.params`, then those typed."""
    fixed = config.hydra.sweeper.get("params") or {}
    return [f"{key}={value}" for key, value in fixed.items()] + given_overrides(config)


def swept(given: list[str]) -> str:
    """Return the overrides that have several values; the last one of a key counts.

    >>> swept(["variant=default,deltas", "data=fsdd400", "feature=mel,mfcc", "fold=0,1", "variant=default,pitch"])
    'variant=default,pitch feature=mel,mfcc fold=0,1'
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(given)
    by_key = {override.get_key_element(): (text, override) for text, override in zip(given, parsed, strict=True)}
    return " ".join(text for text, override in by_key.values() if override.is_sweep_override())


def overrides_of(config: DictConfig) -> list[list[str]]:
    """Return the overrides of every job, as Hydra's basic sweeper deals them out.

    Raises:
        AudioMnistError: another sweeper is chosen.
    """
    sweeper = config.hydra.sweeper["_target_"]
    if not sweeper.endswith(".BasicSweeper"):
        raise AudioMnistError(
            f"hydra/sweeper is {sweeper}: expected hydra/sweeper=basic, the only one that names its runs before they "
            "start"
        )
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(swept_overrides(config)), None)[0]


class Planner:
    """Plans the jobs of a sweep; each corpus is prepared once, and its folds are cut once.

    Args:
        config_name: name of the config that the jobs compose.
        resolve: further overrides of a job, from its config.
    """

    def __init__(self, config_name: str, resolve: Callable[[DictConfig], list[str]]) -> None:
        self._config_name, self._resolve = config_name, resolve
        self._corpora: dict[str, PreparedCorpus] = {}
        self._folds: dict[str, Folds] = {}

    def plan(self, overrides: list[list[str]]) -> list[PlannedJob]:
        """Plan jobs from their overrides.

        Raises:
            AudioMnistError: a job cannot run.
        """
        # all, before any clip is decoded
        configs = [validate_train(cfg) for cfg in compose_all(self._config_name, overrides)]
        planned = []
        for one_job, cfg in zip(overrides, configs, strict=True):
            for override in self._resolve(cfg):
                key, _, value = override.partition("=")
                OmegaConf.update(cfg, key, value)
            job = jobs.plan(cfg, prepare=self._prepare, cut=self._cut)
            devices = job.settings["trainer"]["devices"]
            if devices > 1:
                raise AudioMnistError(
                    f"trainer.devices={devices} in a sweep: a run on several devices starts its own processes; "
                    "train it without -m"
                )
            planned.append(PlannedJob(" ".join(map(without_password, one_job)), job))
        return planned

    def _prepare(self, data: dict[str, Any]) -> PreparedCorpus:
        key = fingerprint(data)
        if key not in self._corpora:
            self._corpora[key] = prepare(data)
        return self._corpora[key]

    def _cut(self, manifest: pd.DataFrame, settings: dict[str, Any]) -> Folds:
        key = fingerprint([id(manifest), settings])
        if key not in self._folds:
            self._folds[key] = cut_folds(manifest, settings)
        return self._folds[key]


def check_parts(planned: Sequence[PlannedJob]) -> None:
    """Find out whether the parts of every job fit together, each combination once.

    Raises:
        AudioMnistError: settings are wrong, or parts do not fit.
    """
    from audio_mnist.training import dry_run

    checked = set()
    for _, job in planned:
        parts = fingerprint([job.settings[key] for key in ("data", "feature", "augment", "model")])
        if parts not in checked:
            dry_run.check(job.settings, job.corpus)
            checked.add(parts)


def check_distinct(planned: Sequence[PlannedJob]) -> None:
    """Refuse two jobs that are one run.

    Two variants may be one run for a feature: one sets what that feature has by
    default. It is then trained once, where finished runs are kept.

    Raises:
        AudioMnistError: names the two jobs.
    """
    seen: dict[tuple[str, str], int] = {}
    for number, one in enumerate(planned):
        # paths do not count: two corpora of the same settings could not be told apart in the table
        identity = one.job.config_fingerprint, one.variant if one.job.resumable else ""
        if identity in seen:
            other, hint = planned[seen[identity]], ""
            if other.job.corpus.fingerprint != one.job.corpus.fingerprint:
                hint = " Sweep one data.root or data.manifest at a time."
            elif other.variant != one.variant:
                hint = " Two variants are the same for this feature; with resume=true it is trained once."
            raise AudioMnistError(
                f"jobs {seen[identity]} and {number} have identical settings: {one.overrides}. Remove one.{hint}"
            )
        seen[identity] = number


def caption_of(planned: Sequence[PlannedJob]) -> str:
    """Describe the sweep's table in one line."""
    from audio_mnist.report.tables import fold_caption

    counts, measure = {job.folds.count for _, job in planned}, planned[0].job.settings["score"]
    if len(counts) > 1:  # several ways to cut folds in one sweep
        return f"{measure.replace('_', ' ')} on each scored fold, of {' or '.join(map(str, sorted(counts)))} folds"
    scored = {(job.folds.fingerprint, job.fold): len(job.split.fold) for _, job in planned}
    return fold_caption(sum(scored.values()), len(scored), counts.pop(), measure)


def groups_of(planned: Sequence[PlannedJob]) -> dict[str, str] | None:
    """Return clip id -> group where all jobs cut one corpus by group, else None."""
    corpora = {job.corpus.fingerprint for _, job in planned}
    first = planned[0].job
    groups = first.folds.groups
    if groups is None or len(corpora) > 1 or any(job.folds.groups is None for _, job in planned):
        return None
    return dict(zip(first.corpus.manifest["clip_id"], groups, strict=True))
