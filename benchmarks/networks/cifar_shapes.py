"""The paper's four networks, adapted to 32x32 images of ten classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
MOBILENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""Channels and stride of each block; the first convolution keeps the size."""

VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")


def alexnet() -> nn.Module:
    """A. Krizhevsky et al., 2012: five convolutions with their channels, 3x3 at stride 1 for 11x11 at 4; 35.9 M parameters."""
    return nn.Sequential(
        *_convolution(3, 64, 3),
        nn.MaxPool2d(2),
        *_convolution(64, 192, 5),
        nn.MaxPool2d(2),
        *_convolution(192, 384, 3),
        *_convolution(384, 256, 3),
        *_convolution(256, 256, 3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        *_classifier(256 * 4 * 4),
    )


def vgg16() -> nn.Module:
    """K. Simonyan, A. Zisserman, 2014, configuration D with batch-norms; one place is left before the classifier; 33.6 M."""
    layers: list[nn.Module] = []
    channels = 3
    for step in VGG16:
        if isinstance(step, int):
            layers += _convolution(channels, step, 3)
            channels = step
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), *_classifier(512))


def mobilenet_v1() -> nn.Module:
    """A. G. Howard et al., 2017, width 1.0; 3.2 M parameters."""
    layers, channels = _convolution(3, 32, 3), 32
    for outputs, stride in MOBILENET:
        layers += _convolution(channels, channels, 3, stride, groups=channels)
        layers += _convolution(channels, outputs, 1)
        channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def resnet50() -> nn.Module:
    """K. He et al., 2015, bottlenecks in stages of 3, 4, 6 and 3; the first convolution is 3x3, without pooling; 23.5 M."""
    layers, channels = _convolution(3, 64, 3), 64
    for width, blocks, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(blocks):
            layers.append(Bottleneck(channels, width, first if number == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions to 4 * `width` channels, beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.residual = nn.Sequential(
            *_convolution(inputs, width, 1), *_convolution(width, width, 3, stride), *_convolution(width, outputs, 1)[:-1]
        )
        changes = stride > 1 or inputs != outputs
        self.shortcut = nn.Sequential(*_convolution(inputs, outputs, 1, stride)[:-1]) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Both added, then ReLU."""
        return functional.relu(self.residual(x) + self.shortcut(x))


MAKERS: Mapping[str, Callable[[], nn.Module]] = {
    "alexnet": alexnet,
    "vgg16": vgg16,
    "mobilenet-v1": mobilenet_v1,
    "resnet50": resnet50,
}


def _convolution(inputs: int, outputs: int, side: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def _classifier(inputs: int) -> list[nn.Module]:
    hidden = [nn.Linear(inputs, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()]
    return [*hidden, nn.Linear(4096, CLASSES)]
