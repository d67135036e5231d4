"""What only a real GPU shows. Skipped where there is none: the pretended one of `test_gpu.py` shows the rest."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from pytorch_lightning import Callback

from audio_mnist.tracking.tracker import BEST_CHECKPOINT, Tracker
from audio_mnist.training.classifier import load
from audio_mnist.training.job import plan
from audio_mnist.training.run import train
from tests.conftest import run_command, write_tones

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
GPU = ("trainer.accelerator=gpu", "trainer.max_epochs=3")


@pytest.fixture(autouse=True)
def errors_of_waits_end() -> Iterator[None]:
    """Let later tests wait again."""
    yield
    torch.cuda.set_sync_debug_mode("default")


def checkpoint_of(cfg: DictConfig) -> dict[str, torch.Tensor]:
    tracker = Tracker(cfg.tracking.uri, cfg.tracking.experiment)
    (run,) = tracker.search(kind="train")
    with tracker.artifact(run.id, BEST_CHECKPOINT) as path:
        return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


class NoWaits(Callback):
    """Let CUDA raise where a step waits, from the second step of each epoch on."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if batch_idx else "default")

    def on_train_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


def test_steps_do_not_wait(tone_config: Callable[..., DictConfig]) -> None:
    """CUDA itself raises for a wait."""
    train(tone_config(*GPU), callbacks=[NoWaits()])


def test_same_seed_gives_the_same_bits(tone_config: Callable[..., DictConfig], tmp_path: Path) -> None:
    """Two trainings on one GPU."""
    found = []
    for number in range(2):
        cfg = tone_config(*GPU, f"tracking.uri=sqlite:///{tmp_path}/{number}/mlflow.db")
        train(cfg)
        found.append(checkpoint_of(cfg))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_graph_trains_as_separate_kernels_do(tone_config: Callable[..., DictConfig], tmp_path: Path) -> None:
    """In float32 and without dropout the losses agree to rounding."""
    losses = []
    for graph in ("true", "false"):
        cfg = tone_config(
            *(*GPU, "trainer.precision=32-true", "model.dropout=0", f"trainer.cuda_graph={graph}"),
            f"tracking.uri=sqlite:///{tmp_path}/{graph}/mlflow.db",
        )
        losses.append(train(cfg).metrics["best/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_predictions_are_the_cpus(tone_config: Callable[..., DictConfig]) -> None:
    """A net of the GPU answers alike on both, to 1e-4."""
    cfg = tone_config(*GPU)
    train(cfg)
    tracker, store = Tracker(cfg.tracking.uri, cfg.tracking.experiment), plan(cfg).corpus.store
    with tracker.artifact(tracker.search(kind="train")[0].id, BEST_CHECKPOINT) as path:
        classifier = load(path)
    rows = np.arange(len(store))
    on_cpu = classifier.predict_clips(store, rows)
    on_gpu = classifier.cuda().predict_clips(store, rows)
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-4)


def test_training_takes_little_memory(tone_config: Callable[..., DictConfig]) -> None:
    """Below 1 GiB: four runs fit on the smallest cards."""
    torch.cuda.reset_peak_memory_stats()
    train(tone_config(*GPU, "trainer.batch_size=12"))
    assert torch.cuda.max_memory_allocated() < 2**30


def test_runs_of_a_sweep_share_a_gpu(tmp_path: Path) -> None:
    """Two processes train on one card at a time."""
    write_tones(tmp_path / "tones")
    done = run_command(
        tmp_path,
        *("train.py", "data=folder", "data.root=tones", "folds.count=2", "fold=0,1", *GPU, "trainer.batch_size=4"),
        *("trainer.runs_per_gpu=2", "hydra.launcher.n_jobs=2", "-m"),
    )
    assert done.returncode == 0 and "2 of 2 runs finished" in done.stdout, done.stdout + done.stderr
