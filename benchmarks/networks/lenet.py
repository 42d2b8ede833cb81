"""The two classic networks of the compression literature, on 28x28 images of one channel."""

from __future__ import annotations

from torch import nn


def lenet_300_100() -> nn.Module:
    """Y. LeCun et al., 1998, section III.C.4: hidden layers of 300 and 100 units; 266,610 parameters."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def lenet_5() -> nn.Module:
    """LeNet-5 as in Caffe, whose convolutions have no nonlinearity except the pooling; 431,080 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )
