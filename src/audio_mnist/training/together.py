"""Runs of the same clips and the same way to train, in one process.

Runs of one family differ in fold and seed alone. Runs of one seed share augmented waveforms; those that are also of one
family share features. Where it changes no bit, or on request, a family's nets are one grouped net.

Each run keeps its own claim, tracked run, batches and state. At the end its whole state lies in its folder, as that of
a run that was killed after its last epoch. `run.train` resumes from it, scores it and ends it.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from torch import Tensor, nn

from audio_mnist.errors import counted
from audio_mnist.system import devices, locks
from audio_mnist.tracking.run import Run
from audio_mnist.tracking.tracker import connect
from audio_mnist.training import progress, run
from audio_mnist.training.callbacks import epoch_seed
from audio_mnist.training.classifier import optimizer_of
from audio_mnist.training.datamodule import ClipDataModule, FeatureBatches, share_clips
from audio_mnist.training.fit import Parts, build, interruptible
from audio_mnist.training.grouped import UnsupportedError, group, groups_exactly, share_gradients
from audio_mnist.training.job import Job
from audio_mnist.training.resume import LAST, PENDING, Workplace, claim, resume_dir

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One run of a group.

    Attributes:
        job: the planned run.
        parts: the job's parts.
        workplace: folder of its checkpoints.
        run: the tracked run.
        folder: the job's folder in the sweep, for its progress.
    """

    job: Job
    parts: Parts
    workplace: Workplace
    run: Run
    folder: Path


class _Data(LightningDataModule):
    """Batches of all members: a tuple of each one's (features, targets)."""

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__()
        self._members = members

    def train_dataloader(self) -> "_Zipped":
        return _Zipped([member.parts.data.train_dataloader() for member in self._members])

    def val_dataloader(self) -> list[FeatureBatches]:
        return [loader for member in self._members for loader in member.parts.data.val_dataloader()]


class _Zipped:
    """One batch of each loader at a time."""

    def __init__(self, loaders: list[FeatureBatches]) -> None:
        self._loaders = loaders
        self.sampler, self.batch_sampler = self, None  # Lightning sets the sampler's epoch

    def set_epoch(self, epoch: int) -> None:
        for loader in self._loaders:
            loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]

    def __len__(self) -> int:
        return len(self._loaders[0])

    def __iter__(self) -> Iterator[tuple]:
        return zip(*self._loaders, strict=True)


