"""What is in a corpus: numbers per clip and per class, and pictures."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from audio_mnist import features
from audio_mnist.augment import Augmenter, Draws
from audio_mnist.data import fold_notes
from audio_mnist.data.advice import advice
from audio_mnist.data.decode import read_header
from audio_mnist.data.folds import cut_folds
from audio_mnist.data.prepare import PreparedCorpus
from audio_mnist.errors import AudioMnistError, ConfigError, counted, listed
from audio_mnist.report import plots, tables

FULL_SCALE = 0.999  # a sample at or above it is clipped; three in a row make a clipped clip
QUIET_DB = -50.0  # peak below full scale of a nearly silent clip


def describe(corpus: PreparedCorpus) -> pd.DataFrame:
    """Add to the manifest what can be wrong with each clip.

    Returns:
        Columns of the manifest, and native_hz (the file's sample rate), peak_db
        (relative to full scale), quiet, clipped, and duplicate (of an earlier
        clip).
    """
    table = corpus.manifest.copy()
    headers = map(read_header, table["path"])
    table["native_hz"] = [0 if header is None else header.rate_hz for header in headers]
    peaks, clipped = [], []
    for row in range(len(table)):
        loud = np.abs(corpus.store.clip(row))
        peaks.append(20 * np.log10(max(float(loud.max()), 1e-10)))
        full = loud >= FULL_SCALE
        clipped.append(bool((full[:-2] & full[1:-1] & full[2:]).any()))
    table["peak_db"], table["clipped"] = peaks, clipped
    table["quiet"] = table["peak_db"] < QUIET_DB
    table["duplicate"] = table["recording"].duplicated()
    return table


def summary(corpus: PreparedCorpus, table: pd.DataFrame, folds: dict[str, Any]) -> str:
    """Describe a corpus as text.

    Args:
        corpus: the decoded clips.
        table: the result of `describe`.
        folds: settings of the folds that a training cuts, the config `folds`.
    """
    group = folds["group"]
    rates = Counter(table["native_hz"].tolist()).most_common()
    longer = int((table["duration_s"] * corpus.store.sample_rate_hz > 1.05 * corpus.clip_samples).sum())
    window_s = corpus.clip_samples / corpus.store.sample_rate_hz
    lines = [
        f"{corpus.name}: {len(table)} clips, {len(corpus.class_names)} classes, fingerprint {corpus.fingerprint}",
        "sample rates: "
        + ", ".join(f"{rate} Hz ({count} clips)" for rate, count in rates)
        + f"; used at {corpus.store.sample_rate_hz} Hz",
        f"window: {window_s:.2f} s; {longer} clips are longer by 5% or more and are cut",
    ]
    counts = {name: table[name].nunique() for name in ("fold", group) if name in table and (table[name] != "").any()}
    lines += [f"{name}: {count} values" for name, count in counts.items() if name != "speaker"]
    text = tables.render("\n".join(lines), _by_class(corpus, table))
    text += f"duplicate: a copy of an earlier clip, in any form; quiet: peak below {QUIET_DB:g} dB of full scale; "
    text += f"clipped: three samples in a row at {FULL_SCALE:g} or more\n"
    for key, what in (("quiet", "quiet"), ("clipped", "clipped")):
        ids = table["clip_id"][table[key]].tolist()
        if ids:
            text += f"{what}: {listed(ids)}\n"
    text += "".join(f"note: {line}\n" for line in fold_notes.on_columns(corpus.manifest, group))
    text += "".join(f"advice: {line}\n" for line in advice(corpus))
    try:
        cut_folds(corpus.manifest, folds)
    except AudioMnistError as error:
        text += f"training stops on this corpus: {error}\n"
    if corpus.left_out:
        text += f"unusable (named above): {len(corpus.left_out)} clips; training stops on them unless "
        text += "data.on_bad_clip=skip\n"
    return text


def _by_class(corpus: PreparedCorpus, table: pd.DataFrame) -> Table:
    drawn = Table()
    for name in ("class", "train", "test", "speakers", "min s", "median s", "max s", "duplicates", "quiet", "clipped"):
        drawn.add_column(name, justify="left" if name == "class" else "right")
    known = [(name, table[table["label"] == name]) for name in corpus.class_names]
    unknown = table[~table["label"].isin(corpus.class_names)]
    parts = known + ([("(unlabelled)", unknown)] if len(unknown) else []) + [("all", table)]
    for name, part in parts:
        splits = [str(int((part["split"] == split).sum())) for split in ("train", "test")]
        seconds = ["-"] * 3
        if len(part):
            seconds = [f"{value:.2f}" for value in np.percentile(part["duration_s"], (0, 50, 100))]
        wrong = [str(int(part[key].sum())) for key in ("duplicate", "quiet", "clipped")]
        cells = (*splits, _speakers(part), *seconds, *wrong)
        drawn.add_row(Text(name), *cells, style="bold" if name == "all" else "")
    return drawn


def _speakers(part: pd.DataFrame) -> str:
    known = part["speaker"][part["speaker"] != ""].nunique()
    return str(known) if known else "-"


def draw(
    corpus: PreparedCorpus, table: pd.DataFrame, feature_settings: dict[str, dict[str, Any]], settings: dict[str, Any]
) -> dict[str, Figure]:
    """Draw a clip, grids of what the net receives, and histograms.

    Args:
        corpus: the decoded clips.
        table: the result of `describe`.
        feature_settings: name -> settings of each feature.
        settings: the config of `explore.py`.

    Returns:
        File name without suffix -> picture.

    Raises:
        ConfigError: there is no such class or clip.
    """
    rate_hz = corpus.store.sample_rate_hz
    fronts = {name: features.build(own_settings, rate_hz) for name, own_settings in feature_settings.items()}
    shown, caption = _shown_clips(corpus, table, settings)
    row = _row_of(table, settings["clip"]) if settings["clip"] is not None else int(shown[0])
    title = f"{table['clip_id'][row]}, class {table['label'][row] or 'unknown'}"
    figures = {"clip": plots.anatomy(np.array(corpus.store.clip(row)), rate_hz, fronts, title)}
    figures |= _grids(corpus, shown, fronts, settings, caption)
    figures["durations"] = plots.durations(table["duration_s"].to_numpy(), corpus.clip_samples / rate_hz)
    counts = table[table["label"] != ""].groupby(["label", "split"]).size().unstack(fill_value=0)
    figures["classes"] = plots.classes(counts.reindex(corpus.class_names, fill_value=0))
    return figures


def _shown_clips(corpus: PreparedCorpus, table: pd.DataFrame, settings: dict[str, Any]) -> tuple[np.ndarray, str]:
    """Return the clips of the grids, and what they are: one of each class, or several of `label`."""
    rng, label = np.random.default_rng(settings["seed"]), settings["label"]
    labels, is_train = table["label"].to_numpy(), (table["split"] == "train").to_numpy()
    if label is None:
        names = corpus.class_names[: settings["examples"]]
        chosen = [int(rng.choice(np.flatnonzero((labels == name) & is_train))) for name in names]
        all_of_them = len(names) == len(corpus.class_names)
        which = "each class" if all_of_them else f"each of the first {len(names)} of {len(corpus.class_names)} classes"
        return np.array(chosen), f"One clip of {which}"
    of_class = np.flatnonzero((labels == label) & is_train)
    if not len(of_class):
        raise ConfigError(f"label={label}: no training clip has it; the corpus has {', '.join(corpus.class_names)}")
    shown = rng.permutation(of_class)[: settings["examples"]]
    return shown, f"{counted(len(shown), 'clip')} of class {label}"


def _row_of(table: pd.DataFrame, clip_id: str) -> int:
    found = np.flatnonzero((table["clip_id"] == clip_id).to_numpy())
    if not len(found):
        raise ConfigError(f"clip={clip_id}: the corpus has no clip of that id, such as {table['clip_id'][0]}")
    return int(found[0])


def _grids(
    corpus: PreparedCorpus,
    shown: np.ndarray,
    fronts: dict[str, features.FrontEnd],
    settings: dict[str, Any],
    what: str,
) -> dict[str, Figure]:
    """Draw clips as the net receives them, and after augmentation where there is any."""
    placement = np.random.default_rng(settings["seed"]).random(len(shown))
    names = corpus.manifest["label"].iloc[shown].tolist() if settings["label"] is None else None
    waveforms = torch.from_numpy(corpus.store.gather(shown, corpus.clip_samples, placement)).unsqueeze(1)
    targets = torch.from_numpy(corpus.targets()[shown])
    augmenter = Augmenter(settings["augment"], corpus.store.sample_rate_hz).train()
    stages = ", ".join(str(stage.name) for stage in augmenter.stages)
    figures = {}
    for name, front_end in fronts.items():
        with torch.no_grad():
            x = front_end(waveforms)
        caption = f"{what} as the net receives them: {features.title_of(name)}"
        figures[f"examples_{name}"] = plots.grid(x[:, 0].numpy(), front_end, caption, names)
        if stages and not front_end.frozen:  # an encoder gets no augmented waveforms
            with torch.no_grad():
                draws = Draws([settings["seed"]], len(shown), waveforms.device)
                x = augmenter(waveforms, front_end, draws)
                x, _ = augmenter.blend(x, targets, len(corpus.class_names), draws)
            figures[f"augmented_{name}"] = plots.grid(x[:, 0].numpy(), front_end, f"{caption}, after {stages}", names)
    return figures
