"""MNIST, and distorted copies of its training images, which are made once and kept in the cache folder."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from harness import data_file
from images import cache_folder
from torch import Tensor
from torch.nn import functional

MNIST = "mnist/mnist.npz"
COPIES = 16
ROTATION, SCALING, SHEAR, SHIFT, ELASTIC = math.radians(10.0), 0.1, 0.1, 2.0, 1.0
"""Largest angle, relative change of size, and shear; largest shift and deviation of the elastic displacement in pixels."""


def mnist(part: str) -> tuple[Tensor, Tensor]:
    """MNIST, "train" or "test": uint8 images (n, 1, 28, 28) and int64 labels (n,)."""
    with np.load(data_file(MNIST)) as arrays:
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64))


def distort(images: Tensor) -> Tensor:
    """uint8 images (n, 1, 28, 28), each rotated, scaled, sheared, shifted and elastically distorted at random."""
    count, side = len(images), images.shape[-1]

    def uniform(largest: float) -> Tensor:
        return (2.0 * torch.rand(count) - 1.0) * largest

    angle, shear = uniform(ROTATION), uniform(SHEAR)
    transform = torch.stack(
        [
            torch.stack([angle.cos() * (1.0 + uniform(SCALING)), shear - angle.sin(), uniform(2.0 * SHIFT / side)], dim=1),
            torch.stack([angle.sin(), angle.cos() * (1.0 + uniform(SCALING)), uniform(2.0 * SHIFT / side)], dim=1),
        ],
        dim=1,
    )
    bent = functional.interpolate(torch.randn(count, 2, 5, 5), size=side, mode="bicubic", align_corners=True)
    places = functional.affine_grid(transform, list(images.shape), align_corners=False)
    places = places + bent.permute(0, 2, 3, 1) * (2.0 * ELASTIC / side)
    moved = functional.grid_sample(images.float(), places, mode="bilinear", align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8)


def distorted_copies(images: Tensor, seed: int = 0) -> Tensor:
    """COPIES of the images, each distorted differently: uint8 (COPIES, n, 1, 28, 28), mapped from a file of the cache."""
    path = cache_folder() / f"mnist_distorted_{COPIES}_{seed}.npy"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}.npy")
        _write_copies(temporary, images, seed)
        temporary.replace(path)
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _write_copies(path: Path, images: Tensor, seed: int) -> None:
    copies = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(COPIES, *images.shape))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for copy in copies:
            copy[:] = torch.cat([distort(part) for part in images.split(2000)]).numpy()
    copies.flush()


class Handwriting:
    """Shuffled batches of training images in 0..1 with their labels, without an incomplete last batch.

    Args:
        distorted: Share of each batch that is taken from a distorted copy, a different one in each epoch.
        size: Images per batch.
    """

    def __init__(self, distorted: float, size: int = 128) -> None:
        self.images, self.labels = mnist("train")
        self.size, self._changed = size, round(distorted * size)
        self._copies = distorted_copies(self.images) if self._changed else self.images[None]

    def __len__(self) -> int:
        return len(self.labels) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        copy = self._copies[int(torch.randint(len(self._copies), ()))]
        for batch in torch.randperm(len(self.labels))[: len(self) * self.size].split(self.size):
            changed, same = batch[: self._changed], batch[self._changed :]
            yield torch.cat([copy[changed], self.images[same]]).float() / 255.0, self.labels[batch]


class TestImages:
    """The 10,000 test images in order, in batches."""

    def __init__(self, size: int = 1000) -> None:
        self.images, self.labels = mnist("test")
        self.size = size

    def __len__(self) -> int:
        return -(-len(self.labels) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in zip(self.images.split(self.size), self.labels.split(self.size), strict=True):
            yield images.float() / 255.0, labels
