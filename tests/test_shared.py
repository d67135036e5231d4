"""Features that the runs of one seed share: the bits of each run alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audio_mnist.augment import Augmentation
from audio_mnist.training import datamodule
from audio_mnist.training.datamodule import ClipDataModule, share_clips
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
    share_clips([together])
    assert all(data._read.func.__self__ is together[0]._read.func.__self__ for data in together)
    expected, found = [epochs_of(data) for data in alone], [epochs_of(data) for data in together]
    assert all(same(*pair) for pair in zip(expected, found, strict=True))
    assert not torch.equal(expected[0][0][0], expected[0][len(expected[0]) // 2][0])


def test_shared_features_are_computed_once_an_epoch_and_dropped(
    tone_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four runs, two epochs, one batch of 2 at a time: the front end sees each of the 24 clips twice; few stay."""
    monkeypatch.setattr(datamodule, "AT_ONCE_BYTES", {})
    together = modules(tone_config, "data.clip_s=1.0", "folds.count=4", "trainer.batch_size=2", folds=4)
    share_clips([together])
    shared = together[0]._read.func.__self__
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


def test_features_of_one_seed_share_waveforms(tone_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mel of folds 0 and 1, MFCC of folds 1 and 2: the bits of each alone, and each block is augmented once."""
    monkeypatch.setattr(datamodule, "AT_ONCE_BYTES", {})

    def built() -> list[ClipDataModule]:
        jobs = [(feature, fold) for feature, folds in (("mel", (0, 1)), ("mfcc", (1, 2))) for fold in folds]
        short = ("data.clip_s=1.0", "folds.count=4", "trainer.batch_size=2")
        return [
            build(plan(tone_config(f"feature={feature}", f"fold={fold}", *short)), alone=False).data
            for feature, fold in jobs
        ]

    alone, together = built(), built()
    share_clips([together[:2], together[2:]])
    augmented: list[int] = []
    for data in together:
        original = data._augmenter.augment_waveforms
        monkeypatch.setattr(
            data._augmenter, "augment_waveforms", lambda x, draws, s=original: augmented.append(len(x)) or s(x, draws)
        )
    expected, found = [epochs_of(data) for data in alone], [[] for _ in together]
    loaders = [data.train_dataloader() for data in together]
    for epoch in range(2):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        for batches in zip(*loaders, strict=True):
            for own, batch in zip(found, batches, strict=True):
                own.append(batch)
            assert len(together[0]._share_waveforms.__self__._kept) <= 6
    assert all(same(*pair) for pair in zip(expected, found, strict=True))
    assert 40 <= sum(augmented) <= 48


@pytest.mark.parametrize(
    "overrides",
    [
        ["sampling=balanced"],
        ["augment=none", "augment.placement.redraw=false"],
        ["selection=inner", "inner_folds=2"],
        ["trainer.threads=2"],
        ["optimizer.ema_decay=0.9"],
    ],
)
def test_a_run_that_shares_nothing_computes_its_own_clips_alone(tone_config: Config, overrides: list[str]) -> None:
    """Clips drawn with replacement, clips that never change, runs that cannot train together."""
    together = modules(tone_config, *overrides)
    share_clips([together])
    assert together[0]._read.func.__self__ is not together[1]._read.func.__self__
    sampler = together[0]._training_batches()
    positions = np.concatenate([rows.clips for rows in sampler])
    assert set(sampler.rows(sampler.order()).clips) == set(positions) <= set(together[0]._split.train)


def test_own_code_never_sees_the_scored_fold(tone_config: Config, tmp_path: Path) -> None:
    """An augmentation that mixes the clips of a block would let scored clips into the training."""
    (tmp_path / "own.py").write_text(
        "from audio_mnist.augment import Augmentation\n"
        "class Neighbour(Augmentation):\n"
        "    name = 'neighbour'\n"
        "    def augment(self, x, draws):\n"
        "        return x + x.flip(0)\n"
    )
    own = (f"modules=[{tmp_path}/own.py]", "+augment.neighbour.probability=1.0")
    try:
        data = modules(tone_config, *own)[0]
    finally:
        Augmentation.registry.pop("neighbour", None)
    sampler = data._training_batches()
    assert set(sampler.rows(sampler.order()).clips) <= set(data._split.train)


def test_a_pooled_batch_has_the_features_of_its_own_clips(tone_config: Config) -> None:
    """Features, labels and places are of one clip."""
    data = modules(tone_config, "augment=none")[1]
    loader = data.train_dataloader()
    assert loader.sampler.is_pooled  # type: ignore[union-attr]
    for rows, (x, targets) in zip(loader.sampler, loader, strict=True):
        waveforms = torch.from_numpy(data._store.gather(rows.clips, data._length, rows.placement)).unsqueeze(1)
        torch.testing.assert_close(x, data._front_end(waveforms), rtol=1e-4, atol=1e-4)
        assert targets.tolist() == data._targets[rows.clips].tolist() and set(rows.clips) <= set(data._split.train)


def test_blocks_are_the_same_in_every_fold(tone_config: Config) -> None:
    """So no bit depends on the number of runs, whatever a processor rounds differently in blocks of another size."""
    samplers = [data._training_batches() for data in modules(tone_config, "folds.count=3", folds=3)]
    for sampler in samplers:
        sampler.set_epoch(5)
    orders = [sampler.order() for sampler in samplers]
    assert all(np.array_equal(orders[0], order) for order in orders) and sorted(orders[0]) == list(range(24))
    for sampler in samplers:
        own = np.concatenate([rows.slots for rows in sampler])
        places = np.argsort(orders[0])[own]
        assert (np.diff(places) > 0).all()
