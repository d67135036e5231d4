"""Steps of several nets one after another / as one grouped net; runs by themselves / together, on one core.

python -m tests.benchmarks.together [PAIRS] [OVERRIDE ...]
"""

import copy
import sys
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from audio_mnist import features, models
from audio_mnist.config import to_plain
from audio_mnist.system import devices
from audio_mnist.training.grouped import group
from tests.benchmarks.timing import command, composed, machine, ratio, real


def steps(feature: str, count: int, precision: str) -> None:
    """Net and loss of one step of 32 clips of 1 s at 8 kHz, forward and backward, for `count` nets."""
    settings = to_plain(composed(f"feature={feature}"))
    front_end = features.build(settings["feature"], 8000)
    shape = front_end(torch.zeros(1, 1, 8000)).shape[1:]
    nets = [models.for_feature(settings["model"], front_end, 10) for _ in range(count)]
    nets = [net.to(memory_format=torch.channels_last) for net in nets]
    alone = [copy.deepcopy(net).train() for net in nets]
    whole = group([net.eval() for net in nets], [torch.Generator() for _ in nets], torch.zeros(32, *shape))
    x, y = torch.randn(32, count, *shape), torch.randint(10, (32, count))

    def train(net: torch.nn.Module, first: int, last: int) -> None:
        part = x[:, first:last].flatten(1, 2).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = net(part).chunk(last - first, dim=1)
            losses = [cross_entropy(own, y[:, first + number]) for number, own in enumerate(logits)]
        torch.stack(losses).sum().backward()

    ratio(
        f"a step of {count} nets, {feature}, {precision}, one thread: one after another / together",
        ("one after another", lambda: [train(net, n, n + 1) for n, net in enumerate(alone)] and None),
        ("together", lambda: train(whole, 0, count)),
        repeats=15,
    )


def main(pairs: int, overrides: list[str]) -> None:
    print(machine(), *overrides)
    devices.set_up_cpu(1)
    for feature in ("mel", "mfcc"):
        for count in (2, 5):
            steps(feature, count, "bfloat16")
        steps(feature, 5, "float32")
    with tempfile.TemporaryDirectory() as temporary:
        command(Path(temporary), "train.py", *real("trainer.max_epochs=1", "trainer.min_epochs=1"))  # decodes the clips

        def sweep(launcher: str) -> float:
            with tempfile.TemporaryDirectory() as folder:  # another tracking database: no run is finished there
                arguments = ("train.py", *real(*overrides), "feature=mel,mfcc", "fold=0,1,2,3,4")
                launch = (f"hydra/launcher={launcher}", "hydra.launcher.n_jobs=1", "-m")
                return command(Path(folder), *arguments, *launch, cores={0})

        ratio(
            "ten runs on one core, each by itself / together",
            ("by itself", lambda: sweep("side_by_side")),
            ("together", lambda: sweep("together")),
            repeats=pairs,
        )


if __name__ == "__main__":
    given = sys.argv[1:]
    pairs = int(given.pop(0)) if given and given[0].isdigit() else 3
    main(pairs, given or ["trainer.max_steps=300"])
