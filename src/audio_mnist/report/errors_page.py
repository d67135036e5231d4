"""An ensemble's errors: tables by class, group and duration, and one page to hear and see them."""

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
import soundfile
import torch
from matplotlib.image import imsave
from sklearn.metrics import precision_recall_fscore_support

from audio_mnist import features
from audio_mnist.data.prepare import PreparedCorpus
from audio_mnist.data.tables import safe
from audio_mnist.features import FrontEnd
from audio_mnist.report import plots
from audio_mnist.scoring import label_errors as scoring
from audio_mnist.scoring.intervals import score

MOST_CLIPS = 60  # per section of the page, the worst first
MOST_SUSPECTS = 20  # suspect labels per section of the page
PAGE = Path(__file__).with_suffix(".html")


@dataclass(frozen=True)
class Answers:
    """Predictions for some labelled clips.

    Attributes:
        title: title of the section.
        rows: (n,) manifest rows.
        joint: (n, C) probabilities of the ensemble.
        members: label -> (n, C) probabilities of each recipe.
    """

    title: str
    rows: np.ndarray
    joint: np.ndarray
    members: Mapping[str, np.ndarray]


def per_class(truth: np.ndarray, predicted: np.ndarray, class_names: tuple[str, ...]) -> pd.DataFrame:
    """Tabulate precision, recall, F1 and clips per class, and their macro mean in the last row.

    Args:
        truth: (n,) class numbers.
        predicted: (n,) class numbers.
        class_names: C names.
    """
    numbers = np.arange(len(class_names))
    values = precision_recall_fscore_support(truth, predicted, labels=numbers, zero_division=0)
    table = pd.DataFrame(dict(zip(("precision", "recall", "f1", "clips"), values, strict=True)))
    table.insert(0, "class", list(class_names))
    mean = table[["precision", "recall", "f1"]].mean()
    table.loc[len(table)] = ["macro mean", *mean, int(table["clips"].sum())]
    return table.astype({"clips": int})


def by_group(right: np.ndarray, group: np.ndarray, name: str) -> pd.DataFrame:
    """Tabulate accuracy with Wilson's interval for each value of `group`, sorted.

    Args:
        right: (n,) booleans.
        group: (n,) values; NaN and "" are left out.
        name: heading of the values.

    >>> by_group(np.array([True, False, True]), np.array(["a", "a", "b"]), "speaker")["accuracy"].tolist()
    [0.5, 1.0]
    """
    rows = []
    for value in pd.unique(pd.Series(group).sort_values()):
        if value == "" or pd.isna(value):
            continue
        of_group = right[np.asarray(group == value)]
        result = score(of_group)
        rows.append((str(value), result.value, result.low, result.high, result.n))
    return pd.DataFrame(rows, columns=[name, "accuracy", "low", "high", "clips"])


def duration_bins(seconds: np.ndarray) -> np.ndarray:
    """Cut (n,) durations into at most five bins of about equally many clips; return their labels."""
    return np.asarray(pd.qcut(pd.Series(seconds), 5, duplicates="drop", precision=2))


def tables(corpus: PreparedCorpus, answers: Answers, groups: Iterable[str] = ("speaker",)) -> dict[str, pd.DataFrame]:
    """Return heading -> table; by a column of `groups` only where the corpus has values in it."""
    truth, predicted = corpus.targets()[answers.rows], answers.joint.argmax(axis=1)
    clips = corpus.manifest.iloc[answers.rows]
    found = {"by class": per_class(truth, predicted, corpus.class_names)}
    for name in groups:
        if name in clips and (clips[name] != "").any():
            heading = f"by {name}" if name not in ("class", "duration") else f"by column {name}"
            found[heading] = by_group(truth == predicted, clips[name].to_numpy(), name)
    found["by duration (s)"] = by_group(truth == predicted, duration_bins(clips["duration_s"].to_numpy()), "duration")
    return found


