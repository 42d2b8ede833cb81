"""Loaders of images for training and evaluation, from folders of image files and from .npz files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from opq.errors import MissingExtraError, SourceError
from opq.progress import logger
from opq.zoo.image_files import SUFFIXES, ImageError, read_image
from opq.zoo.preprocessing import Preprocessing, Transform

TRAINING, TESTING = ("train",), ("val", "test", "validation")
"""Names of the folders with training and test images; the first that exists is used."""


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

    def digest(self) -> str:
        """SHA-256 of labels and images; image files count by their names below their common folder and their sizes."""
        digest = hashlib.sha256(repr(self.labels).encode())
        if isinstance(self._items, np.ndarray):
            digest.update(repr(self._items.shape).encode() + np.ascontiguousarray(self._items).tobytes())
            return digest.hexdigest()
        root = os.path.commonpath(self._items)
        for path in self._items:
            digest.update(f"{os.path.relpath(path, root)} {os.path.getsize(path)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def open_images(
    path: str | os.PathLike[str],
    preprocessing: Preprocessing,
    *,
    training: bool,
    augment: bool = True,
    batch: int = 128,
    workers: int = 0,
) -> DataLoader[Any]:
    """Make a loader of the images under a path.

    Args:
        path: One of these; names that begin with a dot are ignored:

            * A .npz file with the arrays x_train, y_train, x_test and y_test. Images are uint8, (n, height, width) or
              (n, height, width, channels).
            * A folder with one folder per class, read as by torchvision's ImageFolder: classes are numbered in order of their
              names, and images may lie in deeper folders.
            * A folder of images without labels.
            * A folder with a folder "train" and a folder "val", "test" or "validation", each as above. The classes are those of
              "train", of which the test images may lack some.
        preprocessing: The network's preprocessing.
        training: True for the training images, shuffled; False for the test images.
        augment: Whether training images are cropped, or shifted, and flipped at random. Test images never are.
        batch: Images per batch.
        workers: Number of processes that read images. 0: the calling process reads them.

    Returns:
        The loader.

    Raises:
        SourceError: There are no images, or the test images have another class than the training images. Iterating raises it
            too, if a file is not an image or the sizes of images differ.
        MissingExtraError: Pillow or torchvision is needed and not installed.
        OpqError: torchvision is needed and cannot be imported.
    """
    path = Path(path)
    transform = preprocessing.training if training and augment else preprocessing.evaluation
    images = _open(path, training, transform)
    return DataLoader(
        images,
        min(batch, len(images)),
        shuffle=training,
        drop_last=training,
        num_workers=workers,
        collate_fn=partial(_collate, path),
    )


def validation_images(
    path: str | os.PathLike[str], preprocessing: Preprocessing, count: int, *, batch: int = 128, workers: int = 0
) -> DataLoader[Any]:
    """Make a loader of the images on which a training is measured: test images, as for evaluation.

    They are training images if there are no test images, or if only training images have labels. If there are more than
    `count`, a random subset is taken, the same in every run.

    Args:
        path: As for `open_images`.
        preprocessing: The network's preprocessing.
        count: Largest number of images, >= 1.
        batch: Images per batch.
        workers: Number of processes that read images.

    Returns:
        The loader.

    Raises:
        SourceError, MissingExtraError, OpqError: As `open_images`.
    """
    path = Path(path)
    images = _open(path, not _has(path, TESTING, "x_test"), preprocessing.evaluation)
    if images.labels is None:
        images = _open(path, True, preprocessing.evaluation)
    picked = Subset(images, sorted(_sample(images, count)))
    return DataLoader(picked, min(batch, len(picked)), num_workers=workers, collate_fn=partial(_collate, path))


def sample_images(path: str | os.PathLike[str], preprocessing: Preprocessing, count: int) -> Tensor:
    """Read a random subset of images, without their labels and as for evaluation; it is the same in every run.

    Args:
        path: As for `open_images`. The images are training images if there are any, so that test images stay unseen.
        preprocessing: The network's preprocessing.
        count: Largest number of images, >= 1.

    Returns:
        float32 (n, channels, height, width).

    Raises:
        SourceError: There are no images, a file is not an image, or the sizes of images differ.
        MissingExtraError, OpqError: As `open_images`.
    """
    path = Path(path)
    images = _open(path, _has(path, TRAINING, "x_train"), preprocessing.evaluation)
    batch = _collate(path, [images[place] for place in _sample(images, count)])
    inputs: Tensor = batch if images.labels is None else batch[0]
    return inputs


def _open(path: Path, training: bool, transform: Transform) -> Images:
    return _from_npz(path, training, transform) if path.suffix == ".npz" else _from_folder(path, training, transform)


def _has(path: Path, folders: Sequence[str], array: str) -> bool:
    """Whether a path has one of these folders, or this array; a flat folder has all its images in both parts."""
    if path.suffix != ".npz":
        return any((path / part).is_dir() for part in folders)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            return array in content
    except Exception:  # _from_npz raises the error
        return False


def _sample(images: Images, count: int) -> list[int]:
    """Places of up to `count` random images, the same in every run."""
    places: list[int] = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count].tolist()
    return places


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
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            if f"x_{part}" not in content:
                found = ", ".join(content) or "none"
                raise SourceError(path, f"it must have the arrays x_{part} (uint8 images) and y_{part} (labels), got {found}")
            images = content[f"x_{part}"]
            labels = content[f"y_{part}"].reshape(-1).tolist() if f"y_{part}" in content else None
    except SourceError:
        raise
    except Exception as error:  # the readers of NumPy, zipfile and zlib raise errors of many kinds
        raise SourceError(
            path, f"it must be a .npz file with the arrays x_{part} and y_{part}: {' '.join(str(error).split())}"
        ) from None
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
    root = _part(folder, TRAINING if training else TESTING)
    own = _folders(root)
    numbers = {name: number for number, name in enumerate(_training_classes(folder, root) or own)}
    if unknown := [name for name in own if name not in numbers]:
        raise SourceError(root, f"its class {unknown[0]!r} is not a class of {folder / TRAINING[0]}")
    paths = _files(root)
    files = [path for path in paths if path.name.lower().endswith(SUFFIXES) and not (own and path.parent == root)]
    if not files:
        raise SourceError(root, f"it holds no images ({', '.join(SUFFIXES)})")
    if others := sorted(set(paths).difference(files)):
        logger.warning(
            "%s: left out %d files that have no suffix of an image, or lie beside the folders of classes, such as %s",
            root,
            len(others),
            others[0].name,
        )
    labels = [numbers[path.relative_to(root).parts[0]] for path in files] if own else None
    try:
        import PIL.Image  # noqa: F401 - an error now, not in the middle of an epoch
    except ImportError:
        raise MissingExtraError("reading image files", "models") from None
    return Images(files, labels, transform, read_image)


def _part(folder: Path, wanted: Sequence[str]) -> Path:
    """The folder of the training or the test images; `folder` itself if it is not divided so."""
    here = [name for name in (*TRAINING, *TESTING) if (folder / name).is_dir()]
    for name in wanted:
        if name in here:
            return folder / name
    if here:
        raise SourceError(
            folder, f"it has a folder {here[0]!r}, but no folder {' or '.join(map(repr, wanted))}; give the path of the images"
        )
    return folder


def _training_classes(folder: Path, root: Path) -> list[str]:
    """Names of the classes of the training images: test images may lack some, which must not change the numbers of others."""
    return [name for part in TRAINING if root != folder and (folder / part).is_dir() for name in _folders(folder / part)]


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, in ascending order."""
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    """All files under a folder, in ascending order."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(found)
