"""Muon for the matrices of a net, AdamW for the rest, as one optimiser."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration
_ITERATIONS = 5
_TINY = 1e-7  # avoids 0 / 0 for a gradient of zeros


class Muon(torch.optim.Optimizer):
    """Muon: the step of a matrix is its momentum with all singular values near 1.

    A convolution's weight is a matrix of one row per output channel. AdamW trains
    everything else. Matrices of one shape are computed at once, which torch's own
    Muon does not do: on a CPU it took four times as long.

    Args:
        matrices: weights (out, in, ...) that Muon trains.
        others: weights that AdamW trains.
        lr: learning rate of AdamW.
        matrix_lr: learning rate of Muon. A step's singular values are about this; of a matrix with more rows than
            columns sqrt(rows / columns) times this.
        weight_decay: decoupled weight decay of both.
        momentum: share of the momentum that a step keeps, with Nesterov's look ahead.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024. Deviation: float32
    throughout, which small matrices allow.

    >>> layer = nn.Linear(4, 3)
    >>> optimizer = Muon([layer.weight], [layer.bias], lr=0.003, matrix_lr=0.02)
    >>> layer(torch.ones(1, 4)).sum().backward()
    >>> before = layer.weight.detach().clone()
    >>> optimizer.step()
    >>> 0.01 < (before - layer.weight).norm() < 0.03  # of rank 1 here: one singular value
    tensor(True)
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        *,
        lr: float,
        matrix_lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        self._adamw = torch.optim.AdamW([{"params": list(others)}], lr=lr, weight_decay=weight_decay, fused=True)
        super().__init__(
            [{"params": list(matrices)}], {"lr": matrix_lr, "weight_decay": weight_decay, "momentum": momentum}
        )
        self.param_groups += self._adamw.param_groups
        self._layout: _Layout | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Train one step; `closure` computes the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # load_state_dict replaces both
        self._adamw.param_groups, self._adamw.state = self.param_groups[1:], self.state
        self._adamw.step()
        if self.param_groups[0]["params"]:
            self._step_matrices(**self.param_groups[0])
        return loss

    def _step_matrices(self, params: list[Tensor], lr: float, weight_decay: float, momentum: float, **_: Any) -> None:
        for parameter in params:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients: Any = [parameter.grad for parameter in params]
        moments = [self.state[parameter]["momentum"] for parameter in params]
        torch._foreach_lerp_(moments, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(moments, gradients, 1 - momentum)
        self._layout = self._layout or _Layout(params)
        steps = self._layout.steps(ahead)
        torch._foreach_mul_(params, 1 - lr * weight_decay)
        torch._foreach_add_(params, steps, alpha=-lr)


class _Layout:
    """Batches of matrices of one shape, and where each value lies in them; on a GPU one batch, filled up with zeros.

    A matrix with more rows than columns is transposed. The order of the columns does not matter.
    """

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        self._like = matrices
        total, start = sum(matrix.numel() for matrix in matrices), 0
        tables = []  # numbers of the values of each matrix, (rows, columns)
        for matrix in matrices:
            tables.append(torch.arange(start, start + matrix.numel()).view(len(matrix), -1))
            start += matrix.numel()
        one = matrices[0].device.type != "cpu"
        largest = (max(min(table.shape) for table in tables), max(max(table.shape) for table in tables))
        batches: dict[tuple[int, int], list[tuple[Tensor, float]]] = {}
        for table in tables:
            scale = max(1.0, table.shape[0] / table.shape[1]) ** 0.5
            places = table if table.shape[0] <= table.shape[1] else table.mT
            shape = largest if one else (places.shape[0], places.shape[1])
            padding = (0, shape[1] - places.shape[1], 0, shape[0] - places.shape[0])
            batches.setdefault(shape, []).append((nn.functional.pad(places, padding, value=total), scale))
        stacked = [torch.stack([places for places, _ in batch]) for batch in batches.values()]  # (K, rows, columns)
        order = torch.cat([batch.flatten() for batch in stacked])
        back = torch.zeros(total + 1, dtype=torch.long).scatter_(0, order, torch.arange(len(order)))
        device = matrices[0].device
        self._places, self._back = [batch.to(device) for batch in stacked], back.to(device)
        self._zero = matrices[0].new_zeros(1)
        scales = ([scale for _, scale in batch] for batch in batches.values())
        self._scales = [torch.tensor(scale, device=device).view(-1, 1, 1) for scale in scales]

    def steps(self, updates: Sequence[Tensor]) -> list[Tensor]:
        """Return each matrix's update with all singular values near 1, scaled."""
        flat = torch.cat([*(_in_memory(update) for update in updates), self._zero])
        found = [
            orthogonal(flat.index_select(0, places.flatten()).view(places.shape)) * scale
            for places, scale in zip(self._places, self._scales, strict=True)
        ]
        back = torch.cat([batch.flatten() for batch in found]).index_select(0, self._back)
        parts = back[:-1].split([matrix.numel() for matrix in self._like])
        return [part.as_strided(m.shape, m.stride()) for part, m in zip(parts, self._like, strict=True)]


def orthogonal(x: Tensor) -> Tensor:
    """Return matrices with the singular vectors of `x`, and singular values of about 0.7 to 1.2.

    Zero rows and columns stay zero.

    Args:
        x: (K, R, C) matrices, R at most C.

    Source: the quintic Newton-Schulz iteration of Jordan et al., 2024.

    >>> orthogonal(torch.diag(torch.tensor([4.0, 1.0, 0.5]))[None]).diagonal(dim1=1, dim2=2).round()
    tensor([[1., 1., 1.]])
    """
    a, b, c = _COEFFICIENTS
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + _TINY)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def matrices(net: nn.Module) -> list[nn.Parameter]:
    """Return the weights that Muon trains: all matrices but those of the first and the last layer.

    First and last are meant in the order in which the net registers its layers. A
    convolution of single channels has no matrix.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2))
    >>> [tuple(weight.shape) for weight in matrices(net)]
    [(8, 4, 3, 3)]
    """
    layers = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    return [parameter for parameter in layers[1:-1] if parameter.shape[1] > 1]


def _in_memory(x: Tensor) -> Tensor:
    """Return the values of a dense tensor in the order of memory."""
    return x.as_strided((x.numel(),), (1,))
