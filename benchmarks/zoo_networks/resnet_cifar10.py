"""ResNet-20 and ResNet-56 (K. He et al., 2015) on CIFAR-10 (JPEG)."""

from __future__ import annotations

import images
from networks import resnet_cifar

from zoo_networks.image_classifier import ImageClassifier, checkpoint_module

EVERY = 5
"""One of this many test images is used: 2,000, as many of each class."""


def resnet20() -> ImageClassifier:
    """19 convolutions and a linear layer, each convolution with a batch norm."""
    return _network("resnet20")


def resnet56() -> ImageClassifier:
    """55 convolutions and a linear layer, each convolution with a batch norm."""
    return _network("resnet56")


def _network(name: str) -> ImageClassifier:
    pixels, labels = images.cifar10("test")
    return ImageClassifier(name, checkpoint_module(name), pixels[::EVERY], labels[::EVERY], resnet_cifar.preprocess)
