"""What is done with an image before a network gets it: torchvision's and timm's own transforms, and those for other networks.

A network of torchvision or timm gets the transforms that its library publishes with it: interpolation, crop and rounding are
then those of the published accuracies. Any other network gets torchvision's transforms for the size that the user gives.
Without a size, images keep theirs, and neither torchvision nor Pillow is needed: this is the way of .npz files.
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
"""A function of a PIL image, or of a uint8 array (height, width) or (height, width, channels)."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, for a network that has none of its own."""

_SMALL = 64
_SCALE = (0.25, 1.0)


@dataclass(frozen=True)
class Preprocessing:
    """The transforms of a network's images, each to a float32 tensor (channels, height, width).

    A transform is made when it is asked for, so that a library it needs is not imported before.

    Args:
        make: Gives the transform for training, if its argument is true, else that for evaluation.
        shape: Channels, height and width of what the transforms give; None if they depend on the image.
    """

    make: Callable[[bool], Transform]
    shape: tuple[int, int, int] | None = None

    @property
    def evaluation(self) -> Transform:
        """Without chance: the same image gives the same tensor."""
        return self.make(False)

    @property
    def training(self) -> Transform:
        """With random crops and flips, which follow PyTorch's and Python's seeds."""
        return self.make(True)


@dataclass(frozen=True)
class _Chain:
    """Transforms, one after the other."""

    steps: tuple[Transform, ...]

    def __call__(self, image: Any) -> Any:
        for step in self.steps:
            image = step(image)
        return image


@dataclass(frozen=True)
class _Picture:
    """Makes an image a PIL image, and converts it to a mode such as "RGB"; None leaves grey images grey."""

    mode: str | None = None

    def __call__(self, image: Any) -> Any:
        from PIL import Image

        if isinstance(image, np.ndarray):
            image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
        return image if self.mode is None else image.convert(self.mode)


@dataclass(frozen=True)
class _Normalize:
    """Scales an image to 0..1, subtracts a mean for each channel and divides by a standard deviation.

    A grey image takes the first mean; a single mean is for all channels.
    """

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __call__(self, image: Any) -> Tensor:
        pixels = torch.from_numpy(np.array(image))
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        mean, std = (torch.tensor(values[: len(pixels)])[:, None, None] for values in (self.mean, self.std))
        return (pixels.float() / 255.0 - mean) / std


def _shift(image: Any) -> NDArray[np.uint8]:
    """The image moved at random by up to an eighth of its size, with zeros at the borders, and mirrored at random."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, [(height // 8,) * 2, (width // 8,) * 2, *((0, 0),) * (pixels.ndim - 2)])
    top, left = (int(torch.randint(2 * (side // 8) + 1, ())) for side in (height, width))
    moved = padded[top : top + height, left : left + width]
    return moved[:, ::-1] if torch.rand(()) < 0.5 else moved


@dataclass(frozen=True)
class _Vary:
    """One transform for PIL images of up to 64 pixels, and another for larger ones."""

    small: Transform
    large: Transform

    def __call__(self, image: Any) -> Any:
        return (self.small if max(image.size) <= _SMALL else self.large)(image)


def plain(size: int | None = None, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Preprocessing:
    """For a network of the user's own.

    Args:
        size: Height and width. For evaluation the shorter side of an image is resized to it and the centre cut out, for
            training a random part of at least a quarter of the area is resized to it; images of up to 64 pixels are shifted
            instead. None leaves images as large as they are, and shifts all of them for training.
        mean: One for each channel, or one for all.
        std: As for the mean.

    Returns:
        The preprocessing, whose transforms raise as `load_library` does where there is a size.
    """
    return Preprocessing(partial(_plain, size, mean, std), None if size is None else (len(mean), size, size))


def _plain(size: int | None, mean: tuple[float, ...], std: tuple[float, ...], training: bool) -> Transform:
    normalize = _Normalize(mean, std)
    if size is None:
        return _Chain((_shift, normalize)) if training else normalize
    transforms = load_library("torchvision.transforms.v2", "resizing images")
    if training:
        return _Chain((_Picture(), _vary(transforms, size, transforms.InterpolationMode.BILINEAR), normalize))
    return _Chain((_Picture(), transforms.Resize(size), transforms.CenterCrop(size), normalize))


def _vary(transforms: Any, size: int, interpolation: Any) -> Transform:
    """From PIL images to those for training, of this height and width."""
    cut = transforms.RandomResizedCrop(size, scale=_SCALE, interpolation=interpolation)
    resize = transforms.Resize((size, size), interpolation=interpolation)
    return _Vary(
        small=_Chain((_shift, _Picture(), resize)),
        large=_Chain((cut, transforms.RandomHorizontalFlip())),
    )


def of_torchvision(
    make: Callable[..., Any],
    size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Preprocessing:
    """For a classifier of torchvision: for evaluation its own transform, for training `plain`'s with its interpolation.

    Args:
        make: The `transforms` of its published weights.
        size: In place of its own; the shorter side is then resized to it.
        mean: In place of its own, one for each channel, or one for all.
        std: As for the mean.

    Returns:
        The preprocessing.
    """
    changed: dict[str, Any] = {} if size is None else {"crop_size": size, "resize_size": size}
    changed |= {key: _each(values, 3) for key, values in (("mean", mean), ("std", std)) if values is not None}
    transform = make(**changed)
    side = transform.crop_size[0]
    return Preprocessing(partial(_of_torchvision, transform), (3, side, side))


def _of_torchvision(transform: Any, training: bool) -> Transform:
    if not training:
        return _Chain((_Picture("RGB"), transform))
    transforms = load_library("torchvision.transforms.v2", "resizing images")
    vary = _vary(transforms, transform.crop_size[0], transform.interpolation)
    return _Chain((_Picture("RGB"), vary, _Normalize(tuple(transform.mean), tuple(transform.std))))


def of_timm(
    config: dict[str, Any],
    size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Preprocessing:
    """For a network of timm: what `timm.data.create_transform` makes of its configuration.

    Args:
        config: What `timm.data.resolve_model_data_config` gives.
        size: In place of its own; the images are then not cropped further than to a square.
        mean: In place of its own, one for each channel, or one for all.
        std: As for the mean.

    Returns:
        The preprocessing.
    """
    channels, height, width = config["input_size"]
    if size is not None:
        height = width = size
        config = config | {"input_size": (channels, size, size), "crop_pct": 1.0}
    config = config | {key: _each(values, channels) for key, values in (("mean", mean), ("std", std)) if values is not None}
    return Preprocessing(partial(_of_timm, config), (channels, height, width))


def _of_timm(config: dict[str, Any], training: bool) -> Transform:
    timm = load_library("timm.data", "timm's preprocessing")
    picture = _Picture("L" if config["input_size"][0] == 1 else "RGB")
    return _Chain((picture, timm.create_transform(**config, is_training=training)))


def _each(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values


def load_library(name: str, what: str) -> Any:
    """Import torchvision or timm, or a module of theirs.

    Args:
        name: Of the module.
        what: What it is for, as the error says it.

    Returns:
        The module.

    Raises:
        MissingExtraError: It is not installed.
        OpqError: It does not load, as torchvision where it was built for another build of PyTorch.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise MissingExtraError(what, "models") from None
    except Exception as error:  # a RuntimeError of PyTorch's, an ImportError, or another, by their versions
        raise OpqError(
            f"{name.partition('.')[0]} does not load ({' '.join(str(error).split())[:200]}): most likely torchvision was built "
            "for another build of PyTorch; install torch and torchvision anew from one index (https://pytorch.org/get-started)"
        ) from None
