"""The CIFAR ResNets of the benchmarks' checkpoints (K. He et al., 2015, section 4.2), with option-A shortcuts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation by which images as RGB / 255 are normalized."""


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which drops pixels and pads channels with zeros if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Both added, then ReLU."""
        y = functional.relu(self.bn1(self.conv1(x)))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.padding:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(self.bn2(self.conv2(y)) + shortcut)


class ResNet(nn.Module):
    """`blocks` blocks in each of three stages of 16, 32 and 64 channels: images (n, 3, 32, 32) to (n, 10) logits."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks)
        self.layer2 = _stage(16, 32, 2, blocks)
        self.layer3 = _stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of preprocessed images."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        return cast(Tensor, self.linear(y.mean(dim=(2, 3))))


def resnet20() -> ResNet:
    """269,722 parameters."""
    return ResNet(3)


def resnet56() -> ResNet:
    """853,018 parameters."""
    return ResNet(9)


def preprocess(images: Tensor) -> Tensor:
    """Images (n, height, width, 3) uint8 to the network's input (n, 3, height, width) float32."""
    return (images.permute(0, 3, 1, 2).float() / 255.0 - _channels(MEAN)) / _channels(DEVIATION)


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def _channels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values)[:, None, None]
