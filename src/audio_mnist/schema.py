"""Types and ranges of every command's config, checked once, before any heavy import.

The YAML files in `conf/` hold the values and explain them. The dataclasses here
hold the types. An unknown key or a wrong type is a `ConfigError` that names the
key.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from audio_mnist.config import require, typed
from audio_mnist.errors import ConfigError

SELECTIONS = ("last", "inner", "fold")
FOLDS = {"count": int, "group": str, "seed": int, "from": str}
SCHEDULES = ("one_cycle", "cosine", "none")
COMBINES = ("mean", "logit_mean", "vote", "stack")
CALIBRATES = ("temperature", "none")
BASELINES = (None, "svm")
SCORES = ("accuracy", "balanced_accuracy", "macro_f1")
CLASS_WEIGHTS = ("none", "balanced")
SAMPLINGS = ("plain", "balanced")


@dataclass
class DataConfig:
    name: str
    group: str
    sample_rate_hz: int | None
    clip_s: float | None
    min_clip_s: float
    max_clip_s: float
    on_bad_clip: str
    copies: str
    similar_speakers: bool
    verify_store: bool
    cache_dir: str
    root: str | None = None
    manifest: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class OptimizerConfig:
    name: str
    lr: float
    matrix_lr: float
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
    runs_per_gpu: int
    strategy: str
    precision: str
    compile: bool
    cuda_graph: bool
    together: bool | None
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
    folds: dict[str, Any]  # count, group, seed, from; the last is a word of Python, so no dataclass can have it
    optimizer: OptimizerConfig
    trainer: TrainerConfig
    tracking: TrackingConfig
    fold: int
    selection: str
    inner_folds: int
    subset: str
    seed: int
    search: dict[str, Any]
    scored: str
    optimistic: bool
    found_by: str | None
    views: ViewsConfig
    score: str
    class_weights: str
    sampling: str
    variant: str
    modules: list[str]
    resume: bool
    resume_dir: str | None
    resume_every_s: float


@dataclass
class CorpusPathsConfig:
    root: str | None
    manifest: str | None


@dataclass
class EnsembleConfig:
    run_ids: Any
    combine: str
    calibrate: str
    score: str
    baseline: str | None
    against: str | None
    register: str | None
    alias: str
    tracking: TrackingConfig
    data: CorpusPathsConfig
    modules: list[str]
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
    modules: list[str]
    tracking: TrackingConfig


@dataclass
class PredictConfig:
    audio: Any
    allow_outside: bool
    model: str
    output: str
    resume: bool
    window_s: float | None
    hop_s: float | None
    max_clip_s: float
    modules: list[str]
    batch_size: int
    threads: int
    tracking: TrackingConfig


@dataclass
class DemoConfig:
    model: str
    host: str
    port: int
    open: bool
    max_upload_mb: float
    max_clip_s: float
    modules: list[str]
    threads: int
    tracking: TrackingConfig


def validate_train(cfg: DictConfig) -> DictConfig:
    """Check every key, type and range of `train.py`; resolve interpolations.

    Raises:
        ConfigError: names the key, the value and what was expected.
    """
    for group in ("data", "feature", "model", "optimizer", "trainer"):
        if group not in cfg:  # such as ~feature
            raise ConfigError(f"{group} is not set: give {group}=NAME, a file of conf/{group}/")
    cfg = typed(TrainConfig, cfg)
    _check_folds(cfg)
    require(cfg.score in SCORES, "score", cfg.score, "one of " + ", ".join(SCORES))
    require(cfg.class_weights in CLASS_WEIGHTS, "class_weights", cfg.class_weights, "none or balanced")
    require(cfg.sampling in SAMPLINGS, "sampling", cfg.sampling, "plain or balanced")
    _check_data(cfg.data)
    _check_views(cfg)
    _check_trainer(cfg)
    _check_optimizer(cfg)
    return cfg


def _check_folds(cfg: DictConfig) -> None:
    for key in cfg.folds:
        if key not in FOLDS:
            raise ConfigError(f"unknown config key folds.{key}; it has {', '.join(FOLDS)}")
    for key, kind in FOLDS.items():
        require(type(cfg.folds[key]) is kind, f"folds.{key}", cfg.folds[key], kind.__name__)
    require(cfg.folds.count >= 2, "folds.count", cfg.folds.count, "2 or more")
    require(cfg.folds["from"] in ("auto", "column", "deal"), "folds.from", cfg.folds["from"], "auto, column or deal")
    if cfg.fold < 0 or (cfg.folds["from"] == "deal" and cfg.fold >= cfg.folds.count):  # a column has its own number
        raise ConfigError(
            f"fold={cfg.fold} does not exist: folds.count={cfg.folds.count}, so fold is 0 to {cfg.folds.count - 1}"
        )
    require(cfg.selection in SELECTIONS, "selection", cfg.selection, "one of " + ", ".join(SELECTIONS))
    inner = cfg.scored == "fold" or (cfg.scored == "inner" and cfg.selection == "inner")
    require(inner, "scored", cfg.scored, "fold; or inner, with selection=inner")
    whole = cfg.subset == "all" or re.fullmatch(r"(clips|speakers)/([2-9]|[1-9]\d+)", cfg.subset) is not None
    require(whole, "subset", cfg.subset, "all, clips/N or speakers/N with N of 2 or more")
    require(cfg.inner_folds >= 2, "inner_folds", cfg.inner_folds, "2 or more")
    for key, seed in (("seed", cfg.seed), ("folds.seed", cfg.folds.seed)):
        require(0 <= seed < 2**32, key, seed, "0 to 4294967295")
    require(cfg.resume_every_s >= 0, "resume_every_s", cfg.resume_every_s, "0 or more")


def _check_data(data: DictConfig) -> None:
    require(data.on_bad_clip in ("error", "skip"), "data.on_bad_clip", data.on_bad_clip, "error or skip")
    require(data.copies in ("sound", "samples"), "data.copies", data.copies, "sound or samples")
    rate_hz, clip_s = data.sample_rate_hz, data.clip_s
    require(rate_hz is None or 1000 <= rate_hz <= 384_000, "data.sample_rate_hz", rate_hz, "1000 to 384000, or null")
    require(clip_s is None or clip_s > 0, "data.clip_s", clip_s, "above 0, or null")
    require(0 <= data.min_clip_s < data.max_clip_s, "data.min_clip_s", data.min_clip_s, "0 to data.max_clip_s")


def _check_views(cfg: DictConfig) -> None:
    require(cfg.views.placements >= 1, "views.placements", cfg.views.placements, "1 or more")
    speeds = list(cfg.views.speeds)
    distinct = len(speeds) == len(set(speeds)) >= 1
    in_range = all(0.25 <= speed <= 4 for speed in speeds)
    require(distinct and in_range, "views.speeds", speeds, "one or more different factors, 0.25 to 4")


def _check_trainer(cfg: DictConfig) -> None:
    trainer = cfg.trainer
    for key in ("max_epochs", "min_epochs", "devices", "runs_per_gpu", "threads"):
        require(trainer[key] >= 1, f"trainer.{key}", trainer[key], "1 or more")
    steps, clip = trainer.max_steps, trainer.gradient_clip_val
    require(steps is None or steps >= 1, "trainer.max_steps", steps, "1 or more, or null")
    require(clip is None or clip > 0, "trainer.gradient_clip_val", clip, "above 0, or null")
    require(trainer.batch_size >= 2, "trainer.batch_size", trainer.batch_size, "2 or more (batch normalisation)")
    every = trainer.validate_every
    require(
        every is None or every == 1 or (every > 1 and cfg.selection == "last"),
        "trainer.validate_every",
        every,
        "null or 1; a larger number only with selection=last, which chooses no epoch",
    )
    patience = trainer.early_stopping_patience
    require(
        patience is None or (patience >= 1 and cfg.selection == "inner"),
        "trainer.early_stopping_patience",
        patience,
        "1 or more with selection=inner, else null (the scored fold must not choose the epoch)",
    )


def _check_optimizer(cfg: DictConfig) -> None:
    optimizer = cfg.optimizer
    require(optimizer.name in ("muon", "adamw", "adam"), "optimizer.name", optimizer.name, "muon, adamw or adam")
    require(optimizer.schedule in SCHEDULES, "optimizer.schedule", optimizer.schedule, "one of " + ", ".join(SCHEDULES))
    decay = optimizer.ema_decay
    require(decay is None or 0 < decay < 1, "optimizer.ema_decay", decay, "between 0 and 1, or null")
    require(optimizer.lr > 0, "optimizer.lr", optimizer.lr, "above 0")
    require(optimizer.matrix_lr > 0, "optimizer.matrix_lr", optimizer.matrix_lr, "above 0")
    require(optimizer.weight_decay >= 0, "optimizer.weight_decay", optimizer.weight_decay, "0 or more")
    require(0 < optimizer.warmup_share < 1, "optimizer.warmup_share", optimizer.warmup_share, "between 0 and 1")
    require(0 <= optimizer.label_smoothing < 1, "optimizer.label_smoothing", optimizer.label_smoothing, "0 to 1")


def validate_ensemble(cfg: DictConfig) -> DictConfig:
    """Check the config of `ensemble.py`, as `validate_train` does; `run_ids` becomes "latest" or a list."""
    if OmegaConf.is_missing(cfg, "run_ids"):
        raise ConfigError("run_ids is not set: give run_ids=latest or run_ids=[id1,id2,...]")
    cfg = typed(EnsembleConfig, cfg)
    _require_store(cfg, "the store that the runs are tracked in")
    ids = cfg.run_ids
    if ids != "latest":
        if isinstance(ids, str):
            ids = [ids]
        if not OmegaConf.is_list(ids) and not isinstance(ids, list):
            raise ConfigError(f"run_ids={ids}: expected latest or a list, run_ids=[id1,id2,...]")
        cfg.run_ids = [str(i) for i in ids]
        require(len(cfg.run_ids) > 0, "run_ids", "[]", "latest or at least one id")
    require(cfg.combine in COMBINES, "combine", cfg.combine, "one of " + ", ".join(COMBINES))
    require(cfg.calibrate in CALIBRATES, "calibrate", cfg.calibrate, "one of " + ", ".join(CALIBRATES))
    require(cfg.score in SCORES, "score", cfg.score, "one of " + ", ".join(SCORES))
    require(cfg.baseline in BASELINES, "baseline", cfg.baseline, "svm or null")
    plain = cfg.alias.replace("-", "_").isidentifier() and cfg.alias != "latest"  # MLflow keeps that one for itself
    require(plain, "alias", cfg.alias, "letters, digits, dashes or underscores, not latest")
    _require_batches(cfg)
    return cfg


def validate_explore(cfg: DictConfig) -> DictConfig:
    """Check the config of `explore.py`, as `validate_train` does."""
    cfg = typed(ExploreConfig, cfg)
    require(len(cfg.features) > 0, "features", "[]", "at least one name from conf/feature/")
    require(1 <= cfg.examples <= 100, "examples", cfg.examples, "1 to 100")
    require(0 <= cfg.seed < 2**32, "seed", cfg.seed, "0 to 4294967295")
    _check_data(cfg.data)
    return cfg


def validate_predict(cfg: DictConfig) -> DictConfig:
    """Check the config of `predict.py`, as `validate_train` does; `audio` becomes a list."""
    if OmegaConf.is_missing(cfg, "audio"):
        raise ConfigError("audio is not set: give audio=FILE, a folder, a csv with a column path, or [a.wav,b.wav]")
    cfg = typed(PredictConfig, cfg)
    audio = cfg.audio
    cfg.audio = [str(one) for one in audio] if OmegaConf.is_list(audio) or isinstance(audio, list) else [str(audio)]
    require(len(cfg.audio) > 0, "audio", "[]", "at least one recording")
    _require_store(cfg, "the store that the model is tracked in")
    require(cfg.window_s is None or cfg.window_s >= 0.01, "window_s", cfg.window_s, "0.01 or more, or null")
    hop = cfg.hop_s
    require(hop is None or (cfg.window_s is not None and hop > 0), "hop_s", hop, "above 0, with window_s; or null")
    require(cfg.max_clip_s > 0, "max_clip_s", cfg.max_clip_s, "above 0")
    _require_batches(cfg)
    return cfg


def validate_demo(cfg: DictConfig) -> DictConfig:
    """Check the config of `demo.py`, as `validate_train` does."""
    cfg = typed(DemoConfig, cfg)
    _require_store(cfg, "the store that the model is tracked in")
    require(0 <= cfg.port <= 65535, "port", cfg.port, "0 to 65535")
    require(cfg.max_upload_mb > 0, "max_upload_mb", cfg.max_upload_mb, "above 0")
    require(cfg.max_clip_s > 0, "max_clip_s", cfg.max_clip_s, "above 0")
    require(cfg.threads >= 1, "threads", cfg.threads, "1 or more")
    return cfg


def _require_store(cfg: DictConfig, expected: str) -> None:
    require(cfg.tracking.uri is not None, "tracking.uri", None, expected)


def _require_batches(cfg: DictConfig) -> None:
    for key in ("batch_size", "threads"):
        require(cfg[key] >= 1, key, cfg[key], "1 or more")
