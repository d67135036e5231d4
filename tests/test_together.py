"""Runs that train in one process: the grouped net's numbers, shared features, and each run's own results."""

import copy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from audio_mnist import features, models
from audio_mnist.config import to_plain
from audio_mnist.sweeps.grouping import groups_of, kin_and_family
from audio_mnist.tracking.tracker import Tracker
from audio_mnist.training.grouped import UnsupportedError, group, share_gradients
from audio_mnist.training.job import plan
from audio_mnist.training.muon import Muon, matrices
from audio_mnist.training.together import Alone, Grouped, Together, _share
from tests.conftest import PROJECT, composed, run_command, write_tones


def nets_of(*overrides: str, count: int = 3) -> tuple[list[models.Model], features.FrontEnd]:
    settings = to_plain(composed(*overrides))
    front_end = features.build(settings["feature"], 8000)
    nets = []
    for seed in range(count):
        torch.manual_seed(seed)
        net = models.for_feature(settings["model"], front_end, 10).to(memory_format=torch.channels_last)
        nets.append(net.train())
    return nets, front_end


def one_step(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, rate: float = 0.1) -> torch.Tensor:
    """A step of gradient descent; x is (B, K C, F, N), y (B, K)."""
    logits = net(x.contiguous(memory_format=torch.channels_last))
    parts = logits.chunk(y.shape[1], dim=1)
    sum(cross_entropy(part, own) for part, own in zip(parts, y.T, strict=True)).backward()  # type: ignore[union-attr]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= rate * parameter.grad  # type: ignore[operator]
    return logits.detach()


