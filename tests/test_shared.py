"""Features that the runs of one seed share: the bits of each run alone."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from audio_mnist.augment import Augmentation
from audio_mnist.training import datamodule
from audio_mnist.training.datamodule import ClipDataModule, share_features
from audio_mnist.training.fit import build
from audio_mnist.training.job import plan

Config = Callable[..., Any]


def modules(config: Config, *overrides: str, folds: int = 2) -> list[ClipDataModule]:
    return [build(plan(config(*overrides, f"fold={fold}")), alone=False).data for fold in range(folds)]


def epochs_of(data: ClipDataModule, count: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader = data.train_dataloader()
    batches = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        batches += list(loader)
    return batches


def same(first: list[tuple[torch.Tensor, torch.Tensor]], second: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) and torch.equal(y, z) for (a, y), (b, z) in zip(first, second, strict=True)
    )


def test_shared_features_have_the_bits_of_each_run(tone_config: Config) -> None:
    """All augmentations of the recipe, two copies of each clip, two epochs; the epochs differ."""
    overrides = ("augment.gain.probability=0.7", "augment.placement.copies=2", "data.clip_s=1.0")
    alone, together = modules(tone_config, *overrides), modules(tone_config, *overrides)
    share_features(together)
    assert all(data._shared is not None for data in together)
    expected, found = [epochs_of(data) for data in alone], [epochs_of(data) for data in together]
    assert all(same(*pair) for pair in zip(expected, found, strict=True))
    assert not torch.equal(expected[0][0][0], expected[0][len(expected[0]) // 2][0])


def test_shared_features_are_computed_once_an_epoch_and_dropped(
    tone_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four runs, two epochs, one batch of 2 at a time: the front end sees each of the 24 clips twice; few stay."""
    monkeypatch.setattr(datamodule, "AT_ONCE_BYTES", {})
    together = modules(tone_config, "data.clip_s=1.0", "folds.count=4", "trainer.batch_size=2", folds=4)
    share_features(together)
    shared = together[0]._shared.func.__self__  # type: ignore[union-attr]
    seen, most = [], 0
    for data in together:
        data._front_end.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    loaders = [data.train_dataloader() for data in together]
    for epoch in range(2):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        for _ in zip(*loaders, strict=True):
            most = max(most, sum(map(len, shared._blocks)))
    assert 40 <= sum(seen) <= 48 and max(seen) == 2  # the end of an epoch may stay out of all batches
    assert most <= 14


@pytest.mark.parametrize(
    ("overrides", "logged"),
    [
        (["sampling=balanced"], False),
        (["augment=none", "augment.placement.redraw=false"], False),
        (["+augment.neighbour.probability=1.0"], True),
    ],
)
def test_nothing_is_shared_where_it_cannot_be(
    tone_config: Config,
    overrides: list[str],
    logged: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Clips drawn with replacement, clips that never change, and clips that depend on others."""
    monkeypatch.setattr(Augmentation, "registry", dict(Augmentation.registry))

    class Neighbour(Augmentation):
        name = "neighbour"

        def augment(self, x: torch.Tensor, draws: Any) -> torch.Tensor:
            return x - x.mean(dim=0)

    together = modules(tone_config, *overrides)
    with caplog.at_level(logging.INFO):
        share_features(together)
    assert all(data._shared is None for data in together)
    assert ("features are not shared: a clip's depend on the clips beside it" in caplog.text) == logged
