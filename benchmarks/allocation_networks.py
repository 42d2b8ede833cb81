"""The networks that `allocation.py` compresses, their images, and their logits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import imagenet
import images
import torch
from harness import checkpoints, load
from networks import mobilenet_v1, resnet_cifar
from networks.makers import MAKERS
from numpy.typing import NDArray
from torch import Tensor, nn

Arrays = dict[str, NDArray[Any]]
CALIBRATION = {"resnet20": 1000, "resnet56": 256, "mobilenet": 128}
"""Number of unlabelled images with which each network is calibrated."""

LABELLED = ("resnet20", "resnet56")
"""Networks whose calibration images also have labels, for methods that train with them."""


@dataclass(frozen=True)
class Network:
    """A dense network and its images.

    Args:
        path: The checkpoint.
        model: The network.
        inputs: Its test images, preprocessed.
        labels: Their labels.
        unlabelled: Calibration images, preprocessed.
        known: Labels of the calibration images, or None.
    """

    path: Path
    model: nn.Module
    inputs: Tensor
    labels: Tensor
    unlabelled: Tensor
    known: Tensor | None

    @property
    def tensors(self) -> Arrays:
        """The checkpoint's tensors."""
        return load(self.path)

    @cached_property
    def logits(self) -> Tensor:
        """Logits of the dense network on its test images."""
        return logits_of(self.model, self.inputs)


@cache
def network_of(name: str) -> Network:
    """The network of this name."""
    path = checkpoints()[name]
    model = fresh(name)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in load(path).items()}, strict=False)
    if name == "mobilenet":
        pixels, labels = imagenet.evaluation()
        preprocess, unlabelled, known = mobilenet_v1.preprocess, imagenet.calibration()[: CALIBRATION[name]], None
    else:
        pixels, labels = images.cifar10("test")
        train, train_labels = images.cifar10("train")
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: CALIBRATION[name]]
        preprocess, unlabelled, known = resnet_cifar.preprocess, train[chosen], train_labels[chosen]
    model = model.eval()
    return Network(path, model, preprocess(pixels), labels, preprocess(unlabelled), known)


def fresh(name: str) -> nn.Module:
    """The untrained module of this network."""
    return MAKERS[name]().to(memory_format=torch.channels_last)


@torch.no_grad()
def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits of `model` on `inputs` in float32, for dense and compressed networks alike."""
    return torch.cat([model(batch.to(memory_format=torch.channels_last)) for batch in inputs.split(100)])
