"""Several nets of one shape as one net of as many groups: their channels lie side by side, each layer runs once."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_mnist.models import Model
from audio_mnist.models.base import RowNorm
from audio_mnist.system import devices

# On maps of 2 x 2 oneDNN sums a group's convolution in another order. bfloat16 hides it in most batches, so no trial
# finds it for sure. None was seen on maps of 2 x 3 and more, in 450 batches.
_LEAST_MAP = 6
_COMPARED = 100_000  # values of features; their step is compared with each net alone


class UnsupportedError(Exception):
    """A net cannot be grouped."""


class GroupedLinear(nn.Module):
    """Linear layers of K nets.

    Shape: (B, K in) -> (B, K out).
    """

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]))  # (K out, in)
        self.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]))  # (K out,)
        self.nets = len(parts)

    def forward(self, x: Tensor) -> Tensor:
        # one after another: a batched product has other bits
        layers = zip(
            *(of_all.chunk(self.nets, dim) for of_all, dim in ((x, 1), (self.weight, 0), (self.bias, 0))), strict=True
        )
        return torch.cat([functional.linear(*one) for one in layers], dim=1)


class GroupedRowNorm(RowNorm):
    """`RowNorm` of K nets: the floor is a share of each net's own variance."""

    def __init__(self, parts: Sequence[RowNorm]) -> None:
        _, channels, rows, _ = parts[0].mean.shape
        super().__init__(channels * len(parts), rows, parts[0].momentum, parts[0].floor)
        self.nets = len(parts)
        _share_buffers(self, parts, dim=1)

    def mean_variance(self, variance: Tensor) -> Tensor:
        return torch.cat([part.mean().expand_as(part) for part in variance.chunk(self.nets, dim=1)], dim=1)


class GroupedDropout(nn.Module):
    """Dropout of K nets, each with draws of its own generator: those of torch's global one in a run alone."""

    def __init__(self, part: nn.Module, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.p, self.of_channels = float(part.p), isinstance(part, nn.Dropout2d)  # type: ignore[arg-type]
        self._generators = generators

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        kept = []
        for one, generator in zip(x.chunk(len(self._generators), dim=1), self._generators, strict=True):
            shape = (*one.shape[:2], *[1] * (one.ndim - 2)) if self.of_channels else one.shape
            kept.append(torch.empty(shape, dtype=x.dtype).bernoulli_(1 - self.p, generator=generator))
        return x * torch.cat(kept, dim=1).div_(1 - self.p)


def groups_exactly(settings: dict[str, Any]) -> bool:
    """Tell whether runs trained as one net have the bits that they have alone.

    Seen on processors with AMX, with one thread. A processor that has bfloat16
    without AMX computes other bits.

    Args:
        settings: a run's whole config.
    """
    net, trainer = Model.registry.get(settings["model"]["name"]), settings["trainer"]
    return (
        devices.precision(trainer["precision"], trainer["accelerator"]) == "bf16-mixed"
        and bool(torch.cpu.get_capabilities().get("amx_bf16"))
        and trainer["threads"] == 1
        and net is not None
        and net.groups_exactly
    )


def group(
    nets: Sequence[nn.Module], generators: Sequence[torch.Generator], example: Tensor, *, exact: bool = False
) -> nn.Module:
    """Return one net for K of the same shape, in training mode.

    The K nets' weights and statistics become views of the one net's. So each net
    can be scored and saved as ever, and with `share_gradients` an optimiser of the
    K nets' weights trains the one net.

    Args:
        nets: K nets on the CPU, in evaluation mode.
        generators: each net's random numbers of dropout.
        example: features (B, C, F, N) in the shape of a trial batch.
        exact: whether a step in bfloat16 must have the bits of each net alone.

    Shape: (B, K C, F, N) -> (B, K classes).

    Raises:
        UnsupportedError: a layer is of another kind than those known here, or the net mixes its channels in another way
            than by layers, or with `exact` its bits differ.
    """
    _check(nets, example, exact)
    return _joined(nets, generators).train()


def share_gradients(whole: nn.Module, nets: Sequence[nn.Module]) -> None:
    """Make the nets' gradients views of the one net's, all zero. They stay so until one is set to None.

    Args:
        whole: what `group` returned.
        nets: the K nets.
    """
    for name, parameter in whole.named_parameters():
        parameter.grad = torch.zeros_like(parameter)
        for net, share in zip(nets, parameter.grad.chunk(len(nets)), strict=True):
            net.get_parameter(name).grad = share


def _joined(nets: Sequence[nn.Module], generators: Sequence[torch.Generator]) -> nn.Module:
    whole = copy.deepcopy(nets[0])
    for name, module in list(whole.named_modules()):
        parts = [net.get_submodule(name) for net in nets]
        new = _grouped(module, parts, generators)
        if new is not None:
            _share_parameters(new, parts)
            parent, _, leaf = name.rpartition(".")
            setattr(whole.get_submodule(parent), leaf, new)
    return whole


def _check(nets: Sequence[nn.Module], example: Tensor, exact: bool) -> None:
    """Compare random batches with each net alone: a concatenation in `forward` would mix the nets."""
    if exact and _smallest_map(nets[0], example) < _LEAST_MAP:
        raise UnsupportedError("its maps are so small that bits would differ from those of a run alone")
    trials = -(-_COMPARED // example.numel()) if exact else 1
    for trial in range(trials):
        x = torch.randn((len(nets), *example.shape), generator=torch.Generator().manual_seed(trial))  # (K, B, C, F, N)
        _compare(nets, x, exact)


@torch.no_grad()
def _smallest_map(net: nn.Module, example: Tensor) -> int:
    """Return the least number of rows times frames that a convolution of more than one place gets."""
    net, sizes = copy.deepcopy(net), []
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            module.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2] * inputs[0].shape[3]))
    net(example)
    return min(sizes, default=_LEAST_MAP)


