"""The networks of the benchmarks' checkpoints, by their names in the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from networks import mobilenet_v1, resnet_cifar
from torch import nn

MAKERS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet20": resnet_cifar.resnet20,
    "resnet56": resnet_cifar.resnet56,
    "mobilenet": mobilenet_v1.MobileNetV1,
}
