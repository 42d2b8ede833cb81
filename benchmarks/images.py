"""The images of the benchmarks, decoded once and kept as uint8 arrays in a cache folder.

The cache is the folder that OPQ_CACHE names, by default .cache in the repository, which git ignores.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from harness import ROOT, data_file
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Decoded = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images and their labels."""

CIFAR = "cifar10_jpeg/cifar10_jpeg.tar.gz"


def cache_folder() -> Path:
    """The folder for files that can be regenerated."""
    folder = Path(os.environ.get("OPQ_CACHE") or ROOT / ".cache")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cifar10(part: str) -> tuple[Tensor, Tensor]:
    """CIFAR-10 (JPEG), "train" or "test": uint8 images (n, 32, 32, 3) and int64 labels (n,), by class and file name."""
    return cached(f"cifar10_jpeg_{part}", lambda: _decode_cifar(part))


def cached(name: str, decode: Callable[[], Decoded]) -> tuple[Tensor, Tensor]:
    """The images and labels that `decode` returns, kept in the cache folder under this name."""
    path = cache_folder() / f"{name}.npz"
    if not path.exists():
        images, labels = decode()
        temporary = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(temporary, images=images, labels=labels)
        temporary.replace(path)
    with np.load(path) as arrays:
        return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])


def _decode_cifar(part: str) -> Decoded:
    found: list[tuple[str, str, NDArray[np.uint8]]] = []
    with tarfile.open(data_file(CIFAR)) as archive:
        for member in archive:
            folder, _, name = member.name.rpartition("/")
            if member.isfile() and folder.startswith(f"{part}/"):
                file = archive.extractfile(member)
                data = file.read() if file is not None else b""
                found.append((folder, name, np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))))
    found.sort(key=lambda item: item[:2])
    classes = sorted({folder for folder, _, _ in found})
    labels = np.array([classes.index(folder) for folder, _, _ in found], dtype=np.int64)
    return np.stack([image for _, _, image in found]), labels


class Batches:
    """Shuffled batches of images in memory, padded by four pixels, cropped and mirrored at random.

    An incomplete last batch of an epoch is left out. The attributes `epoch` and `number` are those of the latest batch.

    Args:
        images: uint8 (n, height, width, channels).
        labels: int64 (n,).
        preprocess: uint8 images to the network's input.
        size: Images per batch.
    """

    def __init__(self, images: Tensor, labels: Tensor, preprocess: Callable[[Tensor], Tensor], size: int = 128) -> None:
        self.labels, self.preprocess, self.size = labels, preprocess, size
        self._padded = torch.nn.functional.pad(images, (0, 0, 4, 4, 4, 4))
        self._side = images.shape[1]
        self.epoch = self.number = 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels))[: len(self) * self.size]
        for number, batch in enumerate(order.split(self.size)):
            self.number = number
            yield self.preprocess(self._crop(batch)), self.labels[batch]

    def _crop(self, batch: Tensor) -> Tensor:
        shift = torch.randint(9, (2, len(batch), 1))
        places = torch.arange(self._side)
        rows, columns = shift[0] + places, shift[1] + places
        columns = torch.where(torch.rand(len(batch), 1) < 0.5, columns.flip(1), columns)
        return self._padded[batch[:, None, None], rows[:, :, None], columns[:, None, :]]


class Whole:
    """All images in order, in batches, without augmentation."""

    def __init__(self, images: Tensor, labels: Tensor, preprocess: Callable[[Tensor], Tensor], size: int = 500) -> None:
        self.images, self.labels, self.preprocess, self.size = images, labels, preprocess, size

    def __len__(self) -> int:
        return -(-len(self.labels) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in zip(self.images.split(self.size), self.labels.split(self.size), strict=True):
            yield self.preprocess(images), labels