def label_errors(corpus: PreparedCorpus, answers: Answers) -> pd.DataFrame:
    """List the clips with a label that may be wrong, the most suspect first.

    Returns:
        Columns rank, clip_id, label, suggested (the ensemble's first choice), quality (0 to 1, of the label) and
        suspect (by confident learning; the others are clips that the ensemble got wrong).
    """
    truth = corpus.targets()[answers.rows]
    doubted = scoring.suspects(answers.joint, truth)
    quality, first = scoring.quality(answers.joint, truth), answers.joint.argmax(axis=1)
    listed = np.flatnonzero(doubted | (first != truth))
    listed = listed[np.lexsort((quality[listed], ~doubted[listed]))]
    table = corpus.manifest.iloc[answers.rows[listed]][["clip_id", "label"]].reset_index(drop=True)
    table.insert(0, "rank", np.arange(1, len(listed) + 1))
    table["suggested"] = np.asarray(corpus.class_names)[first[listed]]
    table["quality"], table["suspect"] = quality[listed], np.where(doubted[listed], "yes", "no")
    return table


def write(
    folder: Path, corpus: PreparedCorpus, sections: list[Answers], configs: Mapping[str, dict], title: str
) -> list[Path]:
    """Write `errors.html`, and the first section's tables and suspect labels as csv; return their paths.

    Args:
        folder: target folder.
        corpus: corpus of the clips.
        sections: sections of the page, such as out of fold and the test split.
        configs: label -> a member's whole config; its feature is drawn, and its groups have a table.
        title: title of the page.
    """
    paths = [folder / "errors.html"]
    groups = list(dict.fromkeys(["speaker", *(config["folds"]["group"] for config in configs.values())]))
    fronts = front_ends(configs, corpus.store.sample_rate_hz)
    paths[0].write_text(page(corpus, sections, fronts, title, groups), encoding="utf-8")
    for heading, table in tables(corpus, sections[0], groups).items():
        paths.append(folder / (re.sub(r"[^\w-]+", "_", heading.removesuffix(" (s)")) + ".csv"))
        safe(table.astype({table.columns[0]: str})).to_csv(paths[-1], index=False, float_format="%.6g")
    paths.append(folder / "label_errors.csv")
    safe(label_errors(corpus, sections[0])).to_csv(paths[-1], index=False, float_format="%.4f")
    return paths


def page(
    corpus: PreparedCorpus, sections: list[Answers], fronts: Mapping[str, FrontEnd], title: str, groups: Sequence[str]
) -> str:
    """Make one self-contained HTML page: the tables, and each wrong clip with its sound and features.

    Args:
        corpus: corpus of the clips.
        sections: sections of the page, such as out of fold and the test split.
        fronts: name -> front end of the feature that is drawn.
        title: title of the page.
        groups: columns that each have a table.
    """
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for answers in sections:
        truth = corpus.targets()[answers.rows]
        wrong = np.flatnonzero(answers.joint.argmax(axis=1) != truth)
        worst = wrong[np.argsort(answers.joint[wrong, truth[wrong]], kind="stable")]
        parts.append(f"<h2>{html.escape(answers.title)}: {len(wrong)} of {len(truth)} clips wrong</h2>")
        parts.append("<div class='tables'>")
        for heading, table in tables(corpus, answers, groups).items():
            shown = table.to_html(index=False, border=0, float_format="{:.4f}".format, escape=True)
            state = " open" if heading == "by class" else ""
            parts.append(f"<details{state}><summary>{html.escape(heading)}</summary>{shown}</details>")
        parts.append("</div>")
        parts.append(_label_errors(corpus, answers))
        if len(worst) > MOST_CLIPS:
            parts.append(f"<p>The {MOST_CLIPS} clips with the lowest probability of the true class:</p>")
        parts += [_clip(corpus, answers, number, fronts) for number in worst[:MOST_CLIPS].tolist()]
    template = Template(PAGE.read_text(encoding="utf-8"))
    return template.substitute(title=html.escape(title), body="\n".join(parts))


