"""`explore.py`: a corpus looked at before training."""

from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig

from audio_mnist.config import load_modules, to_plain
from audio_mnist.data.prepare import prepare
from audio_mnist.errors import ConfigError
from audio_mnist.explore.describe import describe, draw, summary
from audio_mnist.schema import validate_explore
from audio_mnist.tracking.tracker import connect


def explore(cfg: DictConfig, output_dir: Path) -> None:
    """Print, draw and track what a corpus holds.

    Args:
        cfg: the composed config of `conf/explore.yaml`.
        output_dir: where the pictures and summary.txt are written.

    Raises:
        AudioMnistError: there is no such corpus, class, clip or feature.
    """
    cfg = validate_explore(cfg)
    load_modules(cfg.modules)
    settings = to_plain(cfg)
    feature_settings = {name: _feature(name) for name in settings["features"]}

    # numbers; a clip that cannot be used is a finding here, not the end
    corpus = prepare(settings["data"] | {"on_bad_clip": "skip"})
    table = describe(corpus)
    text = summary(corpus, table, _folds(settings["data"]["group"]))
    print("\n" + text, flush=True)

    # pictures
    figures = draw(corpus, table, feature_settings, settings)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "summary.txt").write_text(text, encoding="utf-8")

    # the tracked run
    run = connect(cfg.tracking.uri, cfg.tracking.experiment).start(
        f"explore {corpus.name}",
        kind="explore",
        tags={"corpus": corpus.name, "corpus_fingerprint": corpus.fingerprint},
        params={"features": ", ".join(feature_settings), "augment": settings["augment"]},
    )
    try:
        run.log_metrics({"clips": len(table), "duplicates": int(table["duplicate"].sum())})
        run.log_text(text, "summary.txt")
        run.note("```\n" + text + "```")
        for name, figure in figures.items():
            figure.savefig(output_dir / f"{name}.png", dpi=150)
            run.log_file(output_dir / f"{name}.png", f"figures/{name}.png")
    except BaseException:
        run.end("FAILED")
        raise
    run.end("FINISHED")
    print(f"written: {', '.join(f'{name}.png' for name in figures)} and summary.txt in {output_dir}", flush=True)
    if cfg.tracking.uri:
        print(f"tracked: run {run.id}", flush=True)


def _folds(group: str) -> dict[str, Any]:
    """Return the settings of a training's folds."""
    folds = compose("train").folds
    folds.group = group
    return to_plain(folds)


def _feature(name: str) -> dict[str, Any]:
    try:
        return to_plain(compose("train", [f"feature={name}"]))["feature"]
    except HydraException:
        names = sorted(path.stem for path in _feature_folder().glob("*.yaml"))
        raise ConfigError(f"features: {name} is none of {', '.join(names)}") from None


def _feature_folder() -> Path:
    from hydra.core.hydra_config import HydraConfig

    sources = HydraConfig.get().runtime.config_sources
    return Path(next(source.path for source in sources if source.provider == "main")) / "feature"
