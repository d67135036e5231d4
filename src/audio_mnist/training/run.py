"""One run: a fold trained, scored and tracked."""

import contextlib
import errno
import functools
import io
import json
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from sklearn.metrics import log_loss

from audio_mnist.config import fingerprint, recipe, to_plain, without_password
from audio_mnist.data.folds import Folds, Split, assign_folds, split_clips
from audio_mnist.data.prepare import PreparedCorpus, prepare
from audio_mnist.errors import ConfigError, RunError
from audio_mnist.report import figures
from audio_mnist.schema import validate_train
from audio_mnist.system import devices
from audio_mnist.tracking import tracker as tracking
from audio_mnist.tracking.untracked import Untracked, UntrackedRun
from audio_mnist.training import callbacks as hooks
from audio_mnist.training import dry_run as recipes
from audio_mnist.training import resume as resuming
from audio_mnist.training.classifier import Classifier, load
from audio_mnist.training.datamodule import ClipDataModule

log = logging.getLogger(__name__)
_SAME = "another process trains the same run"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)  # what a person can mend


def train(cfg: DictConfig, *, sweep_dir: Path | None = None, parent_id: str | None = None) -> dict[str, float]:
    """Trains and scores one fold as one tracked run.

    Args:
        cfg: the composed config of `conf/train.yaml`.
        sweep_dir: folder that the runs of a sweep share; None for a single run.
        parent_id: the sweep's tracked run.

    Returns:
        The `best/*` metrics.

    Raises:
        AudioMnistError: something that the caller can mend, before a run was started.
        Exception: whatever broke the run, which has ended FAILED with the traceback in it.
    """
    cfg = validate_train(cfg)
    for key in ("root", "manifest"):  # an ensemble may be started elsewhere
        if cfg.data[key]:
            cfg.data[key] = str(Path(cfg.data[key]).expanduser().resolve())
    _quieten()
    settings = to_plain(cfg)
    if sweep_dir is not None:  # the sweep has said it once
        for name in ("audio_mnist.data.build_store", "audio_mnist.data.corpora"):
            logging.getLogger(name).setLevel(logging.ERROR)
    own = json.dumps([str(sweep_dir), settings["data"]])
    corpus = _prepared_once(own) if sweep_dir else prepare(settings["data"])
    folds = assign_folds(corpus.manifest, **settings["folds"])
    split = split_clips(corpus.manifest, folds, fold=cfg.fold, selection=cfg.selection, inner_folds=cfg.inner_folds)
    if sweep_dir is None:
        for note in folds.notes:
            log.info("note: %s", note)
    devices.set_up_cpu(cfg.trainer.threads)
    seed_everything(cfg.seed, verbose=False)
    classifier, data, trainer_options = _build(settings, corpus, split, alone=sweep_dir is None)
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:  # a further process of one run on several devices
        with resuming.workplace(None, "", "") as place:
            _fit(settings, classifier, data, trainer_options, place, None)
        return {}

    tracker = tracking.connect(cfg.tracking.uri, cfg.tracking.experiment)
    key = resuming.job_key(settings, corpus.fingerprint, folds.fingerprint)
    resumable = cfg.resume and cfg.trainer.devices == 1 and cfg.tracking.uri is not None
    kept_in = resuming.resume_dir(settings) if resumable else None
    with contextlib.ExitStack() as stack:
        if kept_in is None and cfg.tracking.uri is not None:
            with contextlib.suppress(RunError):  # nothing is kept there; but no other process may go on with this run
                stack.enter_context(resuming.held(resuming.resume_dir(settings), key, _SAME))
        place = stack.enter_context(resuming.workplace(kept_in, key, _SAME))
        here = resuming.place(settings)
        unfinished = tracker.newest(key, here) if resumable else None
        if unfinished is not None and unfinished.status == "FINISHED":
            if sweep_dir is not None:  # by another process, since this sweep began
                log.info("%s is finished already: run %s", unfinished.name, unfinished.id)
                return {name: value for name, value in unfinished.metrics.items() if name.startswith("best/")}
            unfinished = None
        if unfinished is None:
            place.clear()
        run = _open(tracker, settings, corpus, folds, trainer_options, key, here, parent_id, unfinished)
        try:
            with _ending_on_sigterm(), devices.gpu_of_its_own(trainer_options, sweep_dir):
                run.log_text(OmegaConf.to_yaml(settings | {"tracking": _tracking(settings)}), tracking.CONFIG)
                if corpus.left_out:
                    run.log_text("\n".join(corpus.left_out) + "\n", "left_out.txt")
                metrics = _fit_and_score(run, settings, corpus, folds, split, classifier, data, trainer_options, place)
                place.clear()
                return metrics
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            with contextlib.suppress(Exception):  # the tracking store itself may be what broke
                run.log_text(without_password(traceback.format_exc()), "traceback.txt")
                run.set_tag("error", without_password(f"{type(error).__name__}: {error}"))
            run.end("KILLED" if stopped else "FAILED")
            if isinstance(error, OSError) and error.errno in _DISK:
                raise RunError(
                    f"run {run.id} stopped: {error.strerror}{f' ({error.filename})' if error.filename else ''}; "
                    "mend that and give the command again: it goes on from its last kept state"
                ) from None
            raise


