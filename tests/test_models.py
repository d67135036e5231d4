"""The nets: their sizes, their shapes, their gradients."""

import pytest
import torch

from audio_mnist import features, models
from audio_mnist.errors import ConfigError
from audio_mnist.models import resnet
from audio_mnist.models.base import RowNorm, SubSpectralNorm
from audio_mnist.models.bcresnet import BroadcastedBlock


def trainable(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def test_resnet_of_depth_1_is_the_original() -> None:
    """Exactly the original's number of trainable parameters."""
    assert trainable(resnet.ResNet(10, 1, 40, depth=1)) == 83_562


NETS = [
    *({"name": "resnet", "depth": d, "width": w, "dropout": 0.5} for d in (1, 2, 3) for w in (1, 2)),
    {"name": "resnet", "sub_bands": 5},
    {"name": "bcresnet"},
    {"name": "bcresnet", "tau": 2, "sub_bands": 1, "dropout": 0.0},
]


SHAPES = [(1, 40, 40), (3, 80, 101), (1, 40, 1), (1, 8, 8), (1, 7, 9)]  # channels, rows, frames


def takes(settings: dict, rows: int) -> bool:
    return rows >= 40 or (settings["name"] == "resnet" and "sub_bands" not in settings)


@pytest.mark.parametrize(
    ("settings", "shape"), [(net, shape) for net in NETS for shape in SHAPES if takes(net, shape[1])], ids=str
)
def test_net_forward_and_backward(settings: dict, shape: tuple[int, int, int]) -> None:
    """Logits of the right shape, finite, with a gradient in every parameter."""
    net = models.build(settings, 7, *shape[:2])
    logits = net(torch.randn(4, *shape))
    assert logits.shape == (4, 7) and logits.isfinite().all()
    logits.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_bcresnet_has_the_papers_size() -> None:
    """9,232 parameters at tau = 1 and 12 classes, 321 thousand at tau = 8 (its table 2: 9.2k and 321k)."""
    assert trainable(models.build({"name": "bcresnet"}, 12)) == 9_232
    assert round(trainable(models.build({"name": "bcresnet", "tau": 8}, 12)) / 1000) == 321


def test_bcresnet_block_broadcasts_over_rows() -> None:
    """With the row convolution silenced, a transition block's output is the same in every row."""
    block = BroadcastedBlock(3, 5, stride=1, dilation=1, sub_bands=1, dropout=0.0).eval()
    torch.nn.init.zeros_(block.rows[1].weight)
    torch.nn.init.constant_(block.rows[1].bias, 0.5)
    out = block(torch.randn(2, 3, 8, 9))
    assert out.shape == (2, 5, 8, 9)
    torch.testing.assert_close(out, out[:, :, :1].expand_as(out))


def test_subspectral_norm_is_a_batch_norm_of_each_part() -> None:
    """Against batch normalisation of the parts, one by one."""
    norm, x = SubSpectralNorm(3, 4), torch.randn(5, 3, 8, 6)
    parts = [torch.nn.BatchNorm2d(3)(part) for part in x.chunk(4, dim=2)]
    torch.testing.assert_close(norm(x), torch.cat(parts, dim=2))


def test_row_norm_scales_rows_by_the_batch_and_later_by_what_training_saw() -> None:
    """Mean 0 and sd 1 of each row, except for the floor; a row that never moves stays small."""
    torch.manual_seed(0)
    scale, shift = torch.rand(1, 2, 40, 1) + 0.5, 10 * torch.randn(1, 2, 40, 1)
    scale[0, 1, 7] = 1e-6
    x = scale * torch.randn(16, 2, 40, 30) + shift
    norm = RowNorm(2, 40)
    y = norm(x)
    moving = torch.ones(2, 40, dtype=torch.bool)
    moving[1, 7] = False
    assert y.mean(dim=(0, 3)).abs().max() < 1e-3
    spread = y.std(dim=(0, 3))
    assert (spread[moving] - 1).abs().max() < 0.05 and spread[1, 7] < 1e-4
    for _ in range(100):  # the running statistics settle
        norm(x)
    norm.eval()
    torch.testing.assert_close(norm(x[:1]), y[:1], rtol=1e-2, atol=1e-2)
    assert not norm(torch.zeros_like(x)).isnan().any()


@pytest.mark.parametrize("name", ["resnet", "bcresnet"])
def test_input_norm_of_a_net(name: str) -> None:
    """Other scales and offsets of the rows change the logits of a net without it far more."""
    torch.manual_seed(0)
    x, scale, shift = torch.randn(16, 1, 40, 30), torch.rand(1, 1, 40, 1) + 0.5, torch.randn(1, 1, 40, 1)
    change = {}
    for input_norm in (True, False):
        net = models.build({"name": name, "input_norm": input_norm, "dropout": 0.0}, 5)
        change[input_norm] = (net(x * scale + shift) - net(x)).norm() / net(x).norm()
    assert change[True] < 0.2 * change[False]


def test_nets_that_the_feature_does_not_fit_are_refused() -> None:
    """The message names the key."""
    with pytest.raises(ConfigError, match=r"model\.sub_bands=3 does not divide the 40 rows"):
        models.build({"name": "resnet", "sub_bands": 3}, 10)(torch.randn(2, 1, 40, 40))
    with pytest.raises(ConfigError, match="needs a feature of 33 rows or more"):
        models.build({"name": "bcresnet", "sub_bands": 1}, 10)(torch.randn(2, 1, 20, 40))


def test_resnet_depth_multiplies_blocks_and_width_channels() -> None:
    """depth=3 has three blocks in each of the four stages; width=2 doubles the channels."""
    blocks = [m for m in resnet.ResNet(10, 1, 40, depth=3).modules() if isinstance(m, resnet.ResBlock)]
    assert len(blocks) == 12
    assert resnet.ResNet(10, 1, 40, width=2).output.in_features == 64


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
        ({"name": "vgg"}, "model.name=vgg: expected one of bcresnet, pooled, resnet, svm"),
        ({"name": "resnet", "depth": 0}, "model.depth=0"),
        ({"name": "resnet", "width": 0}, "model.width=0"),
        ({"name": "resnet", "dropout": 1.0}, "model.dropout=1.0"),
        ({"name": "resnet", "sub_bands": 0}, "model.sub_bands=0"),
        ({"name": "bcresnet", "tau": 0}, "model.tau=0"),
        ({"name": "bcresnet", "dropout": 1}, "model.dropout=1"),
        ({"name": "bcresnet", "sub_bands": 0}, "model.sub_bands=0"),
        ({"name": "resnet", "classes": 5}, "unknown config key model.classes"),
        ({"name": "resnet", "depth": 1.5}, "model.depth=1.5: expected int"),
    ],
)
def test_build_refuses_wrong_settings(settings: dict, message: str) -> None:
    """The message names the key."""
    with pytest.raises(ConfigError, match=message):
        models.build(settings, classes=10)


@pytest.mark.parametrize(
    ("normalize", "asked", "scaled"),
    [("none", "auto", True), ("standard", "auto", False), ("none", False, False), ("standard", True, True)],
)
def test_input_norm_by_the_feature(normalize: str, asked: object, scaled: bool) -> None:
    """auto scales rows where the clip did not; true and false are taken at their word."""
    settings = {"name": "mfcc", "n_mfcc": 20, "n_mels": 40, "window_ms": 32.0, "hop_ms": 25.6, "normalize": normalize}
    front_end = features.build(settings, 8000)
    net = models.for_feature({"name": "resnet", "input_norm": asked}, front_end, 10)
    assert isinstance(net.scaled, RowNorm) is scaled
    if scaled:
        assert net.scaled.mean.shape == (1, 1, 20, 1)
