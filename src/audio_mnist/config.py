"""The config's types and ranges, checked once, before anything heavy is imported.

The YAML files in `conf/` hold the values and say why; the dataclasses here hold
the types. An unknown key or a wrong type is a `ConfigError` that names the key.
"""

import hashlib
import inspect
import json
import shutil
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from audio_mnist.errors import ConfigError

SELECTIONS = ("last", "inner", "fold")
SCHEDULES = ("one_cycle", "cosine", "none")
COMBINES = ("mean", "logit_mean", "vote", "stack")
CALIBRATES = ("temperature", "none")
BASELINES = (None, "svm")


@dataclass
class DataConfig:
    name: str
    group: str
    sample_rate_hz: int | None
    clip_s: float | None
    min_clip_s: float
    max_clip_s: float
    on_bad_clip: str
    cache_dir: str
    root: str | None = None
    manifest: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class FoldsConfig:
    count: int
    group: str
    seed: int


@dataclass
class OptimizerConfig:
    name: str
    lr: float
    weight_decay: float
    schedule: str
    warmup_share: float
    label_smoothing: float
    ema_decay: float | None


@dataclass
class TrainerConfig:
    max_epochs: int
    max_steps: int | None
    min_epochs: int
    batch_size: int
    accelerator: str
    devices: int
    strategy: str
    precision: str
    compile: bool
    threads: int
    validate_every: int | None
    early_stopping_patience: int | None
    gradient_clip_val: float | None
    progress_bar: bool | None


@dataclass
class TrackingConfig:
    uri: str | None
    experiment: str


@dataclass
class ViewsConfig:
    placements: int
    speeds: list[float]


@dataclass
class TrainConfig:
    data: DataConfig
    feature: dict[str, Any]
    augment: dict[str, Any]
    model: dict[str, Any]
    folds: FoldsConfig
    optimizer: OptimizerConfig
    trainer: TrainerConfig
    tracking: TrackingConfig
    fold: int
    selection: str
    inner_folds: int
    seed: int
    views: ViewsConfig
    variant: str


@dataclass
class PlaceConfig:
    root: str | None
    manifest: str | None


@dataclass
class EnsembleConfig:
    run_ids: Any
    combine: str
    calibrate: str
    baseline: str | None
    tracking: TrackingConfig
    data: PlaceConfig
    batch_size: int
    threads: int


@dataclass
class ExploreConfig:
    data: DataConfig
    augment: dict[str, Any]
    features: list[str]
    label: str | None
    clip: str | None
    examples: int
    seed: int
    tracking: TrackingConfig


@dataclass
class PredictConfig:
    audio: Any
    model: str
    output: str
    resume: bool
    window_s: float | None
    hop_s: float | None
    max_clip_s: float
    batch_size: int
    threads: int
    tracking: TrackingConfig


def validate_train(cfg: DictConfig) -> DictConfig:
    """`cfg` with every key and type checked, interpolations resolved.

    Raises:
        ConfigError: names the key, what was got and what was expected.
    """
    cfg = _typed(TrainConfig, cfg)
    _require(cfg.folds.count >= 2, "folds.count", cfg.folds.count, "2 or more")
    _require(cfg.folds.group in ("none", "speaker", "auto"), "folds.group", cfg.folds.group, "none, speaker or auto")
    if not 0 <= cfg.fold < cfg.folds.count:
        raise ConfigError(
            f"fold={cfg.fold} does not exist: folds.count={cfg.folds.count}, so fold is 0 to {cfg.folds.count - 1}"
        )
    _require(cfg.selection in SELECTIONS, "selection", cfg.selection, "one of " + ", ".join(SELECTIONS))
    _require(cfg.inner_folds >= 2, "inner_folds", cfg.inner_folds, "2 or more")
    for key, seed in (("seed", cfg.seed), ("folds.seed", cfg.folds.seed)):
        _require(0 <= seed < 2**32, key, seed, "0 to 4294967295")
    data, trainer, optimizer = cfg.data, cfg.trainer, cfg.optimizer
    _require(data.on_bad_clip in ("error", "skip"), "data.on_bad_clip", data.on_bad_clip, "error or skip")
    for key, value in (("sample_rate_hz", data.sample_rate_hz), ("clip_s", data.clip_s)):
        _require(value is None or value > 0, f"data.{key}", value, "above 0, or null")
    _require(0 <= data.min_clip_s < data.max_clip_s, "data.min_clip_s", data.min_clip_s, "0 to data.max_clip_s")
    views = cfg.views
    _require(views.placements >= 1, "views.placements", views.placements, "1 or more")
    speeds = list(views.speeds)
    _require(
        len(speeds) == len(set(speeds)) >= 1 and all(0.25 <= speed <= 4 for speed in speeds),
        "views.speeds",
        speeds,
        "one or more different factors, 0.25 to 4",
    )
    _require(trainer.max_epochs >= 1, "trainer.max_epochs", trainer.max_epochs, "1 or more")
    steps = trainer.max_steps
    _require(steps is None or steps >= 1, "trainer.max_steps", steps, "1 or more, or null")
    _require(trainer.min_epochs >= 1, "trainer.min_epochs", trainer.min_epochs, "1 or more")
    _require(trainer.batch_size >= 2, "trainer.batch_size", trainer.batch_size, "2 or more (batch normalisation)")
    _require(trainer.devices >= 1, "trainer.devices", trainer.devices, "1 or more")
    _require(trainer.threads >= 1, "trainer.threads", trainer.threads, "1 or more")
    _require(optimizer.name in ("adamw", "adam"), "optimizer.name", optimizer.name, "adamw or adam")
    _require(
        optimizer.schedule in SCHEDULES, "optimizer.schedule", optimizer.schedule, "one of " + ", ".join(SCHEDULES)
    )
    decay = optimizer.ema_decay
    _require(decay is None or 0 < decay < 1, "optimizer.ema_decay", decay, "between 0 and 1, or null")
    _require(optimizer.lr > 0, "optimizer.lr", optimizer.lr, "above 0")
    _require(optimizer.weight_decay >= 0, "optimizer.weight_decay", optimizer.weight_decay, "0 or more")
    clip = trainer.gradient_clip_val
    _require(clip is None or clip > 0, "trainer.gradient_clip_val", clip, "above 0, or null")
    _require(0 < optimizer.warmup_share < 1, "optimizer.warmup_share", optimizer.warmup_share, "between 0 and 1")
    _require(0 <= optimizer.label_smoothing < 1, "optimizer.label_smoothing", optimizer.label_smoothing, "0 to 1")
    every = trainer.validate_every
    _require(
        every is None or every == 1 or (every > 1 and cfg.selection == "last"),
        "trainer.validate_every",
        every,
        "null or 1; with selection=last, which chooses no epoch, any number above",
    )
    patience = trainer.early_stopping_patience
    _require(
        patience is None or (patience >= 1 and cfg.selection == "inner"),
        "trainer.early_stopping_patience",
        patience,
        "1 or more with selection=inner, else null: stopping early on the scored fold would choose the epoch by it",
    )
    return cfg


