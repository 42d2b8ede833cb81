"""Preprocessing of images: the transforms that torchvision and timm publish, and transforms for other networks.

A network of torchvision or timm gets the transforms that its library publishes, so that interpolation, crop and rounding are
those of the published accuracies. Other networks get torchvision's transforms for the size that the user gives. Without a size
images keep their own, and neither torchvision nor Pillow is needed; this suits .npz files.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opq.errors import MissingExtraError, OpqError

Transform = Callable[[Any], Any]
"""Takes a PIL image, or a uint8 array (height, width) or (height, width, channels)."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet, the defaults."""

_SMALL = 64
_SCALE = (0.25, 1.0)


@dataclass(frozen=True)
class Preprocessing:
    """The transforms of a network's images. Each returns a float32 tensor (channels, height, width).

    A transform is made when it is used, so that the library it needs is imported only then.

    Args:
        make: Returns the transform for training if its argument is true, else the transform for evaluation.
        shape: (channels, height, width) of the tensors. None if the shape depends on the image.
    """

    make: Callable[[bool], Transform]
    shape: tuple[int, int, int] | None = None

    @property
    def evaluation(self) -> Transform:
        """The transform for evaluation, which is deterministic."""
        return self.make(False)

    @property
    def training(self) -> Transform:
        """The transform for training, with random crops and flips drawn from PyTorch's and Python's generators."""
        return self.make(True)


@dataclass(frozen=True)
class _Compose:
    """Applies transforms in sequence."""

    steps: tuple[Transform, ...]

    def __call__(self, image: Any) -> Any:
        for step in self.steps:
            image = step(image)
        return image


@dataclass(frozen=True)
class _ToPil:
    """Converts an image to a PIL image of a mode such as "RGB"; None keeps the mode."""

    mode: str | None = None

    def __call__(self, image: Any) -> Any:
        from PIL import Image

        if isinstance(image, np.ndarray):
            image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
        return image if self.mode is None else image.convert(self.mode)


@dataclass(frozen=True)
class _Normalize:
    """Scales an image to 0..1, then subtracts a mean and divides by a standard deviation per channel.

    A single mean applies to all channels. A grey image uses the first one.
    """

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __call__(self, image: Any) -> Tensor:
        pixels = torch.from_numpy(np.array(image))
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        mean, std = (torch.tensor(values[: len(pixels)])[:, None, None] for values in (self.mean, self.std))
        return (pixels.float() / 255.0 - mean) / std


