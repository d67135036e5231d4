"""What a training costs beside a bare PyTorch loop: python -m tests.benchmarks.step [OVERRIDE ...]

1. A run of `train` (Lightning, MLflow, state kept, the fold scored as often per step as in a run of 2,500) / a bare
   loop of the same net, features, batches and steps in the same arithmetic, without scoring, from the first step to
   the last. The same without scoring in either.
2. A step in the default precision / a naive one: float32, contiguous, no fused optimiser. The same without
   augmentation, which costs both alike.
3. Gathering and placing the clips of a batch / the step that uses them.
"""

import contextlib
import io
import logging
import sys
import tempfile
import time
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from audio_mnist import features, models
from audio_mnist.config import to_plain
from audio_mnist.data.folds import cut_folds
from audio_mnist.data.prepare import prepare
from audio_mnist.data.split import split_clips
from audio_mnist.system import devices
from audio_mnist.training.classifier import Classifier, optimizer_of
from audio_mnist.training.datamodule import ClipDataModule
from audio_mnist.training.run import train
from tests.benchmarks.timing import composed, machine, ratio, real


def bare_loop(plain: dict, steps: int, *, precision: str, naive: bool = False) -> float:
    """Seconds from the first step to the last of a loop without a framework."""
    torch.use_deterministic_algorithms(False)  # which a run before it has set for the whole process
    corpus = prepare(plain["data"])
    split = split_clips(corpus.manifest, cut_folds(corpus.manifest, plain["folds"]), fold=0, selection="last")
    rate = corpus.store.sample_rate_hz
    front_end = features.build(plain["feature"], rate)
    data = ClipDataModule(
        corpus,
        split,
        front_end=front_end,
        augment=plain["augment"],
        batch_size=plain["trainer"]["batch_size"],
        seed=0,
    )
    torch.manual_seed(0)
    net = models.for_feature(plain["model"], front_end, len(corpus.class_names)).train()
    layout = torch.contiguous_format if naive else torch.channels_last
    net = net.to(memory_format=layout)
    if naive:
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, foreach=False)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    else:
        counted = SimpleNamespace(gradient_clip_val=None, estimated_stepping_batches=steps)
        built = optimizer_of(plain["optimizer"], [net], counted)
        optimizer, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
    batches = data.train_dataloader()
    step, began = 0, 0.0
    for epoch in range(steps):
        batches.sampler.set_epoch(epoch)
        for x, y in batches:
            last = time.perf_counter()
            if step == 0:
                began = last
            if step == steps - 1:
                return last - began
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = cross_entropy(net(x.contiguous(memory_format=layout)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if naive:
                loss.item()
            step += 1
    raise AssertionError


def whole_run(cfg) -> float:
    """Seconds from the first step to the last of `train`, tracked in a fresh database."""
    at: list[float] = []
    original = Classifier.training_step

    def timed(self, batch, batch_idx):
        at.append(time.perf_counter())
        return original(self, batch, batch_idx)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Classifier, "training_step", timed):
        cfg.tracking.uri = f"sqlite:///{folder}/mlflow.db"
        with contextlib.redirect_stderr(io.StringIO()):
            train(cfg)
    return at[-1] - at[0]


def main(overrides: list[str]) -> None:
    logging.disable(logging.INFO)
    steps = 300
    given = real(f"trainer.max_steps={steps}", "trainer.validate_every=8", *overrides)
    cfg = composed(*given)
    plain = to_plain(cfg)
    precision = devices.precision(plain["trainer"]["precision"], "cpu")
    devices.set_up_cpu(plain["trainer"]["threads"])
    print(f"{machine()}; {' '.join(overrides)} precision {precision}, {plain['trainer']['threads']} thread(s)")
    ratio(
        f"run / bare loop, {steps} steps",
        ("train()", lambda: whole_run(composed(*given))),
        ("bare loop, same arithmetic", lambda: bare_loop(plain, steps, precision=precision)),
    )
    unscored = [*given, "trainer.validate_every=1000"]
    ratio(
        f"run without scoring / bare loop, {steps} steps",
        ("train()", lambda: whole_run(composed(*unscored))),
        ("bare loop, same arithmetic", lambda: bare_loop(plain, steps, precision=precision)),
    )
    for title, own in (("step", plain), ("step without augmentation", plain | {"augment": {}})):
        ratio(
            f"{title}, default / naive",
            (f"{precision}, channels_last, fused", lambda own=own: bare_loop(own, 100, precision=precision)),
            ("float32, contiguous, for loops", lambda own=own: bare_loop(own, 100, precision="32-true", naive=True)),
        )
    corpus = prepare(plain["data"])
    rng = np.random.default_rng(0)
    draws = [(rng.integers(len(corpus.store), size=32), rng.random(32)) for _ in range(100)]
    ratio(
        "gathering and placing / step",
        ("gather", lambda: [corpus.store.gather(i, corpus.clip_samples, p) for i, p in draws] and None),
        ("step", lambda: bare_loop(plain, 101, precision=precision)),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