def validate_ensemble(cfg: DictConfig) -> DictConfig:
    """As `validate_train`, for `ensemble.py`; `run_ids` becomes "latest" or a list."""
    if OmegaConf.is_missing(cfg, "run_ids"):
        raise ConfigError("run_ids is not set: give run_ids=latest or run_ids=[id1,id2,...]")
    cfg = _typed(EnsembleConfig, cfg)
    _require(cfg.tracking.uri is not None, "tracking.uri", None, "the store that the runs are tracked in")
    ids = cfg.run_ids
    if ids != "latest":
        if isinstance(ids, str):
            ids = [ids]
        if not OmegaConf.is_list(ids) and not isinstance(ids, list):
            raise ConfigError(f"run_ids={ids}: expected latest or a list, run_ids=[id1,id2,...]")
        cfg.run_ids = [str(i) for i in ids]
        _require(len(cfg.run_ids) > 0, "run_ids", "[]", "latest or at least one id")
    _require(cfg.combine in COMBINES, "combine", cfg.combine, "one of " + ", ".join(COMBINES))
    _require(cfg.calibrate in CALIBRATES, "calibrate", cfg.calibrate, "one of " + ", ".join(CALIBRATES))
    _require(cfg.baseline in BASELINES, "baseline", cfg.baseline, "svm or null")
    _require(cfg.batch_size >= 1, "batch_size", cfg.batch_size, "1 or more")
    _require(cfg.threads >= 1, "threads", cfg.threads, "1 or more")
    return cfg


def validate_explore(cfg: DictConfig) -> DictConfig:
    """As `validate_train`, for `explore.py`."""
    cfg = _typed(ExploreConfig, cfg)
    _require(len(cfg.features) > 0, "features", "[]", "at least one name from conf/feature/")
    _require(1 <= cfg.examples <= 100, "examples", cfg.examples, "1 to 100")
    _require(0 <= cfg.seed < 2**32, "seed", cfg.seed, "0 to 4294967295")
    return cfg


def validate_predict(cfg: DictConfig) -> DictConfig:
    """As `validate_train`, for `predict.py`; `audio` becomes a list."""
    if OmegaConf.is_missing(cfg, "audio"):
        raise ConfigError("audio is not set: give audio=FILE, a folder, a csv with a column path, or [a.wav,b.wav]")
    cfg = _typed(PredictConfig, cfg)
    audio = cfg.audio
    cfg.audio = [str(one) for one in audio] if OmegaConf.is_list(audio) or isinstance(audio, list) else [str(audio)]
    _require(len(cfg.audio) > 0, "audio", "[]", "at least one recording")
    _require(cfg.tracking.uri is not None, "tracking.uri", None, "the store that the model is tracked in")
    _require(cfg.window_s is None or cfg.window_s >= 0.01, "window_s", cfg.window_s, "0.01 or more, or null")
    hop = cfg.hop_s
    _require(hop is None or (cfg.window_s is not None and hop > 0), "hop_s", hop, "above 0, with window_s; or null")
    _require(cfg.max_clip_s > 0, "max_clip_s", cfg.max_clip_s, "above 0")
    _require(cfg.batch_size >= 1, "batch_size", cfg.batch_size, "1 or more")
    _require(cfg.threads >= 1, "threads", cfg.threads, "1 or more")
    return cfg