def _label_errors(corpus: PreparedCorpus, answers: Answers) -> str:
    """Show the most suspect labels with their sounds; "" where there is none."""
    table = label_errors(corpus, answers)
    doubted = table[table["suspect"] == "yes"].head(MOST_SUSPECTS)
    if doubted.empty:
        return ""
    row_of = dict(zip(corpus.manifest["clip_id"].iloc[answers.rows], answers.rows.tolist(), strict=True))
    rows = []
    for clip in doubted.itertuples():
        wav = _wav(np.array(corpus.store.clip(row_of[clip.clip_id])), corpus.store.sample_rate_hz)
        texts = [html.escape(str(text)) for text in (clip.clip_id, clip.label, clip.suggested)]
        player = f"<audio controls preload='none' src='data:audio/wav;base64,{wav}'></audio>"
        rows.append(f"<tr><td>{'</td><td>'.join(texts)}</td><td>{clip.quality:.3f}</td><td>{player}</td></tr>")
    head = "<tr><th>clip</th><th>label</th><th>suggested</th><th>quality</th><th></th></tr>"
    count = int((table["suspect"] == "yes").sum())
    summary = f"<summary>suspect labels: {count}, the {len(doubted)} most suspect</summary>"
    return f"<details>{summary}<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></details>"


def _clip(corpus: PreparedCorpus, answers: Answers, number: int, fronts: Mapping[str, FrontEnd]) -> str:
    row = int(answers.rows[number])
    clip = corpus.manifest.iloc[row]
    names, samples = corpus.class_names, np.array(corpus.store.clip(row))
    true, predicted = clip["label"], names[int(answers.joint[number].argmax())]
    speaker = f", speaker {clip['speaker']}" if clip["speaker"] else ""
    about = html.escape(f"{clip['clip_id']}, {clip['duration_s']:.2f} s{speaker}")
    bars = []
    for label, p in [("ensemble", answers.joint), *answers.members.items()]:
        first = [int(p[number].argmax()), names.index(true)]
        cells = []
        for index in dict.fromkeys(first):
            kind = "right" if names[index] == true else "wrong"
            share, name = float(p[number][index]), html.escape(names[index])
            cells.append(f"<span class='p {kind}'><i style='width:{100 * share:.1f}%'></i>{name} {share:.3f}</span>")
        bars.append(f"<tr><th>{html.escape(label)}</th><td>{''.join(cells)}</td></tr>")
    drawn = "".join(_feature(samples, name, front_end) for name, front_end in fronts.items())
    wav = _wav(samples, corpus.store.sample_rate_hz)
    return (
        f"<section><h3>true <b class='right'>{html.escape(true)}</b>, "
        f"predicted <b class='wrong'>{html.escape(predicted)}</b><small>{about}</small></h3><div class='clip'><div>"
        f"<audio controls preload='none' src='data:audio/wav;base64,{wav}'></audio>"
        f"<table>{''.join(bars)}</table></div>{drawn}</div></section>"
    )


def _wav(samples: np.ndarray, rate_hz: int) -> str:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format="WAV", subtype="PCM_16")
    return base64.b64encode(buffer.getvalue()).decode()


def _feature(samples: np.ndarray, name: str, front_end: FrontEnd) -> str:
    """Draw a feature before scaling, as an image with its axes in words."""
    with torch.inference_mode():
        x = front_end.transform(torch.from_numpy(samples).view(1, 1, -1))[0, 0].numpy()  # (F, N)
    low, high = plots.limits(x[None], front_end)
    buffer = io.BytesIO()
    imsave(buffer, x, format="png", origin="lower", cmap=plots.COLOURS, vmin=low, vmax=max(high, low + 1e-6))
    image = base64.b64encode(buffer.getvalue()).decode()
    values = front_end.row_values()
    rows = f"{front_end.row_label} {values[0]:.0f} to {values[-1]:.0f}"
    about = html.escape(f"{name}: {rows}, 0 to {len(samples) / front_end.sample_rate_hz:.2f} s")
    return f"<figure><img alt='{about}' src='data:image/png;base64,{image}'><figcaption>{about}</figcaption></figure>"


def front_ends(configs: Mapping[str, dict], rate_hz: int) -> dict[str, FrontEnd]:
    """Build one front end per feature that was trained at this rate.

    Args:
        configs: label -> a member's whole config.
        rate_hz: sample rate of the clips.
    """
    found: dict[str, FrontEnd] = {}
    for label, config in configs.items():
        same_rate = config["data"]["sample_rate_hz"] in (None, rate_hz)
        if same_rate and config["feature"] not in [configs[known]["feature"] for known in found]:
            found[label] = features.build(config["feature"], rate_hz)
    return found
