"""Residual networks whose early stages are 2D in space and whose late stages are 3D (DPC)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recipes.models.config import BackboneConfig
from recipes.models.recompute import recomputed

Triple = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Stem:
    """First convolution and pooling; sizes are spatial sides, time is left as it is."""

    channels: int
    kernel: int
    pool: int


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Basic blocks of one width; `time` is the temporal kernel, 1 (2D) or 3 (3D)."""

    blocks: int
    channels: int
    time: int
    stride: Triple


_STEM = Stem(channels=64, kernel=7, pool=3)


def _dpc_stages(first: int, second: int, third: int, fourth: int) -> tuple[Stage, ...]:
    """The four stages of DPC's networks: the last has 256 channels, not 512."""
    return (
        Stage(blocks=first, channels=64, time=1, stride=(1, 1, 1)),
        Stage(blocks=second, channels=128, time=1, stride=(1, 2, 2)),
        Stage(blocks=third, channels=256, time=3, stride=(2, 2, 2)),
        Stage(blocks=fourth, channels=256, time=3, stride=(2, 2, 2)),
    )


# TengdaHan/DPC, backbone/resnet_2d3d.py; the tiny one is what synthetic clips of 32 px need.
ARCHITECTURES: dict[str, tuple[Stem, tuple[Stage, ...]]] = {
    "r2d3d18": (_STEM, _dpc_stages(2, 2, 2, 2)),
    "r2d3d34": (_STEM, _dpc_stages(3, 4, 6, 3)),
    "r2d3d_tiny": (
        Stem(channels=16, kernel=5, pool=2),
        (
            Stage(blocks=1, channels=16, time=1, stride=(1, 1, 1)),
            Stage(blocks=1, channels=32, time=1, stride=(1, 1, 1)),
            Stage(blocks=1, channels=64, time=3, stride=(2, 2, 2)),
            Stage(blocks=1, channels=64, time=3, stride=(2, 1, 1)),
        ),
    ),
}


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut, projected by a 1x1x1 convolution where shapes change."""

    def __init__(
        self, channels_in: int, channels: int, time: int, stride: Triple, final_relu: bool
    ) -> None:
        super().__init__()
        kernel, padding = (time, 3, 3), (time // 2, 1, 1)
        self.conv1 = nn.Conv3d(channels_in, channels, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = nn.Conv3d(channels, channels, kernel, 1, padding, bias=False)
        self.bn2 = nn.BatchNorm3d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.final_relu = final_relu
        self.downsample: nn.Module = nn.Identity()
        if channels_in != channels or stride != (1, 1, 1):
            self.downsample = nn.Sequential(
                nn.Conv3d(channels_in, channels, 1, stride, bias=False),
                nn.BatchNorm3d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, T, H, W) to (B, C, T', H', W')."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.downsample(x)
        return torch.relu(out) if self.final_relu else out


class R2D3D(nn.Module):
    """Stem and residual stages; the very last ReLU is omitted, so features may be negative.

    Convolutions start Kaiming normal (fan-out), norms at 1 and 0, as in the released code. With
    `recompute_activations` training keeps the inputs of the stages only.
    """

    def __init__(self, stem: Stem, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.recompute_activations = False
        side, pool = stem.kernel, stem.pool
        self.conv1 = nn.Conv3d(
            3, stem.channels, (1, side, side), (1, 2, 2), (0, side // 2, side // 2), bias=False
        )
        self.bn1 = nn.BatchNorm3d(stem.channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(
            (1, pool, pool), (1, 2, 2), (0, (pool - 1) // 2, (pool - 1) // 2)
        )
        channels = stem.channels
        self.stages = nn.Sequential()
        for number, stage in enumerate(stages, start=2):
            last = number == len(stages) + 1
            self.stages.add_module(f"res{number}", _stage(channels, stage, last))
            channels = stage.channels
        self.feature_dim = channels
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) to (B, D, t, h, w), before the last ReLU."""
        # Channels last is the layout of the fast kernels, on a CPU as well. Weights stay as is:
        # DeepSpeed sends their bytes.
        x = x.contiguous(memory_format=torch.channels_last_3d)
        features: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        again = self.recompute_activations and torch.is_grad_enabled()
        for stage in self.stages:
            features = recomputed(stage, features) if again else stage(features)
        return features


def _stage(channels_in: int, stage: Stage, last: bool) -> nn.Sequential:
    blocks = []
    for number in range(stage.blocks):
        stride = stage.stride if number == 0 else (1, 1, 1)
        final_relu = not (last and number == stage.blocks - 1)
        blocks.append(BasicBlock(channels_in, stage.channels, stage.time, stride, final_relu))
        channels_in = stage.channels
    return nn.Sequential(*blocks)


def build(config: BackboneConfig) -> R2D3D:
    """The network a config names, with new random weights from torch's generator."""
    stem, stages = ARCHITECTURES[config.name]
    return R2D3D(stem, stages)
