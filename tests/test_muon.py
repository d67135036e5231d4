"""The optimiser: its steps against torch's own Muon and AdamW, its state, and what it trains."""

import copy

import pytest
import torch
from torch import nn

from audio_mnist.training.muon import Muon, matrices, orthogonal
from tests.pretended_gpu import GPU, pretended_gpu


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Conv2d(16, 16, 3, groups=16))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 4, 6), nn.Linear(6, 6)).to(
        memory_format=torch.channels_last
    )


def optimizer_of(net: nn.Module, weight_decay: float = 0.1) -> Muon:
    chosen = matrices(net)
    others = [one for one in net.parameters() if all(one is not other for other in chosen)]
    return Muon(chosen, others, lr=0.01, matrix_lr=0.02, weight_decay=weight_decay)


def layout_of(weight: torch.Tensor) -> torch.memory_format:
    return torch.channels_last if weight.ndim == 4 else torch.contiguous_format


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for number in range(first, first + steps):
        x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        net(x.to(next(net.parameters()).device)).square().sum().backward()
        optimizer.step()


def test_matrices_are_the_weights_between_first_and_last() -> None:
    """A convolution of single channels is no matrix."""
    assert [tuple(one.shape) for one in matrices(small_net())] == [(4, 8, 3, 3), (16, 4, 1, 1), (6, 64)]
    assert matrices(nn.Sequential(nn.Linear(4, 2))) == []


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 144), (4, 1, 5)])
def test_orthogonal_has_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    """The singular vectors stay."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonal(x)
    assert torch.linalg.svdvals(found).sub(1).abs().max() < 0.5
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    aligned = u.mT @ found @ v.mT  # diagonal where the vectors are the same
    assert (aligned - torch.diag_embed(aligned.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4


def test_steps_equal_torchs_own() -> None:
    """Muon of torch on matrices of two dimensions, AdamW on the rest; torch iterates in bfloat16."""
    net = small_net()
    theirs = copy.deepcopy(net)
    ours = optimizer_of(net)
    chosen = matrices(theirs)
    flat = [nn.Parameter(one.detach().flatten(1).clone()) for one in chosen]
    muon = torch.optim.Muon(flat, lr=0.02, weight_decay=0.1, momentum=0.95)
    others = [one for one in theirs.parameters() if all(one is not other for other in chosen)]
    adamw = torch.optim.AdamW(others, lr=0.01, weight_decay=0.1)
    before = [one.detach().clone() for one in chosen]
    for number in range(2):
        generator = torch.Generator().manual_seed(number)
        for own, other in zip(net.parameters(), theirs.parameters(), strict=True):
            own.grad = torch.randn(own.shape, generator=generator).contiguous(memory_format=layout_of(own))
            other.grad = own.grad.clone()
        for matrix, one in zip(flat, chosen, strict=True):
            matrix.grad = one.grad.flatten(1)  # type: ignore[union-attr]
        ours.step()
        adamw.step()
        muon.step()
        with torch.no_grad():
            for matrix, one in zip(flat, chosen, strict=True):
                one.copy_(matrix.view_as(one))
    for own, other, start in zip(matrices(net), chosen, before, strict=True):
        assert (own - other).norm() < 0.05 * (other - start).norm()
    torch.testing.assert_close(net[0].weight, theirs[0].weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(net[-1].bias, theirs[-1].bias, rtol=1e-3, atol=1e-4)


def test_state_that_is_saved_continues_with_the_same_bits() -> None:
    """After a reload, in a new optimiser."""
    whole = small_net()
    train(whole, optimizer_of(whole), 4)
    half = small_net()
    optimizer = optimizer_of(half)
    train(half, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    again = copy.deepcopy(half)
    continued = optimizer_of(again)
    continued.load_state_dict(state)
    train(again, continued, 2, first=2)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_weights_without_gradient_only_decay() -> None:
    """A layer that a forward pass does not use."""
    net = small_net()
    optimizer = optimizer_of(net)
    before = matrices(net)[0].detach().clone()
    optimizer.step()
    torch.testing.assert_close(matrices(net)[0], before * (1 - 0.02 * 0.1))


def test_one_batch_on_a_gpu_takes_the_steps_of_a_cpu() -> None:
    """There all matrices are filled up to one shape, so that few operations are launched."""
    expected = small_net()
    cpu = optimizer_of(expected)
    train(expected, cpu, 1)
    cpu.step()
    net = small_net()
    with pretended_gpu() as counts:
        net.to(GPU)
        optimizer = optimizer_of(net)
        train(net, optimizer, 1)
        counts.clear()
        optimizer.step()
        assert not counts.waits and counts.launches["baddbmm"] == 10
    for one, other in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one.values, other.detach(), rtol=1e-3, atol=1e-5)