class Alone(nn.Module):
    """One net, with the random numbers that it has in a run alone.

    Args:
        net: the net.
        generator: its random numbers.

    Shape: a list of one (B, C, F, N) -> a list of one (B, classes).
    """

    def __init__(self, net: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        self.net, self._generator, self.count = net, generator, 1

    def forward(self, x: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._generator.get_state())
            logits = [self.net(part.contiguous(memory_format=torch.channels_last)) for part in x]
            self._generator.set_state(torch.get_rng_state())
        return logits


class Grouped(nn.Module):
    """Nets of one shape that pass as one net of K groups.

    Args:
        nets: K nets, in evaluation mode.
        generators: each net's random numbers of dropout.
        example: features (B, C, F, N) in the shape of a batch.
        exact: whether a step must have the bits of each net alone.

    Shape: a list of K (B, C, F, N) -> a list of K (B, classes).

    Raises:
        UnsupportedError: the nets cannot be grouped.
    """

    def __init__(
        self, nets: Sequence[nn.Module], generators: Sequence[torch.Generator], example: Tensor, *, exact: bool
    ) -> None:
        super().__init__()
        self.net, self.count = group(nets, generators, example, exact=exact), len(nets)
        share_gradients(self.net, nets)

    def forward(self, x: Sequence[Tensor]) -> Sequence[Tensor]:
        whole = torch.cat(list(x), dim=1).contiguous(memory_format=torch.channels_last)  # (B, K C, F, N)
        return self.net(whole).chunk(len(x), dim=1)


class Together(LightningModule):
    """The nets of all members. Each learns from its own loss, in one step.

    Args:
        families: runs, those of a family with nets of one shape.

    Attributes:
        members: all runs, family after family.
        scores: newest score of each member's scored fold, where training logs it; None before the first.
    """

    def __init__(self, families: Sequence[Sequence[Member]]) -> None:
        super().__init__()
        self.members = [member for family in families for member in family]
        generators = [[torch.Generator() for _ in family] for family in families]
        self._generators = [generator for of_family in generators for generator in of_family]
        self.scores: list[float | None] = [None] * len(self.members)
        self.nets = nn.ModuleList(net for pair in zip(families, generators, strict=True) for net in _joined(*pair))
        self._batch: tuple = ()

    def on_train_epoch_start(self) -> None:
        for member, generator in zip(self.members, self._generators, strict=True):
            generator.manual_seed(epoch_seed(member.job.settings["seed"], self.current_epoch, 0))

    def training_step(self, batch: tuple, batch_idx: int) -> Tensor:
        self._batch = batch
        return torch.zeros((), requires_grad=True)  # see `backward`

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Pass the nets forward and backward, so that the activations of one at a time are in memory."""
        todo = list(zip(self.members, self._batch, strict=True))
        for net in self.nets:
            count = int(net.count)  # type: ignore[arg-type]
            part, todo = todo[:count], todo[count:]
            with self.trainer.precision_plugin.train_step_context():
                logits = net([x for _, (x, _) in part])
                losses = [
                    member.parts.classifier.training_loss(answers, targets)
                    for answers, (member, (_, targets)) in zip(logits, part, strict=True)
                ]
            torch.stack(losses).sum().backward()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.members[dataloader_idx].parts.classifier.validation_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        self._log("train")

    def on_validation_epoch_end(self) -> None:
        self._log("fold")

    def _log(self, prefix: str) -> None:
        for number, member in enumerate(self.members):
            means = {name: float(value) for name, value in member.parts.classifier.epoch_means(prefix).items()}
            member.run.log_metrics(means, step=self.current_epoch)
            self.scores[number] = means.get(f"fold/{member.job.settings['score']}", self.scores[number])

    def configure_optimizers(self) -> Any:
        # the members' own weights, not the grouped ones: an operation on a longer tensor can round differently
        nets = [member.parts.classifier.net for member in self.members]
        return optimizer_of(self.members[0].job.settings["optimizer"], nets, self.trainer)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        self.zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for net in self.nets:
            net.zero_grad(set_to_none=not isinstance(net, Grouped))  # None would end the members' views


def _joined(members: Sequence[Member], generators: Sequence[torch.Generator]) -> list[nn.Module]:
    """Return a family's nets as one where that is asked for, or keeps their bits; else each alone."""
    first = members[0]
    settings, classifier = first.job.settings, first.parts.classifier
    asked = settings["trainer"]["together"]
    for member in members:
        member.parts.classifier.eval()
    nets = [member.parts.classifier.net for member in members]
    if len(members) > 1 and (asked or groups_exactly(settings)):
        silence = torch.zeros(1, 1, first.job.corpus.clip_samples)
        example = classifier.front_end()(silence).repeat(first.parts.length[1], 1, 1, 1)  # (B, C, F, N)
        try:
            return [Grouped(nets, generators, example, exact=not asked)]
        except UnsupportedError as error:
            level = logging.INFO if asked else logging.DEBUG  # nobody asked for one net
            name = settings["model"]["name"]
            log.log(level, "%s: not trained as one net: model=%s: %s", first.job.feature, name, error)
    return [Alone(net, generator).train() for net, generator in zip(nets, generators, strict=True)]


class _KeepStates(Callback):
    """Keep each member's state as `KeepState` does, so that each can be resumed alone; tell how far they are."""

    def __init__(self, members: Sequence[Member], every_s: float) -> None:
        self._members, self._every_s = members, every_s
        self._saved_at = self._told_at = time.monotonic()
        for member in members:  # left by a process that was killed before it sent the metrics
            (member.workplace.folder / PENDING).unlink(missing_ok=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if time.monotonic() - self._told_at >= 1:
            self._told_at = time.monotonic()
            epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs
            for member, score in zip(self._members, pl_module.scores, strict=True):  # type: ignore[arg-type]
                progress.write(member.folder, epoch=epoch, epochs=epochs, score=score)
        if time.monotonic() - self._saved_at >= self._every_s:
            _save(trainer, self._members)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (self._members[0].workplace.folder / PENDING).exists():
            _accept(self._members)
            self._saved_at = time.monotonic()


def _save(trainer: Trainer, members: Sequence[Member]) -> None:
    """Write each member's state, as Lightning would for a run alone."""
    whole = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    for member in members:
        classifier = member.parts.classifier
        checkpoint = whole | {
            "state_dict": {name: value.clone() for name, value in classifier.state_dict().items()},
            "optimizer_states": [_share(whole["optimizer_states"][0], trainer.optimizers[0], classifier.net)],
            classifier.CHECKPOINT_HYPER_PARAMS_NAME: classifier._hparams_name,
            classifier.CHECKPOINT_HYPER_PARAMS_KEY: dict(classifier.hparams),
        }
        torch.save(checkpoint, member.workplace.folder / PENDING)


def _share(state: dict[str, Any], optimizer: torch.optim.Optimizer, net: nn.Module) -> dict[str, Any]:
    """Return one net's share of the optimiser's state."""
    groups: list[dict[str, Any]] = []
    index_of: dict[int, Any] = {}
    own = set(map(id, net.parameters()))
    for weights, live in zip(state["param_groups"], optimizer.param_groups, strict=True):
        indices = [index for index, one in zip(weights["params"], live["params"], strict=True) if id(one) in own]
        numbers = [len(index_of) + place for place in range(len(indices))]
        index_of |= dict(zip(numbers, indices, strict=True))
        groups.append(weights | {"params": numbers})
    known = {place: state["state"][index] for place, index in index_of.items() if index in state["state"]}
    return state | {"state": known, "param_groups": groups}


def _accept(members: Sequence[Member]) -> None:
    """Make the newest states those to resume from, since their metrics are logged."""
    for member in members:
        member.run.flush()
        os.replace(member.workplace.folder / PENDING, member.workplace.folder / LAST)


def train_together(cfgs: Sequence[DictConfig], folders: Sequence[Path], sweep_dir: Path, parent_id: str | None) -> None:
    """Train runs together, up to the point where `run.train` scores them.

    Those that do not fit the group are left for `run.train`, which trains them alone.

    Args:
        cfgs: composed configs that differ in fold, seed, feature and net alone.
        folders: the jobs' folders in the sweep.
        sweep_dir: folder that the runs of the sweep share.
        parent_id: the sweep's tracked run.

    Raises:
        AudioMnistError: something that the caller can fix.
    """
    began = time.monotonic()
    jobs = [run.planned(cfg, sweep_dir) for cfg in cfgs]
    devices.set_up_cpu(jobs[0].settings["trainer"]["threads"])
    with contextlib.ExitStack() as stack:
        members: list[Member] = []
        for job, folder in zip(jobs, folders, strict=True):
            member = _join(job, folder, parent_id, stack)
            members += [member] if member is not None else []
        if len(members) < 2:  # the others are finished or half trained
            return
        families = _families(members)
        module = Together(list(families.values()))
        _share_clips(families)
        trainer = Trainer(
            **members[0].parts.options | {"enable_progress_bar": False},
            logger=False,
            callbacks=[_KeepStates(module.members, jobs[0].settings["resume_every_s"])],
            enable_checkpointing=False,
        )
        with interruptible(trainer):
            trainer.fit(module, _Data(module.members))
        _save(trainer, members)
        _accept(members)
    names = ", ".join(
        f"{family[0].job.feature} {family[0].job.settings['model']['name']} ({counted(len(family), 'run')})"
        for family in families.values()
    )
    log.info("%s: %d epochs together in %.0f s", names, trainer.current_epoch, time.monotonic() - began)


def _families(members: Sequence[Member]) -> dict[str, list[Member]]:
    families: dict[str, list[Member]] = {}
    for member in members:
        families.setdefault(member.job.family, []).append(member)
    return families


def _share_clips(families: dict[str, list[Member]]) -> None:
    by_seed: dict[int, dict[str, list[ClipDataModule]]] = {}
    for name, family in families.items():
        for member in family:
            of_seed = by_seed.setdefault(member.job.settings["seed"], {})
            of_seed.setdefault(name, []).append(member.parts.data)
    for of_seed in by_seed.values():
        share_clips(list(of_seed.values()))


def _join(job: Job, folder: Path, parent_id: str | None, stack: contextlib.ExitStack) -> Member | None:
    """Claim one run and open it; None where it is finished or half trained."""
    # never wait for a lock while others are held: two groups could wait for each other
    if locks.is_held(resume_dir(job.settings), job.key):
        return None
    with contextlib.ExitStack() as opening:
        tracker = connect(job.settings["tracking"]["uri"], job.settings["tracking"]["experiment"])
        claimed = opening.enter_context(claim(job, tracker))
        finished = claimed.earlier is not None and claimed.earlier.status == "FINISHED"
        if finished or claimed.workplace.last()[0] is not None:
            return None
        seed_everything(job.settings["seed"], verbose=False)
        parts = build(job, alone=False)
        opened = run.open_run(tracker, job, claimed, parent_id)
        opening.enter_context(run.ending(opened))
        folder.mkdir(exist_ok=True)
        stack.enter_context(opening.pop_all())
        return Member(job, parts, claimed.workplace, opened, folder)
