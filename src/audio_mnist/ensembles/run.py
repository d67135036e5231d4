"""`ensemble.py`: members predict, their probabilities are joined, evaluated, published and registered."""

from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from audio_mnist.config import load_modules, to_plain
from audio_mnist.ensembles import against, baselines
from audio_mnist.ensembles.evaluate import Evaluation, evaluate, metrics_of
from audio_mnist.ensembles.join import Joint, join
from audio_mnist.ensembles.members import find
from audio_mnist.ensembles.predictions import Predictions, Stores, corpus_of, predict
from audio_mnist.ensembles.publish import Ensemble, publish, write_files
from audio_mnist.ensembles.render import render
from audio_mnist.inference.predictor import Predictor
from audio_mnist.report import tables
from audio_mnist.schema import validate_ensemble
from audio_mnist.serving import register
from audio_mnist.system import devices
from audio_mnist.tracking.tracker import Tracker


class Combined(NamedTuple):
    """A finished ensemble.

    Attributes:
        run_id: its tracked run.
        metrics: its `oof/*` and `test/*` metrics.
        evaluation: its scores.
        files: the files that were written.
    """

    run_id: str
    metrics: dict[str, float]
    evaluation: Evaluation
    files: list[Path]


def ensemble(cfg: DictConfig, output_dir: Path) -> Combined:
    """Combine runs, score them, write and log the predictions.

    Args:
        cfg: the composed config of `conf/ensemble.yaml`.
        output_dir: where predictions.csv and the other files are written.

    Raises:
        AudioMnistError: the runs cannot be combined, or the corpus changed.
    """
    cfg = validate_ensemble(cfg)
    load_modules(cfg.modules)
    devices.set_up_cpu(cfg.threads)
    if cfg.register:
        register.check(cfg.register)

    # members, and the clips that they were trained on
    tracker = Tracker(cfg.tracking.uri, cfg.tracking.experiment)
    other = against.find(tracker, cfg.against) if cfg.against else None
    members = find(tracker, cfg.run_ids if cfg.run_ids == "latest" else list(cfg.run_ids))
    data = members[0].config["data"] | {key: value for key, value in cfg.data.items() if value is not None}
    corpus, folds = corpus_of(members, data)
    targets = corpus.targets()

    # probabilities, and what they are worth
    predictions = predict(tracker, members, corpus, folds, Stores(corpus, data), cfg.batch_size)
    labels = tables.member_labels({member.recipe: member.config for member in members})
    families = tables.member_labels({member.recipe: member.config for member in members}, seeds=True)
    how = {"combine": cfg.combine, "calibrate": cfg.calibrate, "families": families}
    joint = join(predictions, targets, folds.fold_of, **how)
    baseline = None
    if cfg.baseline == "svm":
        baseline = baselines.svm(corpus, folds.fold_of, joint.rows, joint.test_rows)
    optimistic = any(member.run.tags.get("optimistic") == "true" for member in members)
    options = {"baseline": baseline, "optimistic": optimistic, "score": cfg.score, "families": families}
    evaluation = evaluate(joint, labels, targets, folds, **options)
    text = render(evaluation)
    compared = None
    if other is not None:
        compared = against.compare(tracker, other, corpus, folds, joint, evaluation)
        text += "\n" + against.render(compared)
    print("\n" + text, flush=True)

    # files and the tracked run
    whole = Ensemble(members, corpus, folds, joint, evaluation, labels)
    files = write_files(whole, data, output_dir)
    settings = to_plain(cfg)
    settings["tracking"] = {"uri": tracker.shown_uri, "experiment": cfg.tracking.experiment}
    further = {} if compared is None else compared.metrics
    run_id = publish(tracker, whole, settings, text, files, further)
    print(f"written: {', '.join(str(path) for path in files)}\ntracked: run {run_id}", flush=True)
    if cfg.register:
        _register(tracker, run_id, predictions, joint, cfg.register, cfg.alias)
    return Combined(run_id, metrics_of(evaluation), evaluation, files)


def _register(tracker: Tracker, run_id: str, predictions: Predictions, joint: Joint, name: str, alias: str) -> None:
    predictor = Predictor(name, run_id, predictions.classifiers, joint.mixture)
    version = register.register(tracker, predictor, name, alias)
    serve = f"mlflow models serve -m models:/{name}@{alias} --env-manager local -p 5001"
    print(
        f"registered: {name} version {version}, alias {alias}; serve it: "
        f"MLFLOW_TRACKING_URI={tracker.shown_uri} {serve}",
        flush=True,
    )
