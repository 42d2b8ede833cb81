"""Loaders of images for training and evaluation, from folders of image files and from .npz files."""

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
"""Suffixes of image files, those of torchvision's ImageFolder."""

TRAINING, TESTING = ("train",), ("val", "test", "validation")
"""Names of the folders with training and test images; the first that exists is used."""


class ImageError(SourceError):
    """An image cannot be read, or has another size than the others of its batch.

    If a worker process of a loader raises it, PyTorch makes a new one from one text: the traceback, which ends in the message.
    """

    def __init__(self, text: str) -> None:
        last = text.rstrip().rpartition("\n")[2]
        OpqError.__init__(self, last.partition(f"{type(self).__name__}: ")[2] or last)


class Images(Dataset[Any]):
    """A dataset of transformed images: (input, label), or the input alone if there are no labels.

    Args:
        items: One item per image: the image itself, or an argument of `read`.
        labels: One label per image, or None.
        transform: Maps an image to the network's input.
        read: Reads the image of an item. None if the items are the images.
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
    """Make a loader of the images under a path.

    Args:
        path: One of these; names that begin with a dot are ignored:

            * A .npz file with the arrays x_train, y_train, x_test and y_test. Images are uint8, (n, height, width) or
              (n, height, width, channels).
            * A folder with one folder per class, read as by torchvision's ImageFolder: classes are numbered in order of their
              names, and images may lie in deeper folders.
            * A folder of images without labels.
            * A folder with a folder "train" and a folder "val", "test" or "validation", each as above.
        preprocessing: The network's preprocessing.
        training: True for the training images, shuffled and with random crops; False for the test images.
        batch: Images per batch.
        workers: Number of processes that read images. 0: the calling process reads them.

    Returns:
        The loader.

    Raises:
        SourceError: There are no images. Iterating raises it too, if a file is not an image or the sizes of images differ.
        MissingExtraError: Pillow or torchvision is needed and not installed.
        OpqError: torchvision is needed and cannot be imported.
    """
    path = Path(path)
    transform = preprocessing.training if training else preprocessing.evaluation
    images = _from_npz(path, training, transform) if path.suffix == ".npz" else _from_folder(path, training, transform)
    return DataLoader(
        images,
        min(batch, len(images)),
        shuffle=training,
        drop_last=training,
        num_workers=workers,
        collate_fn=partial(_collate, path),
    )


def _collate(path: Path, images: list[Any]) -> Any:
    shapes = {tuple((image[0] if isinstance(image, tuple) else image).shape) for image in images}
    if len(shapes) > 1:
        raise ImageError(
            f"cannot read {path}: images have different sizes, and the network has no input size of its own; give --input-size"
        )
    return default_collate(images)


def _from_npz(path: Path, training: bool, transform: Transform) -> Images:
    part = "train" if training else "test"
    try:
        with np.load(path, allow_pickle=False) as content:
            images = content[f"x_{part}"]
            labels = content[f"y_{part}"].reshape(-1).tolist() if f"y_{part}" in content else None
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(path, f"it must be a .npz file with the arrays x_{part} and y_{part}: {error}") from None
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images) or (labels and len(labels) != len(images)):
        raise SourceError(
            path,
            f"x_{part} must be uint8 of shape (n, height, width) or (n, height, width, channels), and y_{part} as long, got "
            f"{images.dtype} of shape {images.shape}",
        )
    if images.shape[3:] not in ((), (1,), (3,)):
        raise SourceError(path, f"x_{part} must have 1 or 3 channels in its last axis, got shape {images.shape}")
    return Images(images, labels, transform)


def _from_folder(folder: Path, training: bool, transform: Transform) -> Images:
    if not folder.is_dir():
        raise SourceError(folder, "it is not a folder" if os.path.exists(folder) else "there is no such folder")
    parts = [folder / part for part in (TRAINING if training else TESTING) if (folder / part).is_dir()]
    root = parts[0] if parts else folder
    classes = sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    found = [_image_files(source) for source in classes or [root]]
    files = [file for source in found for file in source]
    labels = [label for label, source in enumerate(found) for _ in source]
    if not files:
        raise SourceError(root, f"it holds no images ({', '.join(SUFFIXES)})")
    try:
        import PIL.Image  # noqa: F401 - an error now, not in the middle of an epoch
    except ImportError:
        raise MissingExtraError("reading image files", "models") from None
    return Images(files, labels if classes else None, transform, read_image)


def _image_files(folder: Path) -> list[Path]:
    """All image files under a folder, in ascending order."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".") and name.lower().endswith(SUFFIXES)]
    return sorted(found)


def read_image(path: str | os.PathLike[str]) -> Any:
    """Read an image file in RGB. Grey images of 16 bits are scaled to 8 bits.

    Args:
        path: The image file.

    Returns:
        A PIL image.

    Raises:
        ImageError: The file is not an image, is damaged, or is too large.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):  # 16 bits, which `convert` would clip
                return Image.fromarray(np.clip(np.asarray(image) // 257, 0, 255).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError and others
        raise ImageError(f"cannot read {path}: it is not a valid image: {' '.join(str(error).split())}") from None
