"""MobileNet-V1 at width 0.75 (A. G. Howard et al., 2017), as Keras trained the benchmarks' checkpoint."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

WIDTH = 0.75
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""Channels at width 1.0, and stride, of each block."""


class MobileNetV1(nn.Module):
    """Images (n, 3, 224, 224) to (n, 1000) logits; 2,585,560 parameters."""

    def __init__(self) -> None:
        super().__init__()
        channels = int(32 * WIDTH)
        self.conv1 = nn.Conv2d(3, channels, 3, 2, bias=False)
        self.conv1_bn = nn.BatchNorm2d(channels, eps=1e-3)
        for number, (size, stride) in enumerate(BLOCKS, 1):
            outputs = int(size * WIDTH)
            self.add_module(f"conv_dw_{number}", nn.Conv2d(channels, channels, 3, stride, groups=channels, bias=False))
            self.add_module(f"conv_dw_{number}_bn", nn.BatchNorm2d(channels, eps=1e-3))
            self.add_module(f"conv_pw_{number}", nn.Conv2d(channels, outputs, 1, bias=False))
            self.add_module(f"conv_pw_{number}_bn", nn.BatchNorm2d(outputs, eps=1e-3))
            channels = outputs
        self.conv_preds = nn.Conv2d(channels, 1000, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of preprocessed images."""
        for name in ("conv1", *(f"conv_{kind}_{number}" for number in range(1, len(BLOCKS) + 1) for kind in ("dw", "pw"))):
            convolution = self.get_submodule(name)
            x = functional.relu6(self.get_submodule(f"{name}_bn")(convolution(_pad(x, convolution))))
        logits: Tensor = self.conv_preds(x.mean(dim=(2, 3), keepdim=True))
        return logits.flatten(1)


def preprocess(images: Tensor) -> Tensor:
    """Images (n, height, width, 3) uint8 to the network's input (n, 3, 224, 224) float32: the centre, RGB / 127.5 - 1."""
    top, left = (images.shape[1] - 224) // 2, (images.shape[2] - 224) // 2
    return images[:, top : top + 224, left : left + 224].permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _pad(x: Tensor, convolution: nn.Module) -> Tensor:
    """TensorFlow's "same" padding of a 3x3 convolution: one pixel around at stride 1, one right and below at stride 2."""
    if convolution.kernel_size == (1, 1):
        return x
    return functional.pad(x, (0, 1, 0, 1) if convolution.stride == (2, 2) and x.shape[-1] % 2 == 0 else (1, 1, 1, 1))
