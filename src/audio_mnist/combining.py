"""`ensemble.py`: members predict, their probabilities are combined, scored out of fold and tracked."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from audio_mnist import ensembling, figures, report
from audio_mnist.config import validate_ensemble
from audio_mnist.corpora.tables import read_table
from audio_mnist.errors import DataError, RunError
from audio_mnist.folds import Folds, assign_folds, split_clips
from audio_mnist.members import Member, check_reproduced, find, load_classifier, logged_predictions
from audio_mnist.prepared import PreparedCorpus, prepare
from audio_mnist.tracking import Tracker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions:
    """What the members say.

    Attributes:
        oof: recipe -> (clips, C), each clip by the run that did not train on it; NaN where none did.
        test: (M, test clips, C), every member.
        test_rows: manifest rows of the test clips.
    """

    oof: dict[str, np.ndarray]
    test: np.ndarray
    test_rows: np.ndarray


def ensemble(cfg: DictConfig, output_dir: Path) -> dict[str, float]:
    """Combines runs, scores them, writes and logs the predictions.

    Args:
        cfg: the composed config of `conf/ensemble.yaml`.
        output_dir: where predictions.csv and the other files are written.

    Returns:
        The `oof/*` and `test/*` metrics.

    Raises:
        AudioMnistError: runs that cannot be combined, or a corpus that changed.
    """
    cfg = validate_ensemble(cfg)
    torch.set_num_threads(cfg.threads)
    tracker = Tracker(cfg.tracking.uri, cfg.tracking.experiment)
    members = find(tracker, cfg.run_ids if cfg.run_ids == "latest" else list(cfg.run_ids))
    place = {key: value for key, value in cfg.data.items() if value is not None}
    corpus, folds = _corpus_of(members, place)
    said = _predict(tracker, members, corpus, folds, cfg.batch_size, place)
    labels = report.member_labels({member.recipe: member.config for member in members})

    targets = corpus.targets()
    covered = {recipe: np.flatnonzero(~np.isnan(p[:, 0])) for recipe, p in said.oof.items()}
    common = np.flatnonzero(np.all([~np.isnan(p[:, 0]) for p in said.oof.values()], axis=0))
    notes = list(folds.notes)
    if len(common) == 0:
        raise RunError("the members have no fold in common, so nothing can be scored out of fold; add the missing runs")
    if any(len(rows) > len(common) for rows in covered.values()):
        notes.append(f"members cover different folds; they are compared on the {len(common)} clips that all scored")
    optimistic = any(member.config["selection"] == "fold" for member in members)
    if optimistic:
        notes.append("optimistic: selection=fold chose epochs on the folds scored here")

    combined = ensembling.combine(np.stack([p[common] for p in said.oof.values()]), cfg.combine)
    right = {labels[r]: p[common].argmax(axis=1) == targets[common] for r, p in said.oof.items()}
    scores = {label: ensembling.score(correct) for label, correct in right.items()}
    several = len(said.oof) > 1
    right[report.ENSEMBLE] = combined.argmax(axis=1) == targets[common]
    total = ensembling.score(right[report.ENSEMBLE])
    metrics = {"oof/accuracy": total.accuracy, "oof/accuracy_low": total.low, "oof/accuracy_high": total.high}
    metrics["oof/n"] = total.n
    text = _fold_report(right, folds.fold_of[common], folds, len(common), several)
    oof_rows = scores | {report.ENSEMBLE: total} if several else scores
    title = "Out of fold: each clip scored by the runs that did not train on it"
    text += report.render("", title, report.score_table(oof_rows))
    if several:
        best = max(scores, key=lambda label: scores[label].accuracy)
        paired = ensembling.compare(right[report.ENSEMBLE], right[best])
        text += report.paired_line(report.ENSEMBLE, f"best single ({best})", paired) + "\n"
        metrics |= {"oof/gain": paired.difference, "oof/gain_low": paired.low, "oof/gain_high": paired.high}
        metrics["oof/gain_p"] = paired.p_value

    test_combined = np.empty((0, len(corpus.class_names)))
    if len(said.test_rows):
        test_combined = ensembling.combine(said.test, cfg.combine)
        labelled = targets[said.test_rows] >= 0
        if labelled.any():
            recipes = np.array([member.recipe for member in members])
            rows = {
                label: ensembling.combine(said.test[recipes == recipe], cfg.combine) for recipe, label in labels.items()
            }
            rows = rows | {report.ENSEMBLE: test_combined} if several else rows
            truth = targets[said.test_rows][labelled]
            test = {label: ensembling.score(p[labelled].argmax(axis=1) == truth) for label, p in rows.items()}
            title = f"Test split: all {len(members)} runs, none saw it"
            text += report.render("", title, report.score_table(test))
            score = list(test.values())[-1]
            metrics |= {"test/accuracy": score.accuracy, "test/accuracy_low": score.low, "test/n": score.n}
            metrics["test/accuracy_high"] = score.high
        else:
            text += f"\nTest split: {len(said.test_rows)} clips predicted; they have no labels to score\n"
    text += "".join(f"note: {note}\n" for note in notes)
    print("\n" + text, flush=True)

    root = Path(str(cfg.data.root or members[0].config["data"]["root"]))
    files = _write(output_dir, root, corpus, folds, (common, combined), (said.test_rows, test_combined))
    parents = {member.run.parent_id for member in members}
    run = tracker.start(
        f"ensemble of {len(members)} ({cfg.combine})",
        kind="ensemble",
        tags={
            "corpus": corpus.name,
            "corpus_fingerprint": corpus.fingerprint,
            "fold_fingerprint": folds.fingerprint,
            "members": ",".join(member.run.id for member in members),
            "optimistic": str(optimistic).lower(),
        },
        params={"combine": cfg.combine, "members": len(members), "features": ", ".join(labels.values())},
        parent_id=parents.pop() if len(parents) == 1 else None,
    )
    try:
        run.log_metrics(metrics)
        run.log_text(text, "table.txt")
        run.log_text(OmegaConf.to_yaml(cfg), "config.yaml")
        run.note("```\n" + text + "```")
        for path in files:
            run.log_file(path, path.name)
        title = f"{'Ensemble' if several else next(iter(scores))}, out of fold: {total.accuracy:.4f} (n = {total.n})"
        title += "\noptimistic: epochs were chosen on these folds" if optimistic else ""
        picture = figures.confusion(targets[common], combined.argmax(axis=1), corpus.class_names, title)
        run.log_figure(picture, "figures/confusion_matrix.png")
    except BaseException:
        run.end("FAILED")
        raise
    run.end("FINISHED")
    print(f"written: {', '.join(str(path) for path in files)}\ntracked: run {run.id}", flush=True)
    return metrics


def _corpus_of(members: list[Member], place: dict) -> tuple[PreparedCorpus, Folds]:
    corpus = prepare(members[0].config["data"] | place)
    run = members[0].run
    if corpus.fingerprint != run.tags["corpus_fingerprint"]:
        raise RunError(
            f"the corpus changed since run {run.id} was trained: its fingerprint is {corpus.fingerprint}, then "
            f"{run.tags['corpus_fingerprint']}; restore the clips (data.root, data.manifest) or train again"
        )
    folds = assign_folds(corpus.manifest, **members[0].config["folds"])
    if folds.fingerprint != run.tags["fold_fingerprint"]:
        raise RunError(f"the folds cannot be dealt again as run {run.id} had them; another version of scikit-learn?")
    return corpus, folds


def _predict(
    tracker: Tracker, members: list[Member], corpus: PreparedCorpus, folds: Folds, batch_size: int, place: dict
) -> Predictions:
    """Every member, with its own front end, on its fold and on the test split."""
    oof: dict[str, np.ndarray] = {}
    test = []
    rows = np.empty(0, dtype=np.int64)
    stores = {members[0].config["data"]["sample_rate_hz"]: corpus.store}
    for member in tqdm(members, desc="predicting", unit="run", disable=None):
        logged = logged_predictions(tracker, member.run.id)
        classifier = load_classifier(tracker, member)
        if tuple(classifier.class_names) != corpus.class_names:
            raise RunError(f"run {member.run.id}: its checkpoint knows other classes than the corpus has")
        rate_hz = member.config["data"]["sample_rate_hz"]
        if rate_hz not in stores:  # the same clips, decoded for this member
            stores[rate_hz] = prepare(members[0].config["data"] | place | {"sample_rate_hz": rate_hz}).store
        store = stores[rate_hz]
        split = split_clips(corpus.manifest, folds, fold=member.fold, selection="last")
        p = classifier.predict_clips(store, split.fold, batch_size=batch_size)
        check_reproduced(member, corpus, logged, split.fold, p)
        if member.recipe not in oof:
            oof[member.recipe] = np.full((len(corpus.manifest), p.shape[1]), np.nan)
        oof[member.recipe][split.fold] = p
        rows = split.test
        test.append(classifier.predict_clips(store, rows, batch_size=batch_size))
    return Predictions(oof, np.stack(test), rows)


def _fold_report(right: dict[str, np.ndarray], fold_of: np.ndarray, folds: Folds, n: int, several: bool) -> str:
    shown = sorted(set(fold_of.tolist()))
    rows: dict[str, dict[int, float | str]] = {
        label: {fold: float(correct[fold_of == fold].mean()) for fold in shown}
        for label, correct in right.items()
        if several or label != report.ENSEMBLE
    }
    return report.render(report.fold_table(rows, shown), report.fold_caption(n, len(shown), folds.count))


def _write(
    folder: Path,
    root: Path,
    corpus: PreparedCorpus,
    folds: Folds,
    scored: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> list[Path]:
    """predictions.csv, and for the competition's corpus its submission.csv."""
    names = np.asarray(corpus.class_names)
    parts = []
    for kind, (rows, p) in (("out of fold", scored), ("test", test)):
        clips = corpus.manifest.iloc[rows]
        part = pd.DataFrame({"clip_id": clips["clip_id"], "scored": kind, "label": clips["label"]})
        part["fold"] = [str(f) if f >= 0 else "" for f in folds.fold_of[rows]]
        part["predicted"] = names[p.argmax(axis=1)] if len(rows) else []
        part[[f"p:{name}" for name in names]] = p
        parts.append(part)
    submission = None
    if corpus.name == "dacon":
        submission = parts[1][["clip_id", "predicted"]].rename(columns={"clip_id": "file_name", "predicted": "label"})
        submission["file_name"] = submission["file_name"].str.removeprefix("test/")
        template = root / "sample_submission.csv"
        if template.exists():  # the competition wants its own order
            order = read_table(template, "data.root", ("file_name",))["file_name"]
            submission = submission.set_index("file_name").reindex(order).reset_index()
            lacking = submission["file_name"][submission["label"].isna()]
            if len(lacking):
                raise DataError(f"{template} lists {len(lacking)} clips without a prediction, {lacking.iloc[0]} first")
    files = [folder / "predictions.csv"]
    folder.mkdir(parents=True, exist_ok=True)
    pd.concat([part for part in parts if len(part)]).to_csv(files[0], index=False, float_format="%.6g")
    if submission is not None:
        files.append(folder / "submission.csv")
        submission.to_csv(files[1], index=False)
    return files