@pytest.fixture
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "overrides",
    [
        ["feature=mel"],
        ["feature=mel", "feature.deltas=2", "model.sub_bands=5", "model.pooling=mean_max", "model.depth=2"],
        ["feature=mfcc", "model.input_norm=true"],
        ["model=bcresnet"],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("in_float64")
def test_grouped_net_learns_as_each_alone(overrides: list[str]) -> None:
    """Logits, weights and running statistics after a step, dropout included; the nets themselves have the results.

    In float64: a rounding of float32 can choose another maximum of a pooling, and with it another gradient.
    """
    nets, front_end = nets_of(*overrides)
    alone = copy.deepcopy(nets)
    example = front_end(torch.zeros(1, 1, 8000))
    whole = group([net.eval() for net in nets], [torch.Generator().manual_seed(7 + n) for n in range(3)], example)
    shape = example.shape[1:]
    x = torch.randn(8, 3, *shape, generator=torch.Generator().manual_seed(0))
    y = torch.arange(24).view(8, 3) % 10
    share_gradients(whole, nets)
    together = one_step(whole, x.flatten(1, 2), y).chunk(3, dim=1)
    assert all(parameter.grad.any() for net in nets for parameter in net.parameters())
    for number, net in enumerate(alone):
        torch.manual_seed(7 + number)
        own = one_step(net, x[:, number], y[:, number : number + 1])
        torch.testing.assert_close(together[number], own, rtol=1e-6, atol=1e-8)
        found = nets[number].state_dict()
        for name, value in net.state_dict().items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-6, atol=1e-8, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_dropout_is_each_nets_own() -> None:
    """The masks are those that torch's global generator draws in a run alone, to the bit."""
    parts = [torch.nn.Sequential(torch.nn.Dropout(0.5)).eval() for _ in range(2)]
    whole = group(parts, [torch.Generator().manual_seed(number) for number in (4, 5)], torch.zeros(1, 8, 1, 1))
    x = torch.rand(6, 8)
    together = whole(torch.cat([x, x], dim=1)).chunk(2, dim=1)
    for number, seed in enumerate((4, 5)):
        torch.manual_seed(seed)
        assert torch.equal(together[number], parts[number].train()(x))


class Mixing(torch.nn.Module):
    """It puts means of all members before the maxima of all."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Mixing, "it mixes channels outside of its layers"),
        (lambda: torch.nn.Sequential(torch.nn.GRU(3, 4)), "it has a layer GRU"),
        (lambda: torch.nn.Sequential(torch.nn.BatchNorm2d(2, affine=False)), "it has a layer BatchNorm2d"),
        (lambda: torch.nn.Sequential(torch.nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")), "it mixes"),
    ],
)
def test_net_that_would_mix_its_members_is_not_grouped(make: Any, message: str) -> None:
    """One member would learn from another's clips or weights."""
    nets = [make().eval() for _ in range(2)]
    with pytest.raises(UnsupportedError, match=message):
        group(nets, [torch.Generator() for _ in nets], torch.randn(1, 2, 5, 7))


@pytest.mark.parametrize(
    ("families", "at_once", "groups"),
    [
        ("aaaaabbbbb", 2, ["aaabb", "aabbb"]),
        ("aaaaabbbbb", 1, ["aaaaabbbbb"]),
        ("aaaaabbbbb", 4, ["aab", "abb", "ab", "ab"]),
        ("aaaaaAAAAA", 2, ["aaa", "aa", "AAA", "AA"]),  # another kin: it shares nothing with a
        ("aaaaa", 2, ["aaa", "aa"]),
        ("aAbB", 2, ["ab", "AB"]),
        ("abc", 2, ["ac", "b"]),
        ("a" * 25, 1, ["a" * 9, "a" * 8, "a" * 8]),
        ("a" * 25, 2, ["a" * 7, "a" * 6, "a" * 6, "a" * 6]),
        ("ab", 8, ["a", "b"]),
        ("--aaaa", 2, ["-", "-", "aa", "aa"]),  # the first two are finished
        ("aa-", 1, ["aa", "-"]),  # the third repeats one of the others: they train first
        ("ab-aa", 2, ["aa", "ab", "-"]),  # likewise: the second one is the last of its group
    ],
)
def test_groups_keep_all_workers_busy(families: str, at_once: int, groups: list[str]) -> None:
    """Each job is in one group of its kin; each group has its share of each family."""
    kinds = [None if name == "-" else ("lower" if name.islower() else "upper", name) for name in families]
    found = groups_of(kinds, [0] * len(families), at_once)
    assert ["".join(families[number] for number in one) for one in found] == groups
    assert sorted(number for one in found for number in one) == list(range(len(families)))


def test_each_group_has_few_seeds() -> None:
    """Two features of three seeds and five folds: four groups of two workers, each with the same seeds of both."""
    jobs = [(feature, seed) for feature in "ab" for _ in range(5) for seed in range(3)]
    groups = groups_of([("clips", feature) for feature, _ in jobs], [seed for _, seed in jobs], 2)
    assert [len(one) for one in groups] == [8, 8, 7, 7]
    assert sum(len({jobs[number][1] for number in one}) for one in groups) == 6


def test_jobs_of_several_kin_keep_all_workers_busy() -> None:
    """Ten jobs of one kin and one of another: no worker is idle."""
    groups = groups_of([("many", "a")] * 10 + [("one", "b")], [0] * 11, 8)
    assert sorted(map(len, groups)) == [1] * 7 + [2] * 2


@pytest.mark.parametrize("grouped_first", [True, False])
def test_each_net_of_a_group_keeps_learning(grouped_first: bool) -> None:
    """A net that passes alone drops its gradients; one net of several keeps its members' views of them."""
    nets, front_end = nets_of("feature=mel")
    alone = Alone(nets[0], torch.Generator())
    example = front_end(torch.zeros(1, 1, 8000))
    members = [net.eval() for net in nets[1:]]
    grouped = Grouped(members, [torch.Generator() for _ in members], example, exact=False)
    together = Together([])
    together.nets.extend([grouped, alone] if grouped_first else [alone, grouped])
    x = torch.randn(4, *example.shape[1:])
    for _ in range(2):
        together.zero_grad()
        assert all(parameter.grad is None for parameter in alone.parameters())
        assert not any(parameter.grad.any() for net in members for parameter in net.parameters())
        for net in (alone, grouped):
            torch.cat(list(net([x] * net.count)), dim=1).square().sum().backward()
        assert all(parameter.grad.any() for net in nets for parameter in net.parameters())


def test_kin_have_the_same_clips_and_the_same_augmentation(tone_config: Callable[..., Any], tmp_path: Path) -> None:
    """Kin share augmented waveforms, a family also features. A recipe does not name the folder."""
    write_tones(tmp_path / "others", seed=1)
    one = plan(tone_config("seed=1"))
    assert kin_and_family(one) == kin_and_family(plan(tone_config("fold=1")))
    for other, same_kin in (
        (f"data.root={tmp_path}/others", False),
        ("augment.noise.snr_low_db=5", False),
        ("optimizer.lr=0.01", False),
        ("feature=mfcc", True),
        ("model.depth=2", True),
    ):
        kin, family = kin_and_family(plan(tone_config(other)))
        assert (kin == kin_and_family(one)[0]) == same_kin and family != kin_and_family(one)[1]
    encoder = plan(tone_config("feature=speech_embedding"))
    assert kin_and_family(encoder) != kin_and_family(one) and len(set(kin_and_family(encoder))) == 1


SWEEP = ("train.py", "data=folder", "data.root=tones", "feature=mel", "fold=0,1", "folds.count=2", "seed=0,1")
SHORT = ("trainer.batch_size=4", "trainer.accelerator=cpu", "hydra.launcher.n_jobs=1", "hydra/launcher=together", "-m")


def runs_in(folder: Path) -> dict[tuple[str, ...], Any]:
    runs = Tracker(f"sqlite:///{folder}/mlruns/mlflow.db", "audio-mnist").search(kind="train")
    found = {tuple(run.tags[tag] for tag in ("feature", "fold", "seed")): run for run in runs}
    assert len(found) == len(runs)
    return found


AMX = pytest.mark.skipif(not torch.cpu.get_capabilities().get("amx_bf16"), reason="needs AMX")


@pytest.mark.parametrize(
    ("precision", "workers", "features"),
    [("32-true", 1, "mfcc,mel"), pytest.param("bf16-mixed", 2, "mel,mfcc", marks=AMX)],
)
def test_sweep_together_has_the_bits_of_runs_alone(tmp_path: Path, precision: str, workers: int, features: str) -> None:
    """Two features, two seeds, all augmentations: each run has the losses that it has alone. So they are the same.

    With AMX the nets of a feature pass as one net, elsewhere one after another.
    """
    # one net of maps of short clips would have other bits
    sweep = [one.replace("feature=mel", f"feature={features}") for one in SWEEP]
    arguments = (*sweep, "trainer.max_epochs=4", f"trainer.precision={precision}", "data.clip_s=1.0")
    losses = {}
    for mode in ("together", "side_by_side"):
        folder = tmp_path / mode
        write_tones(folder / "tones")
        short = [one.replace("=together", f"={mode}").replace("n_jobs=1", f"n_jobs={workers}") for one in SHORT]
        done = run_command(folder, *arguments, *short)
        assert done.returncode == 0 and "8 of 8 runs finished" in done.stdout, done.stdout + done.stderr
        assert done.stdout.count(": 4 epochs together") == (workers if mode == "together" else 0), done.stdout
        tracker = Tracker(f"sqlite:///{folder}/mlruns/mlflow.db", "audio-mnist")
        runs = runs_in(folder)
        for run in runs.values():
            assert run.status == "FINISHED"
            for metric in ("train/loss", "fold/loss"):
                assert list(tracker.history(run.id, metric)) == [0, 1, 2, 3]
        losses[mode] = [[runs[key].metrics[m] for m in ("best/loss", "train/loss")] for key in sorted(runs)]
    assert len({best for best, _ in losses["together"]}) == 8
    assert losses["together"] == losses["side_by_side"]
    again = run_command(tmp_path / "together", *arguments, *SHORT)
    assert "8 of them are finished already" in again.stdout and "epochs together" not in again.stdout
    alone = run_command(
        tmp_path / "together", *arguments, *[one.replace("=together", "=side_by_side") for one in SHORT]
    )
    assert "8 of them are finished already" in alone.stdout, alone.stdout


def test_one_net_on_request_makes_other_runs(tmp_path: Path) -> None:
    """trainer.together=true: bits may differ, so runs alone do not count as finished; results stay close."""
    write_tones(tmp_path / "tones")
    arguments = (*SWEEP, "trainer.max_epochs=4", "augment=none", "trainer.precision=32-true")
    for mode in ("false", "true"):
        done = run_command(tmp_path, *arguments, f"trainer.together={mode}", *SHORT)
        assert "4 of 4 runs finished" in done.stdout and "finished already" not in done.stdout, done.stdout
    runs = Tracker(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "audio-mnist").search(kind="train")
    by_key: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        by_key.setdefault((run.tags["fold"], run.tags["seed"]), []).append(run.metrics["best/loss"])
    assert len(by_key) == 4
    for alone, together in by_key.values():
        np.testing.assert_allclose(alone, together, rtol=0.05)


def test_runs_that_do_not_fit_train_alone(tmp_path: Path) -> None:
    """Averaged weights are an own state; the sweep says why and trains each run by itself."""
    write_tones(tmp_path / "tones")
    done = run_command(tmp_path, *SWEEP, "trainer.max_epochs=1", "optimizer.ema_decay=0.9", *SHORT)
    assert "not trained together: needs optimizer.ema_decay=null" in done.stdout, done.stdout + done.stderr
    assert "4 of 4 runs finished" in done.stdout


@pytest.mark.slow
def test_killed_group_is_resumed(tmp_path: Path) -> None:
    """SIGKILL in mid-training: the same command resumes every run from its own state."""
    write_tones(tmp_path / "tones")
    arguments = (*SWEEP, "trainer.max_epochs=60", "resume_every_s=0", *SHORT)
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / arguments[0]), *arguments[1:]], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    resume, deadline = tmp_path / "mlruns" / "resume", time.monotonic() + 200
    while len(list(resume.rglob("last.ckpt"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = run_command(tmp_path, *arguments)
    assert "epochs in" in done.stdout and "scored in" not in done.stdout
    assert done.returncode == 0 and done.stdout.count("resumes after epoch") == 4, done.stdout + done.stderr
    assert "4 of 4 runs finished" in done.stdout
    assert {run.status for run in runs_in(tmp_path).values()} == {"FINISHED"}


def test_group_whose_maps_are_tiny_is_not_exact() -> None:
    """There a bit differs in some steps, and a trial may miss it."""
    nets, front_end = nets_of("feature=mfcc")
    example = front_end(torch.zeros(1, 1, 3200)).repeat(4, 1, 1, 1)
    with pytest.raises(UnsupportedError, match="so small that bits would differ"):
        group([net.eval() for net in nets], [torch.Generator() for _ in nets], example, exact=True)


def test_each_member_keeps_its_own_state_of_the_optimiser() -> None:
    """A group's state, cut for one member, has what an optimiser of that member alone would have."""
    nets = [nets_of("feature=mel", count=1)[0][0], nets_of("model=bcresnet", count=1)[0][0]]

    def optimizer_of(*some: torch.nn.Module) -> Muon:
        chosen = [one for net in some for one in matrices(net)]
        known = {id(one) for one in chosen}
        others = [one for net in some for one in net.parameters() if id(one) not in known]
        return Muon(chosen, others, lr=0.003, matrix_lr=0.02)

    alone = copy.deepcopy(nets)
    for net, own in zip(nets, alone, strict=True):
        for one, other in zip(net.parameters(), own.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
    whole = optimizer_of(*nets)
    whole.step()
    for number, net in enumerate(alone):
        expected = optimizer_of(net)
        expected.step()
        found, wanted = _share(whole.state_dict(), whole, nets[number]), expected.state_dict()
        assert found["param_groups"] == wanted["param_groups"] and found["state"].keys() == wanted["state"].keys()
        for index, values in wanted["state"].items():
            assert all(torch.equal(found["state"][index][name], value) for name, value in values.items())
