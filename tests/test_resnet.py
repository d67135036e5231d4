"""The net: its size, its shapes, its gradients."""

import pytest
import torch

from audio_mnist import resnet
from audio_mnist.errors import ConfigError


def trainable(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def test_resnet_of_depth_1_is_the_original() -> None:
    """Exactly the original's number of trainable parameters."""
    assert trainable(resnet.ResNet(10, depth=1)) == 83_562


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("shape", [(40, 40), (8, 8), (64, 101), (40, 1), (7, 9)])
def test_resnet_forward_and_backward(depth: int, width: int, shape: tuple[int, int]) -> None:
    """Logits of the right shape, finite, with a gradient in every parameter."""
    net = resnet.build({"name": "resnet", "depth": depth, "width": width, "dropout": 0.5}, classes=7)
    logits = net(torch.randn(4, 1, *shape))
    assert logits.shape == (4, 7) and logits.isfinite().all()
    logits.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_resnet_depth_multiplies_blocks_and_width_channels() -> None:
    """depth=3 has three blocks in each of the four stages; width=2 doubles the channels."""
    blocks = [m for m in resnet.ResNet(10, depth=3).modules() if isinstance(m, resnet.ResBlock)]
    assert len(blocks) == 12
    assert resnet.ResNet(10, width=2).output.in_features == 64


def test_resblock_has_the_originals_order() -> None:
    """BN-ReLU-1x1, BN-ReLU-3x3, BN-ReLU-1x1; the inner width is the input's."""
    layers = list(resnet.ResBlock(3, 5).residual)
    kinds = [type(layer).__name__ for layer in layers]
    assert kinds == ["BatchNorm2d", "ReLU", "Conv2d"] * 3
    convolutions = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
    assert [c.kernel_size for c in convolutions] == [(1, 1), (3, 3), (1, 1)]
    assert [c.out_channels for c in convolutions] == [3, 3, 5]


def test_resblock_is_its_formula() -> None:
    """ReLU(residual + projection): never negative, and the projection alone where the residual is zero."""
    block = resnet.ResBlock(3, 5).eval()
    last = block.residual[-1]
    assert isinstance(last, torch.nn.Conv2d)
    torch.nn.init.zeros_(last.weight)
    assert last.bias is not None
    torch.nn.init.zeros_(last.bias)
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(block(x), block.shortcut(x).clamp(min=0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vgg"}, "model.name=vgg: expected one of resnet"),
        ({"name": "resnet", "depth": 0}, "model.depth=0"),
        ({"name": "resnet", "width": 0}, "model.width=0"),
        ({"name": "resnet", "dropout": 1.0}, "model.dropout=1.0"),
        ({"name": "resnet", "depth": 1.5}, "model.depth=1.5: expected int"),
    ],
)
def test_build_refuses_wrong_settings(settings: dict, message: str) -> None:
    """The message names the key."""
    with pytest.raises(ConfigError, match=message):
        resnet.build(settings, classes=10)
