"""Images to train and evaluate on: folders of image files, and .npz files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, default_collate

from opq.errors import MissingExtraError, OpqError, SourceError
from opq.zoo.preprocessing import Preprocessing, Transform

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision's ImageFolder."""

TRAINING, TESTING = ("train",), ("val", "test", "validation")


class ImageError(SourceError):
    """An image cannot be read, or not put into a batch with others.

    PyTorch makes such an error of a loader's process anew from one text, the traceback there, whose last line is the message.
    """

    def __init__(self, text: str) -> None:
        last = text.rstrip().rpartition("\n")[2]
        OpqError.__init__(self, last.partition(f"{type(self).__name__}: ")[2] or last)


class Images(Dataset[Any]):
    """Images that a transform has made tensors, each as (input, label), or as the input alone if there are no labels.

    Args:
        items: One for each image: the image, or what `read` takes.
        labels: One for each image, or None.
        transform: From an image to the network's input.
        read: Gives an image for an item; None if the items are the images.
    """

    def __init__(
        self,
        items: Sequence[Any],
        labels: Sequence[int] | None,
        transform: Transform,
        read: Callable[[Any], Any] | None = None,
    ) -> None:
        self.labels = labels
        self._items, self._transform, self._read = items, transform, read

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        item = self._items[index]
        inputs = self._transform(item if self._read is None else self._read(item))
        return inputs if self.labels is None else (inputs, self.labels[index])


def open_images(
    path: str | os.PathLike[str], preprocessing: Preprocessing, *, training: bool, batch: int = 128, workers: int = 0
) -> DataLoader[Any]:
    """A loader of the images under a path.

    Args:
        path: A .npz file with x_train, y_train, x_test and y_test, where images are uint8 (n, height, width) or (n, height,
            width, channels). Or a folder with a folder for each class, read as torchvision's ImageFolder reads it: labels
            are by the order of the names, and images may lie deeper. Or a folder of images without labels. Or a folder with
            such folders "train" and "val", "test" or "validation". Names that begin with a dot are ignored.
        preprocessing: Of the network.
        training: Whether to shuffle, take the images for training and use the transform for training.
        batch: How many images a batch has at most.
        workers: How many processes read images; 0 for none but this one.

    Returns:
        The loader.

    Raises:
        SourceError: There are no images. Later, while images are read: a file is not an image, or sizes differ.
        MissingExtraError: Pillow or torchvision is needed and not installed.
        OpqError: torchvision is needed and does not load.
    """
    path = Path(path)
    transform = preprocessing.training if training else preprocessing.evaluation
    images = _arrays(path, training, transform) if path.suffix == ".npz" else _files(path, training, transform)
    return DataLoader(
        images,
        min(batch, len(images)),
        shuffle=training,
        drop_last=training,
        num_workers=workers,
        collate_fn=partial(_batch, path),
    )


def _batch(path: Path, images: list[Any]) -> Any:
    shapes = {tuple((image[0] if isinstance(image, tuple) else image).shape) for image in images}
    if len(shapes) > 1:
        raise ImageError(
            f"cannot read {path}: images are of different sizes, and the network does not tell its own; give --input-size"
        )
    return default_collate(images)


def _arrays(path: Path, training: bool, transform: Transform) -> Images:
    part = "train" if training else "test"
    try:
        with np.load(path, allow_pickle=False) as content:
            images = content[f"x_{part}"]
            labels = content[f"y_{part}"].reshape(-1).tolist() if f"y_{part}" in content else None
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(path, f"expected a .npz file with x_{part} and y_{part}: {error}") from None
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images) or (labels and len(labels) != len(images)):
        raise SourceError(
            path, f"x_{part}: expected uint8 (n, height, width) or with channels, got {images.dtype} {images.shape}"
        )
    if images.shape[3:] not in ((), (1,), (3,)):
        raise SourceError(path, f"x_{part}: expected 1 or 3 channels behind height and width, got {images.shape}")
    return Images(images, labels, transform)


def _files(folder: Path, training: bool, transform: Transform) -> Images:
    if not folder.is_dir():
        raise SourceError(folder, "no such folder")
    parts = [folder / part for part in (TRAINING if training else TESTING) if (folder / part).is_dir()]
    root = parts[0] if parts else folder
    classes = sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    found = [_listed(source) for source in classes or [root]]
    files = [file for source in found for file in source]
    labels = [label for label, source in enumerate(found) for _ in source]
    if not files:
        raise SourceError(root, f"there are no images ({', '.join(SUFFIXES)}) in it, nor in the folders in it")
    try:
        import PIL.Image  # noqa: F401 - missing here, not in the middle of an epoch
    except ImportError:
        raise MissingExtraError("reading image files", "models") from None
    return Images(files, labels if classes else None, transform, read_image)


def _listed(folder: Path) -> list[Path]:
    """The image files in a folder and in the folders in it, in order."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".") and name.lower().endswith(SUFFIXES)]
    return sorted(found)


def read_image(path: str | os.PathLike[str]) -> Any:
    """An image file as a PIL image in RGB; 16-bit greys are scaled to 8 bits.

    Args:
        path: Of the file.

    Returns:
        The image.

    Raises:
        ImageError: It is not an image, or a damaged or too large one.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):  # 16 bits, which `convert` would clip
                return Image.fromarray(np.clip(np.asarray(image) // 257, 0, 255).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError and others
        raise ImageError(f"cannot read {path}: not an image: {' '.join(str(error).split())}") from None
