"""The ImageNet images of the benchmarks as cached uint8 arrays: 1,300 to evaluate on, and one of each class without labels."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import torch
from harness import data_file
from images import Decoded, cached
from PIL import Image
from torch import Tensor

EVALUATION, UNLABELLED = "imagenet/val1300.tar", "imagenet/train1000_256.tar"


def evaluation() -> tuple[Tensor, Tensor]:
    """uint8 images (1300, 227, 227, 3) and int64 labels."""
    return cached("imagenet_val1300", lambda: _decode(EVALUATION))


def unlabelled() -> Tensor:
    """uint8 images (1000, 256, 256, 3), one of each class, in order of the files' names."""
    return cached("imagenet_train1000", lambda: _decode(UNLABELLED))[0]


def calibration() -> Tensor:
    """The same images in random order."""
    images = unlabelled()
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]


def _decode(relative: str) -> Decoded:
    with tarfile.open(data_file(relative)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        contents = {name: file.read() for name, file in files.items() if file is not None}
    listed = [name for name in contents if name.endswith("/dataset.txt")]
    if listed:
        root = listed[0].rpartition("/")[0]
        lines = [line.split(",") for line in contents[listed[0]].decode().splitlines() if line.strip()]
        chosen = [(f"{root}/{name.strip().removeprefix('./')}", int(label)) for name, label in lines]
    else:
        chosen = [(name, label) for label, name in enumerate(sorted(name for name in contents if name.endswith(".JPEG")))]
    images = np.stack([np.asarray(Image.open(io.BytesIO(contents[name])).convert("RGB")) for name, _ in chosen])
    return images, np.array([label for _, label in chosen], dtype=np.int64)
