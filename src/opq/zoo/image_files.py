"""Image files, read with Pillow."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from opq.errors import OpqError, SourceError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Suffixes of image files, those of torchvision's ImageFolder."""


class ImageError(SourceError):
    """An image cannot be read, or has another size than the others of its batch.

    If a worker process of a loader raises it, PyTorch makes a new one from one text: the traceback, which ends in the message.
    """

    def __init__(self, text: str) -> None:
        last = text.rstrip().rpartition("\n")[2]
        OpqError.__init__(self, last.partition(f"{type(self).__name__}: ")[2] or last)


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
