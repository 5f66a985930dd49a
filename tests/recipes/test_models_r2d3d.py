"""R2D3D backbones against the published layer table: parameters to the unit, and shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recipes.models.config import R2D3D18Config, R2D3D34Config, R2D3DTinyConfig
from recipes.models.r2d3d import BasicBlock, build


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("config", "layers", "total"),
    [
        (R2D3D18Config(), (9_408, 128, 147_968, 525_568, 6_228_480, 7_145_984), 14_057_536),
        (R2D3D34Config(), (9_408, 128, 221_952, 1_116_416, 20_388_352, 10_685_952), 32_422_208),
    ],
)
def test_every_layer_has_the_published_number_of_parameters(config, layers, total):
    network = build(config)
    modules = (network.conv1, network.bn1, *network.stages)
    assert tuple(parameters(module) for module in modules) == layers
    assert parameters(network) == total


@pytest.mark.parametrize(
    ("config", "clip", "features"),
    [
        (R2D3D18Config(), (5, 128, 128), (256, 2, 4, 4)),
        (R2D3D34Config(), (5, 224, 224), (256, 2, 7, 7)),
        (R2D3DTinyConfig(), (5, 32, 32), (64, 2, 4, 4)),
        (R2D3DTinyConfig(), (1, 16, 16), (64, 1, 2, 2)),
    ],
)
def test_a_clip_becomes_the_documented_grid_of_features(config, clip, features):
    with torch.device("meta"):
        network = build(config)
        output = network(torch.empty(1, 3, *clip))
    assert output.shape == (1, *features)
    assert network.feature_dim == features[0]


def test_each_stage_of_the_18_layer_network_has_the_documented_output():
    with torch.device("meta"):
        network = build(R2D3D18Config())
        x = network.maxpool(network.conv1(torch.empty(1, 3, 5, 128, 128)))
        shapes = [tuple(x.shape[1:])]
        for stage in network.stages:
            x = stage(x)
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [
        (64, 5, 32, 32),
        (64, 5, 32, 32),
        (128, 5, 16, 16),
        (256, 3, 8, 8),
        (256, 2, 4, 4),
    ]


def test_only_the_late_stages_look_along_time():
    for block in build(R2D3D18Config()).modules():
        if isinstance(block, BasicBlock):
            kernels = {block.conv1.kernel_size, block.conv2.kernel_size}
            assert kernels == ({(3, 3, 3)} if block.conv2.out_channels == 256 else {(1, 3, 3)})


def test_only_the_last_block_leaves_out_its_relu():
    for config in (R2D3D18Config(), R2D3DTinyConfig()):
        blocks = [m for m in build(config).modules() if isinstance(m, BasicBlock)]
        assert [block.final_relu for block in blocks] == [True] * (len(blocks) - 1) + [False]


def test_features_may_be_negative():
    torch.manual_seed(0)
    features = build(R2D3DTinyConfig())(torch.randn(2, 3, 5, 32, 32))
    assert 0.1 < (features < 0).float().mean() < 0.9


def test_convolutions_start_kaiming_normal_over_their_outputs():
    torch.manual_seed(0)
    weight = build(R2D3D18Config()).stages[2][0].conv2.weight
    fan_out = weight.shape[0] * weight[0, 0].numel()
    assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)
