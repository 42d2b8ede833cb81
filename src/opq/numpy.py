"""Save and load .opq files as NumPy arrays, in the manner of safetensors.numpy; needs no PyTorch.

bfloat16 and float8 arrays have ml_dtypes' types.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from opq.checkpoints.opq_state import open_file
from opq.codec.file_reader import OpqFile
from opq.codec.tensor_reader import TensorReader, check_framework

if TYPE_CHECKING:
    from opq.compression.compressed_model import CompressedModel
    from opq.config import CompressionConfig, CompressionOptions
    from opq.rate_distortion.plan import Plan

__all__ = ["load", "load_file", "safe_open", "save", "save_file"]


def save_file(
    tensors: Mapping[str, NDArray[np.generic]],
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    config: CompressionConfig | Plan | None = None,
    **options: Unpack[CompressionOptions],
) -> CompressedModel:
    """Compress tensors into a file.

    Args:
        tensors: {name: array}, of any shape and any dtype of NumPy or ml_dtypes.
        filename: Path of the .opq file. An existing file is replaced.
        metadata: {text: text} to keep in the file.
        config: A CompressionConfig or a Plan. None: the config is made from `options`.
        options: The fields of a config as keywords.

    Returns:
        The compressed network, with its plan and sizes.

    Raises:
        OutputError: The file cannot be written.
        OpqError: See `opq.compress`.
    """
    from opq.compression.compress import compress  # imported here, because planning imports SciPy and loading a file must not

    compressed = compress(tensors, config, metadata=metadata, **options)
    compressed.save(filename)
    return compressed


def save(
    tensors: Mapping[str, NDArray[np.generic]],
    metadata: Mapping[str, str] | None = None,
    *,
    config: CompressionConfig | Plan | None = None,
    **options: Unpack[CompressionOptions],
) -> bytes:
    """The bytes that `save_file` would write."""
    from opq.compression.compress import compress

    return compress(tensors, config, metadata=metadata, **options).data


def load_file(
    filename: str | os.PathLike[str],
    *,
    base: Any = None,
    max_bytes: int | None = None,
    out: Mapping[str, NDArray[np.generic]] | None = None,
) -> dict[str, NDArray[np.generic]]:
    """All tensors of a file by name, each in its own dtype and shape.

    Args:
        filename: The .opq file.
        base: Of a delta, what it was made from, as in `opq.compress`.
        max_bytes: Largest allowed number of dense bytes, as a limit for untrusted files. Default: 64 MiB plus 4096 times the
            size of the file.
        out: {name: array} to decode to, of all tensors or some: C-contiguous and writable, of the tensor's dtype and shape,
            no two sharing memory. The other tensors get new arrays. After an error the content is undefined.

    Returns:
        {name: array}; those in `out` are the arrays that were given.

    Raises:
        SourceError: The file cannot be read, or the base is another one than that of the delta.
        FormatError: It is not a complete, valid file.
        ValueError: An array in `out` has another dtype or shape, or a name that the file lacks.
    """
    with open_file(filename, base, max_bytes=max_bytes) as file:
        return file.arrays(out=out)


def load(
    data: bytes, *, max_bytes: int | None = None, out: Mapping[str, NDArray[np.generic]] | None = None
) -> dict[str, NDArray[np.generic]]:
    """All tensors of a file given as bytes; see `load_file`."""
    with OpqFile(data, max_bytes=max_bytes) as file:
        return file.arrays(out=out)


class safe_open(TensorReader[NDArray[np.generic]]):  # noqa: N801 - safetensors' name for it
    """A file whose tensors are read one at a time.

    with safe_open("model.opq", framework="numpy") as f:
        for name in f.keys():
            array = f.get_tensor(name)
            first_rows = f.get_slice(name)[:10]

    Args:
        filename: The .opq file; only its header is read now.
        framework: "numpy" or "np".
        device: "cpu"; for compatibility with safetensors.
        max_bytes: As in `load_file`.

    Raises:
        SourceError, FormatError: As in `load_file`.
        ValueError: The framework or the device is not one of these.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        framework: str = "numpy",
        device: Any = "cpu",
        *,
        max_bytes: int | None = None,
    ) -> None:
        check_framework("opq.numpy.safe_open", framework, ("numpy", "np"))
        if str(device) != "cpu":
            raise ValueError(f"device must be 'cpu' for NumPy, got {device!r}")
        super().__init__(OpqFile(filename, max_bytes=max_bytes), lambda array: array)
