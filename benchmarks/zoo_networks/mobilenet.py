"""MobileNet-V1 at width 0.75 (A. G. Howard et al., 2017), as Keras trained it, on 1,300 images of ImageNet."""

from __future__ import annotations

import imagenet
from networks import mobilenet_v1

from zoo_networks.image_classifier import ImageClassifier, checkpoint_module


def mobilenet() -> ImageClassifier:
    """Depthwise convolutions of nine weights a channel, and pointwise ones, each with a batch norm."""
    return ImageClassifier("mobilenet", checkpoint_module("mobilenet"), *imagenet.evaluation(), mobilenet_v1.preprocess)
