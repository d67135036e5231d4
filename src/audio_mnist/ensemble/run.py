"""`ensemble.py`: members predict, their probabilities are combined, scored out of fold and tracked."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from audio_mnist.config import to_plain
from audio_mnist.data.corpora.tables import read_table
from audio_mnist.data.folds import Folds, assign_folds, split_clips
from audio_mnist.data.prepare import PreparedCorpus, prepare
from audio_mnist.ensemble import baselines
from audio_mnist.ensemble.members import Member, check_reproduced, find, load_classifier, logged_predictions
from audio_mnist.errors import DataError, RunError
from audio_mnist.inference import predictor as inference
from audio_mnist.report import errors_page as diagnosis
from audio_mnist.report import figures
from audio_mnist.report import tables as report
from audio_mnist.schema import validate_ensemble
from audio_mnist.scoring import calibration
from audio_mnist.scoring import intervals as scores
from audio_mnist.scoring import mixture as ensembling
from audio_mnist.serving import register as registry
from audio_mnist.system import devices
from audio_mnist.tracking import pages as mlflow_pages
from audio_mnist.tracking.tracker import Tracker
from audio_mnist.training.classifier import Classifier, predict_together


@dataclass(frozen=True)
class Predictions:
    """What the members say.

    Attributes:
        oof: recipe -> (clips, C), each clip by the run that did not train on it; NaN where none did.
        test: (M, test clips, C), every member.
        test_rows: manifest rows of the test clips.
        classifiers: every member, rebuilt.
    """

    oof: dict[str, np.ndarray]
    test: np.ndarray
    test_rows: np.ndarray
    classifiers: tuple[Classifier, ...]


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
    devices.set_up_cpu(cfg.threads)
    if cfg.register:
        registry.check(cfg.register)
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
    joint = _join(said, members, common, targets, folds.fold_of, cfg)

    truth, several = targets[common], len(said.oof) > 1
    speakers = corpus.manifest["speaker"].to_numpy()
    groups = speakers[common] if folds.group == "speaker" else None
    right = {labels[r]: p[common].argmax(axis=1) == truth for r, p in said.oof.items()}
    rows = {label: scores.score(correct, groups) for label, correct in right.items()}
    right[report.ENSEMBLE] = joint.oof.argmax(axis=1) == truth
    total = scores.score(right[report.ENSEMBLE], groups)
    metrics = {"oof/accuracy": total.accuracy, "oof/accuracy_low": total.low, "oof/accuracy_high": total.high}
    metrics["oof/n"] = total.n
    shown = {label: correct for label, correct in right.items() if several or label != report.ENSEMBLE}
    rows = rows | {report.ENSEMBLE: total} if several else rows
    svm = None
    if cfg.baseline == "svm":
        svm = baselines.svm(corpus, folds.fold_of, common, said.test_rows)
        shown = {svm.label: svm.oof == truth} | shown
        rows = {svm.label: scores.score(svm.oof == truth, groups)} | rows
        metrics["oof/baseline_accuracy"] = rows[svm.label].accuracy
    text = _fold_report(shown, folds.fold_of[common], folds, len(common))
    text += report.render("", "Out of fold: each clip scored by the runs that did not train on it")
    text += report.render(report.score_table(rows))
    best = max((label for label in right if label != report.ENSEMBLE), key=lambda label: rows[label].accuracy)
    whole = report.ENSEMBLE if several else best
    if several:
        paired = scores.compare(right[report.ENSEMBLE], right[best], groups)
        text += report.paired_line(report.ENSEMBLE, f"best single ({best})", paired) + "\n"
        metrics |= {"oof/gain": paired.difference, "oof/gain_low": paired.low, "oof/gain_high": paired.high}
        metrics["oof/gain_p"] = paired.p_value
    if svm is not None:
        text += report.paired_line(whole, svm.label, scores.compare(right[whole], svm.oof == truth, groups)) + "\n"
    if several and cfg.combine == "stack":
        given = ", ".join(f"{labels[r]} {w:.3f}" for r, w in joint.mixture.weights.items())
        text += f"weights, learnt on all clips out of fold (on the other folds' where a fold is scored): {given}\n"
        metrics |= {f"weight/{_key(labels[r])}": w for r, w in joint.mixture.weights.items()}
    before, after = (calibration.reliability(p, truth) for p in (joint.raw_oof, joint.oof))
    metrics |= {"oof/ece_raw": before.error, "oof/ece": after.error}
    metrics["oof/loss"] = float(calibration.log_loss(joint.oof, truth).mean())
    text += report.calibration_line(whole, before, after, joint.mixture.temperature) + "\n"

    if len(said.test_rows):
        labelled = targets[said.test_rows] >= 0
        if labelled.any():
            named = {labels[recipe]: p for recipe, p in joint.test_of.items()}
            named = named | {report.ENSEMBLE: joint.test} if several else named
            test_truth = targets[said.test_rows][labelled]
            answers = {label: p[labelled].argmax(axis=1) for label, p in named.items()}
            answers = {svm.label: svm.test[labelled]} | answers if svm is not None else answers
            # a test split of other speakers than the training's, or the same: where named, they are resampled
            heard = speakers[said.test_rows][labelled] if folds.group == "speaker" else None
            test = {label: scores.score(answer == test_truth, heard) for label, answer in answers.items()}
            title = f"Test split: all {len(members)} runs, none saw it"
            text += report.render("", title, report.score_table(test))
            score = test[whole]
            metrics |= {"test/accuracy": score.accuracy, "test/accuracy_low": score.low, "test/n": score.n}
            metrics["test/accuracy_high"] = score.high
            metrics["test/ece"] = calibration.reliability(joint.test[labelled], test_truth).error
            text += f"expected calibration error of {whole} on the test split: {metrics['test/ece']:.4f}\n"
        else:
            text += f"\nTest split: {len(said.test_rows)} clips predicted; they have no labels to score\n"
    text += "".join(f"note: {note}\n" for note in notes)
    print("\n" + text, flush=True)

    root = Path(str(cfg.data.root or members[0].config["data"]["root"]))
    files = _write(output_dir, root, corpus, folds, (common, joint.oof), (said.test_rows, joint.test))
    sections = [
        diagnosis.Answers("Out of fold", common, joint.oof, {labels[r]: p[common] for r, p in said.oof.items()})
    ]
    if len(said.test_rows) and (targets[said.test_rows] >= 0).any():
        known = targets[said.test_rows] >= 0
        own = {labels[r]: p[known] for r, p in joint.test_of.items()}
        sections.append(diagnosis.Answers("Test split", said.test_rows[known], joint.test[known], own))
    configs = {labels[member.recipe]: member.config for member in members}
    files += diagnosis.write(output_dir, corpus, sections, configs, f"{corpus.name}: {whole}, {len(members)} runs")
    parents = {member.run.parent_id for member in members}
    parent_id = parents.pop() if len(parents) == 1 else None
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
        params={
            "combine": cfg.combine,
            "calibrate": cfg.calibrate,
            "members": len(members),
            "features": ", ".join(labels.values()),
        },
        parent_id=parent_id,
    )
    try:
        run.log_metrics(metrics)
        run.log_text(text, "table.txt")
        run.log_text(inference.describe(joint.mixture, [m.run.id for m in members], corpus.class_names), inference.FILE)
        shown = to_plain(cfg) | {"tracking": {"uri": tracker.shown_uri, "experiment": cfg.tracking.experiment}}
        run.log_text(OmegaConf.to_yaml(shown), "config.yaml")
        run.note("```\n" + text + "```")
        for path in files:
            run.log_file(path, path.name)
        title = f"{whole}, out of fold: {total.accuracy:.4f} (n = {total.n})"
        title += "\noptimistic: epochs were chosen on these folds" if optimistic else ""
        picture = figures.confusion(truth, joint.oof.argmax(axis=1), corpus.class_names, title)
        run.log_figure(picture, "figures/confusion_matrix.png")
        run.log_figure(figures.reliability(before, after, whole), "figures/reliability.png")
    except BaseException:
        run.end("FAILED")
        raise
    run.end("FINISHED")
    if parent_id:
        scored = f"{total.accuracy:.4f} out of fold ({total.low:.4f} to {total.high:.4f}, n = {total.n})"
        page = mlflow_pages.of_run(tracker, run.id)
        tracker.open(parent_id).head_note(f"[Ensemble of {len(members)}]({page}): {scored}")
    print(f"written: {', '.join(str(path) for path in files)}\ntracked: run {run.id}", flush=True)
    if cfg.register:
        predictor = inference.Predictor(cfg.register, run.id, said.classifiers, joint.mixture)
        version = registry.register(tracker, predictor, cfg.register, cfg.alias)
        serve = f"mlflow models serve -m models:/{cfg.register}@{cfg.alias} --env-manager local -p 5001"
        print(
            f"registered: {cfg.register} version {version}, alias {cfg.alias}; serve it: "
            f"MLFLOW_TRACKING_URI={tracker.shown_uri} {serve}",
            flush=True,
        )
    return metrics


@dataclass(frozen=True)
class Joint:
    """The members' probabilities, joined.

    Attributes:
        raw_oof: (n, C) of the clips that all recipes scored.
        oof: (n, C) the same after calibration, each fold's by the other folds'.
        test: (test clips, C), calibrated by all clips out of fold.
        test_of: recipe -> (test clips, C), mean of its runs.
        mixture: what made `test` of the members' probabilities.
    """

    raw_oof: np.ndarray
    oof: np.ndarray
    test: np.ndarray
    test_of: dict[str, np.ndarray]
    mixture: ensembling.Mixture


def _join(
    said: Predictions,
    members: list[Member],
    common: np.ndarray,
    targets: np.ndarray,
    fold_of: np.ndarray,
    cfg: DictConfig,
) -> Joint:
    oof = np.stack([p[common] for p in said.oof.values()])  # (recipes, n, C)
    truth, folds = targets[common], fold_of[common]
    of_run = np.array([member.recipe for member in members])
    how = "mean" if cfg.combine == "stack" else cfg.combine
    test_of = {recipe: ensembling.combine(said.test[of_run == recipe], how) for recipe in said.oof}
    weights = np.full(len(oof), 1 / len(oof))
    if cfg.combine == "stack":
        weights = ensembling.fit_weights(oof, truth)
        raw = ensembling.stack(oof, truth, folds)
    else:
        raw = ensembling.combine(oof, cfg.combine)
    temperature, calibrated = 1.0, raw
    if cfg.calibrate == "temperature":
        temperature = calibration.fit_temperature(raw, truth)
        calibrated = calibration.cross_fitted(raw, truth, folds)
    shares = dict(zip(said.oof, weights.tolist(), strict=True))
    mixture = ensembling.Mixture(tuple(of_run.tolist()), cfg.combine, shares, temperature)
    return Joint(raw, calibrated, mixture(said.test), test_of, mixture)


def _key(label: str) -> str:
    """A label as MLflow takes it in a metric's name."""
    return "".join(c if c.isalnum() or c in "._- " else "_" for c in label)


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
    of_rate: dict[int | None, list[int]] = {}
    classifiers: list[Classifier] = []
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
        of_rate.setdefault(rate_hz, []).append(len(classifiers))
        classifiers.append(classifier)
    test = np.empty((len(members), len(rows), len(corpus.class_names)), dtype=np.float32)
    for rate_hz, numbers in of_rate.items():
        alike = [classifiers[number] for number in numbers]
        at_once = devices.at_once()
        test[numbers] = predict_together(alike, stores[rate_hz], rows, batch_size=batch_size, at_once=at_once)
    return Predictions(oof, test, rows, tuple(classifiers))


def _fold_report(right: dict[str, np.ndarray], fold_of: np.ndarray, folds: Folds, n: int) -> str:
    shown = sorted(set(fold_of.tolist()))
    rows: dict[str, dict[int, float | str]] = {
        label: {fold: float(correct[fold_of == fold].mean()) for fold in shown} for label, correct in right.items()
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