@functools.lru_cache(1)
def _prepared_once(sweep_and_data: str) -> PreparedCorpus:
    """The corpus of a sweep, of whose runs this process trains several."""
    return prepare(json.loads(sweep_and_data)[1])


def _open(
    tracker: tracking.Tracker | Untracked,
    settings: dict[str, Any],
    corpus: PreparedCorpus,
    folds: Folds,
    trainer_options: dict[str, Any],
    key: str,
    here: str,
    parent_id: str | None,
    unfinished: tracking.RunRecord | None,
) -> UntrackedRun:
    """The tracked run: the unfinished one of the same job where there is one, else a new one."""
    params = settings | {"data": {k: v for k, v in settings["data"].items() if k != "cache_dir"}}
    params["tracking"] = _tracking(settings)
    if unfinished is not None:
        return tracker.reopen(unfinished.id, params, parent_id)
    own = recipe(settings)
    return tracker.start(
        f"{settings['feature']['name']} {settings['model']['name']} fold {settings['fold']}",
        kind="train",
        tags={
            "corpus": corpus.name,
            "corpus_fingerprint": corpus.fingerprint,
            "fold_fingerprint": folds.fingerprint,
            "config_fingerprint": fingerprint(own),
            "recipe_fingerprint": fingerprint({k: v for k, v in own.items() if k != "fold"}),
            "job": key,
            "classes": ",".join(corpus.class_names),
            "fold": str(settings["fold"]),
            "optimistic": str(settings["selection"] == "fold").lower(),
            "sweep": parent_id or "",
            "variant": settings["variant"],
            "precision": trainer_options["precision"],
            "feature": settings["feature"]["name"],
            "seed": str(settings["seed"]),
            "place": here,
        },
        params=params,
        parent_id=parent_id,
    )


def _tracking(settings: dict[str, Any]) -> dict[str, Any]:
    """Where the run is tracked, as it may be shown."""
    own = settings["tracking"]
    return own | {"uri": without_password(own["uri"]) if own["uri"] else None}