def _typed(schema: type, cfg: DictConfig) -> DictConfig:
    try:
        missing = OmegaConf.missing_keys(cfg)  # a merge would fill them
        typed = OmegaConf.merge(OmegaConf.structured(schema), cfg)
        OmegaConf.resolve(typed)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        reason = str(error).splitlines()[0]
        if "not in" in reason and "Key" in reason:
            raise ConfigError(f"unknown config key {key}; conf/ lists the keys") from None
        raise ConfigError(f"{key}: {reason}") from None
    if missing:
        raise ConfigError(f"{sorted(missing)[0]} is not set: give it on the command line, KEY=VALUE")
    assert isinstance(typed, DictConfig)
    return typed


def _require(fine: bool, key: str, got: object, expected: str) -> None:
    if not fine:
        raise ConfigError(f"{key}={got}: expected {expected}")


def construct(registry: dict[str, type], group: str, settings: dict[str, Any], *given: Any) -> Any:
    """Calls `registry[settings["name"]](*given, **the other settings)`.

    The settings that a class has are the keyword-only arguments of its
    constructor and, where that takes `**others`, those of its base.

    Raises:
        ConfigError: the name is unknown, an argument is unknown, missing or of the wrong type.
    """
    arguments = dict(settings)
    name = arguments.pop("name", None)
    if name not in registry:
        raise ConfigError(f"{group}.name={name}: expected one of {', '.join(sorted(registry))}")
    parameters = _settings_of(registry[name])
    for key, value in arguments.items():
        if key not in parameters:
            raise ConfigError(f"unknown config key {group}.{key}; {group}={name} has {', '.join(parameters)}")
        expected = parameters[key].annotation
        if not _is_a(value, expected):
            wanted = expected.__name__ if isinstance(expected, type) else str(expected)
            raise ConfigError(f"{group}.{key}={value!r}: expected {wanted}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise ConfigError(f"{group}.{key} is not set: {group}={name} needs it")
    return registry[name](*given, **arguments)


def _settings_of(kind: type) -> dict[str, inspect.Parameter]:
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        found = found | {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in found}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _is_a(value: Any, expected: Any) -> bool:
    if isinstance(expected, types.UnionType):
        return any(_is_a(value, option) for option in typing.get_args(expected))
    if expected in (int, float):
        wide = (int, float) if expected is float else int
        return isinstance(value, wide) and not isinstance(value, bool)
    return expected is inspect.Parameter.empty or isinstance(value, expected)


def check_settings(settings: dict[str, Any], types_: dict[str, Any]) -> None:
    """Refuses unknown keys and wrong types of `data.settings`.

    Raises:
        ConfigError: names the key.
    """
    for key, value in settings.items():
        if key not in types_:
            raise ConfigError(f"unknown config key data.settings.{key}; this corpus has {', '.join(types_) or 'none'}")
        if not _is_a(value, types_[key]):
            raise ConfigError(
                f"data.settings.{key}={value!r}: expected {getattr(types_[key], '__name__', types_[key])}"
            )


def to_plain(cfg: Any) -> dict[str, Any]:
    """Plain dicts, lists, numbers and strings."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return typing.cast(dict[str, Any], plain)


def recipe(cfg: dict[str, Any]) -> dict[str, Any]:
    """What a training's result depends on, beside its corpus: paths, tracking, names and display are left out."""
    data = {k: v for k, v in cfg["data"].items() if k not in ("root", "manifest", "cache_dir", "on_bad_clip")}
    trainer = {k: v for k, v in cfg["trainer"].items() if k != "progress_bar"}
    return {k: v for k, v in cfg.items() if k not in ("tracking", "variant")} | {"data": data, "trainer": trainer}


def fingerprint(value: Any) -> str:
    """16 hex digits of the SHA-256 of `value` as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _parallel_runs(accelerator: str) -> int:
    """Runs of a sweep side by side: one a GPU where they train on CUDA, else one a core."""
    if accelerator != "cpu" and shutil.which("nvidia-smi"):
        import torch  # slow, so only where there may be a GPU

        if torch.cuda.is_available():
            return torch.cuda.device_count()
    import joblib

    return joblib.cpu_count()


def _user_cache() -> str:
    import pooch

    return str(pooch.os_cache("audio-mnist"))


# conf/ refers to these
OmegaConf.register_new_resolver("audio_mnist.parallel_runs", _parallel_runs, replace=True)
OmegaConf.register_new_resolver("audio_mnist.user_cache", _user_cache, replace=True)