def _compare(nets: Sequence[nn.Module], x: Tensor, exact: bool) -> None:
    alone, members = [copy.deepcopy(net).train(exact) for net in nets], [copy.deepcopy(net) for net in nets]
    seeds = range(len(nets))
    whole = _joined(members, [torch.Generator().manual_seed(seed) for seed in seeds]).train(exact)
    share_gradients(whole, members)
    try:
        together = _trial(whole, torch.cat(list(x), dim=1), exact)
    except Exception as error:
        raise UnsupportedError(f"its groups do not fit together ({type(error).__name__})") from None
    with torch.random.fork_rng(devices=[]):
        found = []
        for seed, net, part in zip(seeds, alone, x, strict=True):
            torch.manual_seed(seed)
            found.append(_trial(net, part, exact))
    logits = torch.cat(found, dim=1)
    if together.shape != logits.shape or not torch.allclose(together, logits, rtol=1e-2, atol=1e-3):
        raise UnsupportedError("it mixes channels outside of its layers")
    if exact and not (torch.equal(together, logits) and all(map(_same_bits, members, alone))):
        raise UnsupportedError("its bits would differ from those of a run alone")


def _same_bits(member: nn.Module, alone: nn.Module) -> bool:
    """Compare gradients and running statistics."""
    pairs = zip(member.parameters(), alone.parameters(), strict=True)
    gradients = all(
        one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad) for one, other in pairs
    )
    return gradients and all(torch.equal(*pair) for pair in zip(member.buffers(), alone.buffers(), strict=True))


def _trial(net: nn.Module, x: Tensor, exact: bool) -> Tensor:
    """Return the logits of a batch. With `exact` it is a training step in bfloat16, and the net keeps its gradients."""
    with torch.autocast("cpu", torch.bfloat16, enabled=exact), torch.set_grad_enabled(exact):
        logits = net(x.contiguous(memory_format=torch.channels_last))
    if exact:
        logits.float().square().sum().backward()
    return logits.detach()


def _grouped(module: nn.Module, parts: Sequence, generators: Sequence[torch.Generator]) -> nn.Module | None:
    """Return the layer of all nets; None where one layer without weights serves all."""
    kind, count = type(module), len(parts)  # a subclass may compute something else
    if kind is nn.Linear:
        return GroupedLinear(parts)
    if kind is RowNorm:
        return GroupedRowNorm(parts)
    if kind in (nn.Dropout, nn.Dropout2d):
        return GroupedDropout(module, generators)
    if isinstance(module, nn.Conv2d) and kind is nn.Conv2d:
        new: nn.Module = nn.Conv2d(
            module.in_channels * count,
            module.out_channels * count,
            module.kernel_size,  # type: ignore[arg-type]
            module.stride,  # type: ignore[arg-type]
            module.padding,  # type: ignore[arg-type]
            module.dilation,  # type: ignore[arg-type]
            module.groups * count,
            module.bias is not None,
        )
        return new.to(memory_format=torch.channels_last)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine and module.track_running_stats:
        new = type(module)(module.num_features * count, module.eps, module.momentum)
        _share_buffers(new, parts, dim=0)
        return new
    if any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
        raise UnsupportedError(f"it has a layer {kind.__name__}")
    return None


def _share_parameters(new: nn.Module, parts: Sequence[nn.Module]) -> None:
    for name, whole in new.named_parameters(recurse=False):
        for part, share in zip(parts, whole.data.chunk(len(parts)), strict=True):
            values = getattr(part, name)
            share.copy_(values.data)
            values.data = share


def _share_buffers(new: nn.Module, parts: Sequence[nn.Module], *, dim: int) -> None:
    for name, whole in new.named_buffers(recurse=False):
        shares = whole.chunk(len(parts), dim) if whole.ndim else [whole] * len(parts)
        for part, share in zip(parts, shares, strict=True):
            share.copy_(part._buffers[name])  # type: ignore[arg-type]
            part._buffers[name] = share