def _build(
    settings: dict[str, Any], corpus: PreparedCorpus, split: Split, *, alone: bool
) -> tuple[Classifier, ClipDataModule, dict[str, Any]]:
    chosen = settings["trainer"]
    recipes.check(settings, corpus)
    classifier = Classifier(
        model=settings["model"],
        feature=settings["feature"],
        class_names=list(corpus.class_names),
        sample_rate_hz=corpus.store.sample_rate_hz,
        clip_samples=corpus.clip_samples,
        optimizer=settings["optimizer"],
        views=settings["views"],
    )
    data = ClipDataModule(
        corpus,
        split,
        feature=settings["feature"],
        augment=settings["augment"],
        batch_size=chosen["batch_size"],
        seed=settings["seed"],
    )
    if chosen["compile"]:
        devices.check_compiler()
        classifier.net.compile()  # in place: a checkpoint has the same names
    bar, epochs = chosen["progress_bar"], _epochs(chosen, data)
    every = chosen["validate_every"] or (max(1, epochs // 30) if settings["selection"] == "last" else 1)
    options = {
        "max_epochs": epochs,
        "check_val_every_n_epoch": every,
        "accelerator": chosen["accelerator"],
        "devices": chosen["devices"],
        "strategy": chosen["strategy"],
        "precision": devices.precision(chosen["precision"], chosen["accelerator"]),
        "gradient_clip_val": chosen["gradient_clip_val"],
        "deterministic": True,
        "use_distributed_sampler": False,  # ShuffledBatches deals the clips out itself
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1_000_000,  # epochs are logged, steps are not
        "enable_model_summary": False,
        "enable_progress_bar": alone and sys.stderr.isatty() if bar is None else bar,
    }
    try:
        Trainer(**options, logger=False, enable_checkpointing=False)
    except (MisconfigurationException, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"trainer.accelerator, devices, strategy or precision cannot be had: {reason}") from None
    return classifier, data, options


def _epochs(chosen: dict[str, Any], data: ClipDataModule) -> int:
    """`max_epochs`, fewer where that would be more than `max_steps`, but never below `min_epochs`."""
    epochs = chosen["max_epochs"]
    if chosen["max_steps"] is not None:
        steps = data.steps_per_epoch() // chosen["devices"]  # each device takes its share of the clips
        allowed = math.ceil(chosen["max_steps"] / max(1, steps))
        epochs = min(epochs, max(chosen["min_epochs"], allowed))
    return epochs


def _fit_and_score(
    run: UntrackedRun,
    settings: dict[str, Any],
    corpus: PreparedCorpus,
    folds: Folds,
    split: Split,
    classifier: Classifier,
    data: ClipDataModule,
    trainer_options: dict[str, Any],
    place: resuming.Workplace,
) -> dict[str, float]:
    selection = settings["selection"]
    began = time.monotonic()
    trainer, path = _fit(settings, classifier, data, trainer_options, place, run)
    # the file is scored, not the object in memory: it is what the ensemble will load
    best = load(path)
    kept = int(torch.load(path, map_location="cpu", weights_only=True)["epoch"])
    best_epoch = min(kept, trainer.current_epoch - 1)  # counted from 0, as the steps of fold/*
    if trainer.num_devices == 1:
        best = best.to(trainer.strategy.root_device)
    probabilities = best.predict_clips(corpus.store, split.fold)
    metrics = score_fold(corpus, split.fold, probabilities)
    run.log_metrics({f"best/{key}": value for key, value in metrics.items()} | {"best/epoch": best_epoch})
    run.log_file(path, tracking.BEST_CHECKPOINT)
    table = predictions_table(corpus, split.fold, probabilities)
    buffer = io.StringIO()
    table.to_csv(buffer, index=False, float_format="%.9g")  # 9 digits give every float32 back
    run.log_text(buffer.getvalue(), tracking.FOLD_PREDICTIONS)
    name, fold = settings["feature"]["name"], settings["fold"]
    title = f"{name}, fold {fold} of 0 to {folds.count - 1}: {metrics['accuracy']:.4f} (n = {len(split.fold)})"
    title += "\noptimistic: its epoch was chosen on this fold" if selection == "fold" else ""
    picture = figures.confusion(corpus.targets()[split.fold], probabilities.argmax(axis=1), corpus.class_names, title)
    run.log_figure(picture, "figures/confusion_matrix.png")
    run.end("FINISHED")
    log.info(
        "%s fold %d: accuracy %.4f, loss %.3f, n = %d, %d epochs in %.0f s, run %s%s",
        *(name, fold, metrics["accuracy"], metrics["loss"], len(split.fold)),
        *(trainer.current_epoch, time.monotonic() - began, run.id),
        " (optimistic: its epoch was chosen on this fold)" if selection == "fold" else "",
    )
    return {f"best/{key}": value for key, value in metrics.items()}


def _fit(
    settings: dict[str, Any],
    classifier: Classifier,
    data: ClipDataModule,
    trainer_options: dict[str, Any],
    place: resuming.Workplace,
    run: UntrackedRun | None,
) -> tuple[Trainer, Path]:
    """Trains, from where the workplace has it; the kept epoch's checkpoint is `best.ckpt` there."""
    callbacks: list[Callback] = [hooks.EpochSeed(settings["seed"])]
    folder = place.folder
    selection = settings["selection"]
    decay = settings["optimizer"]["ema_decay"]
    if decay is not None:
        callbacks.append(EMAWeightAveraging(decay=decay))
    if selection != "last":
        monitor = "selection/loss" if selection == "inner" else "fold/loss"
        callbacks.append(
            ModelCheckpoint(
                folder,
                filename="best",
                monitor=monitor,
                save_weights_only=decay is None,  # whole checkpoints alone hold the averaged weights
                enable_version_counter=False,
            )
        )
    patience = settings["trainer"]["early_stopping_patience"]
    if patience is not None:
        callbacks.append(EarlyStopping("selection/loss", patience=patience))
    if trainer_options["enable_progress_bar"]:
        callbacks.append(RichProgressBar(leave=False))
    if place.lasting and run is not None:
        # the last, so that it has the others' states
        callbacks.append(hooks.KeepState(folder, run, settings["resume_every_s"]))
    before, epochs = place.last()
    if before is not None:
        log.info("%s fold %d goes on after epoch %d", settings["feature"]["name"], settings["fold"], epochs)
    logger = False if run is None else hooks.EpochLogger(run)
    has_checkpoints = any(isinstance(callback, Checkpoint) for callback in callbacks)
    trainer = Trainer(**trainer_options, logger=logger, callbacks=callbacks, enable_checkpointing=has_checkpoints)
    try:
        trainer.fit(classifier, data, ckpt_path=before)
    except SystemExit:
        if trainer.interrupted:  # Lightning exits on Ctrl-C
            raise KeyboardInterrupt from None
        raise
    path = folder / "best.ckpt"
    if selection == "last":
        trainer.save_checkpoint(path, weights_only=True)
    elif decay is not None:
        whole = torch.load(path, map_location="cpu", weights_only=True)
        dropped = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "current_model_state", "averaging_state")
        torch.save({key: value for key, value in whole.items() if key not in dropped}, path)
    return trainer, path


def score_fold(corpus: PreparedCorpus, indices: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Accuracy and mean cross-entropy (nats) of (n, C) probabilities."""
    targets = corpus.targets()[indices]
    classes = np.arange(len(corpus.class_names))
    exact = probabilities.astype(np.float64)
    return {
        "accuracy": float((exact.argmax(axis=1) == targets).mean()),
        "loss": float(log_loss(targets, exact / exact.sum(axis=1, keepdims=True), labels=classes)),
    }


def predictions_table(corpus: PreparedCorpus, indices: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """clip_id, label, predicted, and a column `p:CLASS` for each class."""
    rows = corpus.manifest.iloc[indices]
    table = pd.DataFrame({"clip_id": rows["clip_id"].to_numpy(), "label": rows["label"].to_numpy()})
    table["predicted"] = np.asarray(corpus.class_names)[probabilities.argmax(axis=1)]
    columns = [f"p:{name}" for name in corpus.class_names]
    return pd.concat([table, pd.DataFrame(probabilities, columns=columns)], axis=1)


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """A polite kill ends the run as KILLED instead of leaving it RUNNING."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: Any) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _quieten() -> None:
    """Silences what Lightning says at every start, not what it says when something is wrong."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # the loaders copy from memory, see ClipDataModule; epochs are logged, steps are not; Lightning's own use of torch
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message="GPU available but not used.*")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")  # gone on from
