"""Several nets of one shape as one net of as many groups: their channels lie side by side, each layer runs once."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from audio_mnist.models.base import RowNorm


class UnsupportedError(Exception):
    """A net cannot be grouped."""


class GroupedLinear(nn.Module):
    """Linear layers of K nets.

    Shape: (B, K in) -> (B, K out).
    """

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([part.weight.detach() for part in parts]))  # (K, out, in)
        self.bias = nn.Parameter(torch.stack([part.bias.detach() for part in parts]))  # (K, out)
        for part, weight, bias in zip(parts, self.weight.data, self.bias.data, strict=True):
            part.weight.data, part.bias.data = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        # one after another: a batched product has other bits
        own = zip(x.chunk(len(self.weight), dim=1), self.weight, self.bias, strict=True)
        return torch.cat([functional.linear(*one) for one in own], dim=1)


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


def group(nets: Sequence[nn.Module], generators: Sequence[torch.Generator], example: Tensor) -> nn.Module:
    """Return one net for K of the same shape, in training mode.

    The K nets' weights and statistics become views of the one net's, so they
    train with it, and each can be scored and saved as ever.

    Args:
        nets: K nets on the CPU, in evaluation mode.
        generators: each net's random numbers of dropout.
        example: features (1, C, F, N), whose shape a trial batch has.

    Shape: (B, K C, F, N) -> (B, K classes).

    Raises:
        UnsupportedError: a layer is of another kind than those known here, or the net mixes its channels in another way
            than by layers.
    """
    whole = copy.deepcopy(nets[0])
    for name, module in list(whole.named_modules()):
        parts = [net.get_submodule(name) for net in nets]
        new = _grouped(module, parts, generators)
        if new is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(whole.get_submodule(parent), leaf, new)
    _check(whole.eval(), nets, example)
    return whole.train()


@torch.no_grad()
def _check(whole: nn.Module, nets: Sequence[nn.Module], example: Tensor) -> None:
    """Compare a random batch with each net alone: a concatenation in `forward` would mix the nets."""
    shape = (2, len(nets) * example.shape[1], *example.shape[2:])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    try:
        together = whole(x)
    except Exception as error:
        raise UnsupportedError(f"its groups do not fit together ({type(error).__name__})") from None
    alone = torch.cat([net(part) for net, part in zip(nets, x.chunk(len(nets), dim=1), strict=True)], dim=1)
    if together.shape != alone.shape or not torch.allclose(together, alone, rtol=1e-2, atol=1e-3):
        raise UnsupportedError("it mixes channels outside of its layers")


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
        ).to(memory_format=torch.channels_last)
        _share_parameters(new, parts)
        return new
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine and module.track_running_stats:
        new = type(module)(module.num_features * count, module.eps, module.momentum)
        _share_parameters(new, parts)
        _share_buffers(new, parts, dim=0)
        return new
    if any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
        raise UnsupportedError(f"it has a layer {kind.__name__}")
    return None


def _share_parameters(new: nn.Module, parts: Sequence[nn.Module]) -> None:
    for name, whole in new.named_parameters(recurse=False):
        for part, share in zip(parts, whole.data.chunk(len(parts)), strict=True):
            own = getattr(part, name)
            share.copy_(own.data)
            own.data = share


def _share_buffers(new: nn.Module, parts: Sequence[nn.Module], *, dim: int) -> None:
    for name, whole in new.named_buffers(recurse=False):
        shares = whole.chunk(len(parts), dim) if whole.ndim else [whole] * len(parts)
        for part, share in zip(parts, shares, strict=True):
            share.copy_(part._buffers[name])  # type: ignore[arg-type]
            part._buffers[name] = share
