"""Images to train and evaluate on: folders of image files, and .npz files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, default_collate

from opq.errors import MissingExtraError, SourceError, TrainingError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")
TRAINING, TESTING = ("train",), ("val", "test", "validation")
_SMALL = 64


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its images: the centre of them, `size` wide and high, after the shorter side is scaled to `resize`;
    RGB in 0..1, less `mean`, over `std`. Without a size, as large as they are.
    """

    size: int | None = None
    resize: int | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def normalised(self, image: NDArray[np.uint8]) -> Tensor:
        """uint8 (height, width, channels) to float32 (channels, height, width)."""
        channels = image.shape[2]
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255.0
        mean, std = (torch.tensor(values[:channels])[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std


class Images(Dataset[Any]):
    """Images, with labels where they have any; each as (input, label), or as the input alone.

    With `varied`, as training wants it, images of up to 64 pixels are shifted by up to an eighth and mirrored at random, and
    larger ones cut out of a random part of at least a quarter of their area.
    """

    def __init__(
        self,
        read: Callable[[int], NDArray[np.uint8]],
        count: int,
        labels: Sequence[int] | None,
        preprocessing: Preprocessing,
        *,
        varied: bool,
    ) -> None:
        self._read, self._count, self.labels = read, count, labels
        self._preprocessing, self._varied = preprocessing, varied

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        image = self._read(index)
        pixels = self._cut(image)
        return pixels if self.labels is None else (pixels, self.labels[index])

    def _cut(self, image: NDArray[np.uint8]) -> Tensor:
        want = self._preprocessing
        size = want.size or min(image.shape[:2])
        if self._varied:
            image = _shifted(image) if max(image.shape[:2]) <= _SMALL else _random_part(image)
            if torch.rand(()) < 0.5:
                image = image[:, ::-1]
            return _scaled(want.normalised(image), size, size) if want.size else want.normalised(image)
        pixels = want.normalised(image)
        if want.size is None:
            return pixels
        if want.resize is not None and min(image.shape[:2]) != want.resize:
            scale = want.resize / min(image.shape[:2])
            pixels = _scaled(pixels, round(image.shape[0] * scale), round(image.shape[1] * scale))
        if min(pixels.shape[1:]) < size:
            pixels = _scaled(pixels, size, size)
        top, left = (pixels.shape[1] - size) // 2, (pixels.shape[2] - size) // 2
        return pixels[:, top : top + size, left : left + size]


def open_images(
    path: str | os.PathLike[str], preprocessing: Preprocessing, *, training: bool, batch: int = 128, workers: int = 0
) -> DataLoader[Any]:
    """A loader of the images under `path`, shuffled and varied for training.

    path  a .npz file with x_train, y_train, x_test, y_test, images uint8 (n, height, width) or (n, height, width, channels);
          or a folder: of a folder a class, whose labels are their places in order of names; or of images without labels;
          or with such folders "train" and "val" or "test" in it; names that begin with a dot are left out
    Raises SourceError when there are no images, MissingExtraError when image files cannot be read for want of Pillow.
    """
    path = Path(path)
    if path.suffix == ".npz":
        read, count, labels = _arrays(path, training)
    else:
        read, count, labels = _files(path, training)
    images = Images(read, count, labels, preprocessing, varied=training)
    batch = min(batch, count)
    return DataLoader(images, batch, shuffle=training, drop_last=training, num_workers=workers, collate_fn=_together)


def _together(images: list[Any]) -> Any:
    """A batch; what the network takes must be of one size."""
    shapes = {tuple((image[0] if isinstance(image, tuple) else image).shape) for image in images}
    if len(shapes) > 1:
        raise TrainingError("images are of different sizes, and the network does not tell its own; give --input-size")
    return default_collate(images)


def _arrays(path: Path, training: bool) -> tuple[Callable[[int], NDArray[np.uint8]], int, list[int] | None]:
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
    images = images[..., None] if images.ndim == 3 else images
    if images.shape[3] not in (1, 3):
        raise SourceError(path, f"x_{part}: expected 1 or 3 channels behind height and width, got {images.shape}")
    return images.__getitem__, len(images), labels


def _files(folder: Path, training: bool) -> tuple[Callable[[int], NDArray[np.uint8]], int, list[int] | None]:
    if not folder.is_dir():
        raise SourceError(folder, "no such folder")
    parts = [folder / part for part in (TRAINING if training else TESTING) if (folder / part).is_dir()]
    root = parts[0] if parts else folder
    classes = sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    labels: list[int] = []
    files: list[Path] = []
    for label, source in enumerate(classes or [root]):
        found = sorted(file for file in source.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
        files += found
        labels += [label] * len(found)
    if not files:
        raise SourceError(root, f"there are no images ({', '.join(SUFFIXES)}) in it, nor in the folders in it")
    try:
        import PIL.Image  # noqa: F401 - missing here, not in the midst of an epoch
    except ImportError:
        raise MissingExtraError("reading image files", "models") from None
    # No closure: where the processes that read are not forked, it is pickled for them.
    return partial(_read_file, files), len(files), labels if classes else None


def _read_file(files: Sequence[Path], index: int) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        return np.asarray(Image.open(files[index]).convert("RGB"))
    except OSError as error:
        raise SourceError(files[index], f"not an image: {error}") from None


def _shifted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image moved by up to an eighth of its size, zeros coming in."""
    height, width = image.shape[:2]
    reach = height // 8, width // 8
    padded = np.pad(image, ((reach[0],) * 2, (reach[1],) * 2, (0, 0)))
    top, left = (int(torch.randint(2 * margin + 1, ())) for margin in reach)
    return padded[top : top + height, left : left + width]


def _random_part(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A part of a quarter to all of the area, of about the image's shape, anywhere in it."""
    share = float(torch.empty(()).uniform_(0.25, 1.0)) ** 0.5
    height, width = (max(round(side * share), 1) for side in image.shape[:2])
    top, left = (int(torch.randint(side - part + 1, ())) for side, part in zip(image.shape, (height, width), strict=False))
    return image[top : top + height, left : left + width]


def _scaled(pixels: Tensor, height: int, width: int) -> Tensor:
    if tuple(pixels.shape[1:]) == (height, width):
        return pixels
    return functional.interpolate(pixels[None], (height, width), mode="bilinear", align_corners=False, antialias=True)[0]
