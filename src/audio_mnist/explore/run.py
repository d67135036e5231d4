"""`explore.py`: what is in a corpus, and what of it reaches the net."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch
from hydra import compose
from hydra.errors import HydraException
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.table import Table
from rich.text import Text

from audio_mnist import features
from audio_mnist.augment import Augmenter
from audio_mnist.config import to_plain
from audio_mnist.data.prepare import PreparedCorpus, prepare
from audio_mnist.errors import ConfigError
from audio_mnist.report import plots as pictures
from audio_mnist.report import tables as report
from audio_mnist.schema import validate_explore
from audio_mnist.tracking import tracker as tracking

FULL_SCALE = 0.999  # of a sample that is clipped; three in a row make a clipped clip
QUIET_DB = -50.0  # peak below full scale of a clip that is nearly silent


def explore(cfg: DictConfig, output_dir: Path) -> None:
    """Prints, draws and tracks what a corpus holds.

    Args:
        cfg: the composed config of `conf/explore.yaml`.
        output_dir: where the pictures and summary.txt are written.

    Raises:
        AudioMnistError: no such corpus, class, clip or feature.
    """
    cfg = validate_explore(cfg)
    settings = to_plain(cfg)
    fronts = {name: _feature(name) for name in settings["features"]}
    # clips that cannot be used are a finding here, not the end
    corpus = prepare(settings["data"] | {"on_bad_clip": "skip"})
    table = describe(corpus)
    text = _summary(corpus, table)
    print("\n" + text, flush=True)
    figures = draw(corpus, table, fronts, settings)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "summary.txt").write_text(text, encoding="utf-8")
    tracker = tracking.connect(cfg.tracking.uri, cfg.tracking.experiment)
    run = tracker.start(
        f"explore {corpus.name}",
        kind="explore",
        tags={"corpus": corpus.name, "corpus_fingerprint": corpus.fingerprint},
        params={"features": ", ".join(fronts), "augment": settings["augment"]},
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


def describe(corpus: PreparedCorpus) -> pd.DataFrame:
    """The manifest with, for each clip, what can be wrong with it.

    Returns:
        Columns of the manifest, and native_hz (the file's sample rate), peak_db
        (below full scale), quiet, clipped and duplicate (of an earlier clip).
    """
    table = corpus.manifest.copy()
    table["native_hz"] = [soundfile.info(path).samplerate for path in table["path"]]
    peaks, clipped = [], []
    for row in range(len(table)):
        loud = np.abs(corpus.store.clip(row))
        peaks.append(20 * np.log10(max(float(loud.max()), 1e-10)))
        full = loud >= FULL_SCALE
        clipped.append(bool((full[:-2] & full[1:-1] & full[2:]).any()))
    table["peak_db"], table["clipped"] = peaks, clipped
    table["quiet"] = table["peak_db"] < QUIET_DB
    table["duplicate"] = table["content"].duplicated()
    return table


def draw(
    corpus: PreparedCorpus, table: pd.DataFrame, fronts: dict[str, dict[str, Any]], settings: dict[str, Any]
) -> dict[str, Figure]:
    """File name without suffix -> picture."""
    label = settings["label"] if settings["label"] is not None else corpus.class_names[0]
    of_class = np.flatnonzero(((table["label"] == label) & (table["split"] == "train")).to_numpy())
    if not len(of_class):
        raise ConfigError(f"label={label}: no training clip has it; the corpus has {', '.join(corpus.class_names)}")
    row = int(of_class[0])
    if settings["clip"] is not None:
        found = np.flatnonzero((table["clip_id"] == settings["clip"]).to_numpy())
        if not len(found):
            raise ConfigError(
                f"clip={settings['clip']}: the corpus has no clip of that id, such as {table['clip_id'][0]}"
            )
        row = int(found[0])
    rate_hz = corpus.store.sample_rate_hz
    built = {name: features.build(own, rate_hz) for name, own in fronts.items()}
    clip = np.array(corpus.store.clip(row))
    title = f"{table['clip_id'][row]}, class {table['label'][row] or 'unknown'}"
    figures = {"clip": pictures.anatomy(clip, rate_hz, built, title)}

    rng = np.random.default_rng(settings["seed"])
    shown = rng.permutation(of_class)[: settings["examples"]]
    place = rng.random(len(shown))
    waveforms = torch.from_numpy(corpus.store.gather(shown, corpus.clip_samples, place)).unsqueeze(1)
    targets = torch.from_numpy(corpus.targets()[shown])
    augmenter = Augmenter(settings["augment"], rate_hz)
    stages = ", ".join(str(stage.name) for stage in augmenter.stages)
    for name, front_end in built.items():
        with torch.no_grad():
            x = front_end(waveforms)
        caption = f"{len(shown)} clips of class {label} as the net receives them: {report.TITLES.get(name, name)}"
        figures[f"examples_{name}"] = pictures.grid(x[:, 0].numpy(), front_end, caption)
        if stages:
            augmenter.train()
            with torch.no_grad():
                x, _ = augmenter(waveforms, targets, front_end, len(corpus.class_names), (settings["seed"], 0, 0))
            figures[f"augmented_{name}"] = pictures.grid(x[:, 0].numpy(), front_end, f"{caption}, after {stages}")
    figures["durations"] = pictures.durations(table["duration_s"].to_numpy(), corpus.clip_samples / rate_hz)
    counts = table[table["label"] != ""].groupby(["label", "split"]).size().unstack(fill_value=0)
    figures["classes"] = pictures.classes(counts.reindex(corpus.class_names, fill_value=0))
    return figures


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


def _summary(corpus: PreparedCorpus, table: pd.DataFrame) -> str:
    by_class = Table()
    for name in ("class", "train", "test", "speakers", "min s", "median s", "max s", "duplicates", "quiet", "clipped"):
        by_class.add_column(name, justify="left" if name == "class" else "right")
    known = [(name, table[table["label"] == name]) for name in corpus.class_names]
    unknown = table[~table["label"].isin(corpus.class_names)]
    parts = known + ([("(unlabelled)", unknown)] if len(unknown) else []) + [("all", table)]
    for name, part in parts:
        splits = [str(int((part["split"] == split).sum())) for split in ("train", "test")]
        seconds = (
            [f"{value:.2f}" for value in np.percentile(part["duration_s"], (0, 50, 100))] if len(part) else ["-"] * 3
        )
        wrong = [str(int(part[key].sum())) for key in ("duplicate", "quiet", "clipped")]
        cells = (*splits, _speakers(part), *seconds, *wrong)
        by_class.add_row(Text(name), *cells, style="bold" if name == "all" else "")
    longer = int((table["duration_s"] * corpus.store.sample_rate_hz > corpus.clip_samples).sum())
    rates = Counter(table["native_hz"].tolist()).most_common()
    lines = [
        f"{corpus.name}: {len(table)} clips, {len(corpus.class_names)} classes, fingerprint {corpus.fingerprint}",
        "sample rates: "
        + ", ".join(f"{rate} Hz ({count} clips)" for rate, count in rates)
        + f"; used at {corpus.store.sample_rate_hz} Hz",
        f"window: {corpus.clip_samples / corpus.store.sample_rate_hz:.2f} s; {longer} clips are longer and are cut",
    ]
    text = report.render("\n".join(lines), by_class)
    text += f"duplicate: the bytes of an earlier clip; quiet: peak below {QUIET_DB:g} dB of full scale; clipped: three "
    text += f"samples in a row at {FULL_SCALE:g} of it or more\n"
    for key, what in (("duplicate", "duplicates"), ("quiet", "quiet"), ("clipped", "clipped")):
        ids = table["clip_id"][table[key]].tolist()
        if ids:
            text += f"{what}: {', '.join(ids[:5])}" + (f" and {len(ids) - 5} more" if len(ids) > 5 else "") + "\n"
    if corpus.left_out:
        text += f"cannot be used (named above): {len(corpus.left_out)} clips\n"
    return text


def _speakers(part: pd.DataFrame) -> str:
    known = part["speaker"][part["speaker"] != ""].nunique()
    return str(known) if known else "-"
