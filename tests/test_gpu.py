"""The path to a GPU, on a pretended one: every part computes there, and no step of a training waits."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from pytorch_lightning import Callback

from audio_mnist import features, models
from audio_mnist.augment import Augmentation, Augmenter, Draws
from audio_mnist.config import to_plain
from audio_mnist.training import datamodule
from audio_mnist.training.run import train
from tests.conftest import composed
from tests.pretended_gpu import GPU, Counts, GpuTensor, pretended_gpu

RATE_HZ = 8000
PLAIN: dict[str, Any] = to_plain(composed())
FEATURES = ("gammatone", "mel", "mel_original", "mfcc", "mfcc_original", "pcen", "spectrogram")


def test_tensors_of_two_devices_do_not_meet() -> None:
    """As on a real GPU: an operation on both raises, and numpy needs a copy."""
    with pretended_gpu():
        with pytest.raises(RuntimeError, match="two devices"):
            torch.zeros(3, device="cuda") + torch.zeros(3)
        with pytest.raises(TypeError, match=r"Tensor\.cpu"):
            torch.zeros(3, device="cuda").numpy()


def test_waits_are_counted() -> None:
    """A number that the CPU reads is a wait; work that stays on the GPU is none."""
    with pretended_gpu() as counts:
        x = torch.ones(3, device="cuda") * 2
        assert not counts.waits and counts.launches["mul"] == 1
        assert x.sum().item() == 6 and sum(counts.waits.values()) == 1
        assert len(x.nonzero()) == 3 and counts.waits["nonzero"] == 1
        x[torch.tensor([0])]
        assert counts.waits["index on the CPU"] == 1


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("padding", ["silence", "after_scaling"])
def test_feature_is_the_cpus_and_waits_for_nothing(name: str, padding: str) -> None:
    """Equal numbers; the second batch copies nothing to the GPU."""
    settings = to_plain(composed(f"feature={name}"))["feature"] | {"padding": padding}
    front_end = features.build(settings, RATE_HZ)
    x = torch.randn(4, 1, RATE_HZ, generator=torch.Generator().manual_seed(0))
    expected = front_end(x)
    with pretended_gpu() as counts:
        front_end, x = front_end.to(GPU), x.to(GPU)
        front_end(x)
        counts.clear()
        found = front_end(x)
    assert isinstance(found, GpuTensor) and torch.equal(found.values, expected)
    assert not counts.waits


@pytest.mark.parametrize("name", sorted(Augmentation.registry))
def test_augmentation_waits_for_nothing(name: str, tmp_path: Path) -> None:
    """Each changes half of the clips, on the GPU, with the numbers that a CPU draws."""
    own = PLAIN["augment"][name] | {"probability": 0.5}
    if name == "background":
        import soundfile

        soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 3000), RATE_HZ)
        own["folder"] = str(tmp_path)
    augmenter, front_end = Augmenter({name: own}, RATE_HZ).train(), features.build(PLAIN["feature"], RATE_HZ)
    x = torch.randn(16, 1, RATE_HZ, generator=torch.Generator().manual_seed(0))
    y = torch.arange(16) % 10

    def draws(device: torch.device) -> Draws:
        return Draws([1, 2], 16, device).at(np.arange(16), batch_size=8)

    def augmented(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own = draws(x.device)
        return augmenter.blend(augmenter(x, front_end, own), y, 10, own)

    expected = augmented(x, y)
    with pretended_gpu() as counts:
        augmenter, front_end, x, y = augmenter.to(GPU), front_end.to(GPU), x.to(GPU), y.to(GPU)
        augmented(x, y)
        counts.clear()
        found = augmented(x, y)
    assert set(counts.waits) <= ({"equal"} if name == "pitch" else set())  # torch.istft checks its window each time
    for ours, cpus in zip(found, expected, strict=True):
        assert isinstance(ours, GpuTensor) and ours.values.shape == cpus.shape
        if name != "noise":  # a GPU draws noise itself
            torch.testing.assert_close(ours.values, cpus)


@pytest.mark.parametrize("name", ["resnet", "bcresnet", "pooled"])
def test_net_learns_and_waits_for_nothing(name: str) -> None:
    """Loss, gradients and optimiser."""
    settings = to_plain(composed(f"model={name}"))["model"]
    front_end = features.build(PLAIN["feature"], RATE_HZ)
    net = models.for_feature(settings, front_end, 10).to(memory_format=torch.channels_last)
    with pretended_gpu() as counts:
        net.to(GPU)
        optimizer = torch.optim.AdamW(net.parameters(), fused=True)
        x = torch.randn(8, 1, 40, 40).to(GPU)
        y = torch.zeros(8, dtype=torch.int64).to(GPU)
        counts.clear()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert not counts.waits and all(isinstance(p, GpuTensor) for p in net.parameters())


class StepCounts(Callback):
    """Note launches and waits from the end of each step to the end of the next, its batch included."""

    def __init__(self, counts: Counts) -> None:
        self._counts, self.steps = counts, list[tuple[dict[str, int], dict[str, int]]]()
        self.count, self.launched = 0, Counter[str]()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.count += 1
        self.launched += self._counts.launches
        if batch_idx:  # the first one also captures the net, or logs the epoch before
            self.steps.append((dict(self._counts.launches), dict(self._counts.waits)))
        self._counts.clear()


@pytest.mark.parametrize("graph", [True, False])
def test_training_step_waits_for_nothing(
    tone_config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, graph: bool
) -> None:
    """A whole run of the default recipe on a GPU: no waits, few launches, a checkpoint that a CPU opens."""
    monkeypatch.setattr(datamodule, "AT_ONCE_BYTES", {"cuda": 2 * 4 * 4 * 3200})  # two batches: groups in mid-epoch
    cfg = tone_config(
        *("trainer.accelerator=gpu", "trainer.precision=32-true", "trainer.max_epochs=3", "trainer.batch_size=4"),
        *("fold=0", "folds.count=3", f"trainer.cuda_graph={str(graph).lower()}"),
    )
    with pretended_gpu() as counts:
        noted = StepCounts(counts)
        metrics = train(cfg, callbacks=[noted]).metrics
    assert 0 <= metrics["best/accuracy"] <= 1 and len(noted.steps) == 9  # 4 steps an epoch, without the first
    assert all(not waits for _, waits in noted.steps)
    grouped = [launches for launches, _ in noted.steps if "_fft_r2c" in launches]
    assert len(grouped) == 3
    step = sum(sum(launches.values()) for launches, _ in noted.steps if "_fft_r2c" not in launches) / 6
    assert step <= (50 if graph else 190)


def test_graph_gives_the_same_training(tone_config: Callable[..., DictConfig]) -> None:
    """Capturing the net leaves its weights, statistics and draws as they are."""
    found = []
    for graph in ("true", "false"):
        cfg = tone_config(
            "trainer.accelerator=gpu", "trainer.precision=32-true", "model.dropout=0", f"trainer.cuda_graph={graph}"
        )
        with pretended_gpu():
            found.append(train(cfg).metrics["best/loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
