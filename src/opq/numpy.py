"""Save and load .opq files as NumPy arrays, in the manner of safetensors.numpy; needs no PyTorch.

bfloat16 and float8 arrays have ml_dtypes' types.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Unpack

import numpy as np
from numpy.typing import NDArray

from opq.codec.file_reader import OpqFile, TensorReader

if TYPE_CHECKING:
    from opq.compression.compress import CompressedModel
    from opq.config import CompressionOptions
    from opq.rate_distortion.plan import Plan

__all__ = ["load", "load_file", "safe_open", "save", "save_file"]


def save_file(
    tensors: Mapping[str, NDArray[np.generic]],
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    plan: Plan | None = None,
    **options: Unpack[CompressionOptions],
) -> CompressedModel:
    """Compress `tensors` into a file, replacing one that is there.

    tensors   {name: array}, any shapes and dtypes that NumPy or ml_dtypes know
    metadata  {text: text} to keep in the file
    plan      follow this plan; or else give
    options   a target and what is fixed, as for `opq.plan`
    Returns the compressed network, with its plan and sizes. Raises what `opq.compress` raises, and OutputError.
    """
    from opq.compression.compress import compress
    from opq.compression.journal import work_path  # here, because planning loads SciPy and loading a file does not

    compressed = compress(tensors, metadata=metadata, plan=plan, work_file=work_path(filename), **options)
    compressed.save(filename)
    return compressed


def save(
    tensors: Mapping[str, NDArray[np.generic]],
    metadata: Mapping[str, str] | None = None,
    *,
    plan: Plan | None = None,
    **options: Unpack[CompressionOptions],
) -> bytes:
    """The bytes that `save_file` would write."""
    from opq.compression.compress import compress

    return compress(tensors, metadata=metadata, plan=plan, **options).data


def load_file(filename: str | os.PathLike[str], *, max_bytes: int | None = None) -> dict[str, NDArray[np.generic]]:
    """All tensors of a file by name, each in its own dtype and shape.

    max_bytes  most dense bytes it may hold; by default 64 MiB and 4096 times its size, against files made to fill memory
    Raises SourceError when it cannot be read, FormatError when it is not a whole, valid file.
    """
    with OpqFile(filename, max_bytes=max_bytes) as file:
        return file.arrays()


def load(data: bytes, *, max_bytes: int | None = None) -> dict[str, NDArray[np.generic]]:
    """All tensors of a file given as bytes; see `load_file`."""
    with OpqFile(data, max_bytes=max_bytes) as file:
        return file.arrays()


class safe_open(TensorReader[NDArray[np.generic]]):  # noqa: N801 - safetensors' name for it
    """A file whose tensors are read one at a time.

    with safe_open("model.opq") as f:
        for name in f.keys():
            array = f.get_tensor(name)
    """

    def __init__(self, filename: str | os.PathLike[str], *, max_bytes: int | None = None) -> None:
        """Open a file, reading its header alone; raises as `load_file` does."""
        super().__init__(OpqFile(filename, max_bytes=max_bytes), lambda array: array)