def _shift(image: Any) -> NDArray[np.uint8]:
    """The image shifted by a random distance of at most 1/8 of its size, padded with zeros, and flipped at random."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, [(height // 8,) * 2, (width // 8,) * 2, *((0, 0),) * (pixels.ndim - 2)])
    top, left = (int(torch.randint(2 * (side // 8) + 1, ())) for side in (height, width))
    shifted = padded[top : top + height, left : left + width]
    return shifted[:, ::-1] if torch.rand(()) < 0.5 else shifted


@dataclass(frozen=True)
class _BySize:
    """Applies one transform to PIL images of at most 64 pixels per side, and another one to larger images."""

    small: Transform
    large: Transform

    def __call__(self, image: Any) -> Any:
        return (self.small if max(image.size) <= _SMALL else self.large)(image)


def plain(size: int | None = None, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Preprocessing:
    """Make the preprocessing of a network that is neither torchvision's nor timm's.

    Args:
        size: Height and width of the tensors. Evaluation resizes the shorter side of an image to it and crops the centre.
            Training resizes a random crop of at least a quarter of the area; images of at most 64 pixels per side are shifted
            instead. None: images keep their size, and training shifts them.
        mean: One value per channel, or one for all channels.
        std: Likewise.

    Returns:
        The preprocessing. With a size, using its transforms raises the errors of `load_library`.
    """
    return Preprocessing(partial(_plain, size, mean, std), None if size is None else (len(mean), size, size))


def _plain(size: int | None, mean: tuple[float, ...], std: tuple[float, ...], training: bool) -> Transform:
    normalize = _Normalize(mean, std)
    if size is None:
        return _Compose((_shift, normalize)) if training else normalize
    transforms = load_library("torchvision.transforms.v2", "resizing images")
    if training:
        return _Compose((_ToPil(), _random_crop(transforms, size, transforms.InterpolationMode.BILINEAR), normalize))
    return _Compose((_ToPil(), transforms.Resize(size), transforms.CenterCrop(size), normalize))


def _random_crop(transforms: Any, size: int, interpolation: Any) -> Transform:
    """The random transform for training, from PIL images to PIL images of this height and width."""
    cut = transforms.RandomResizedCrop(size, scale=_SCALE, interpolation=interpolation)
    resize = transforms.Resize((size, size), interpolation=interpolation)
    return _BySize(
        small=_Compose((_shift, _ToPil(), resize)),
        large=_Compose((cut, transforms.RandomHorizontalFlip())),
    )


def of_torchvision(
    make: Callable[..., Any],
    size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Preprocessing:
    """Make the preprocessing of a classifier of torchvision.

    Evaluation uses the published transform. Training uses random crops as in `plain`, with the published interpolation.

    Args:
        make: The `transforms` of the published weights.
        size: Replaces the published size. The shorter side of an image is resized to it.
        mean: Replaces the published mean: one value per channel, or one for all channels.
        std: Likewise.

    Returns:
        The preprocessing.
    """
    changed: dict[str, Any] = {} if size is None else {"crop_size": size, "resize_size": size}
    changed |= {key: _per_channel(values, 3) for key, values in (("mean", mean), ("std", std)) if values is not None}
    transform = make(**changed)
    side = transform.crop_size[0]
    return Preprocessing(partial(_of_torchvision, transform), (3, side, side))


def _of_torchvision(transform: Any, training: bool) -> Transform:
    if not training:
        return _Compose((_ToPil("RGB"), transform))
    transforms = load_library("torchvision.transforms.v2", "resizing images")
    crop = _random_crop(transforms, transform.crop_size[0], transform.interpolation)
    return _Compose((_ToPil("RGB"), crop, _Normalize(tuple(transform.mean), tuple(transform.std))))


def of_timm(
    config: dict[str, Any],
    size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Preprocessing:
    """Make the preprocessing of a network of timm, with `timm.data.create_transform`.

    Args:
        config: The result of `timm.data.resolve_model_data_config`.
        size: Replaces the published size. The images are then cropped to a square and no further.
        mean: Replaces the published mean: one value per channel, or one for all channels.
        std: Likewise.

    Returns:
        The preprocessing.
    """
    channels, height, width = config["input_size"]
    if size is not None:
        height = width = size
        config = config | {"input_size": (channels, size, size), "crop_pct": 1.0}
    config = config | {
        key: _per_channel(values, channels) for key, values in (("mean", mean), ("std", std)) if values is not None
    }
    return Preprocessing(partial(_of_timm, config), (channels, height, width))


def _of_timm(config: dict[str, Any], training: bool) -> Transform:
    timm = load_library("timm.data", "preprocessing of timm")
    to_pil = _ToPil("L" if config["input_size"][0] == 1 else "RGB")
    return _Compose((to_pil, timm.create_transform(**config, is_training=training)))


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values


def load_library(name: str, feature: str) -> Any:
    """Import torchvision, timm, or one of their modules.

    Args:
        name: Name of the module.
        feature: What needs it, for the error message.

    Returns:
        The module.

    Raises:
        MissingExtraError: It is not installed.
        OpqError: It cannot be imported, for example because torchvision was built for another build of PyTorch.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise MissingExtraError(feature, "models") from None
    except Exception as error:  # RuntimeError, ImportError or another one, depending on the versions
        raise OpqError(
            f"{name.partition('.')[0]} cannot be imported ({' '.join(str(error).split())[:200]}): most likely torchvision was "
            "built for another build of PyTorch; reinstall torch and torchvision from one index "
            "(https://pytorch.org/get-started)"
        ) from None
