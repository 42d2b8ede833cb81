"""Convert a .opq file to a .safetensors checkpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import safetensors.numpy

from opq.atomic_file import refuse_same, write_file
from opq.codec.file_reader import OpqFile
from opq.errors import OutputError

_RESERVED = "__metadata__"
_OTHER_FORMATS = (".pt", ".pth", ".bin", ".ckpt", ".npz", ".opq", ".h5", ".gguf", ".onnx")


@dataclass(frozen=True)
class Expansion:
    """A checkpoint that was written.

    Args:
        tensors: Number of tensors.
        file_bytes: Size of the checkpoint.
    """

    tensors: int
    file_bytes: int


def expand(source: str | os.PathLike[str] | bytes, output: str | os.PathLike[str], *, overwrite: bool = True) -> Expansion:
    """Write every tensor of a .opq file, with its name, shape and dtype, to a .safetensors file.

    Args:
        source: The .opq file, by path or as bytes.
        output: Path of the .safetensors file.
        overwrite: Whether an existing file is replaced.

    Returns:
        The number of tensors and the size of the checkpoint.

    Raises:
        SourceError: The source cannot be read.
        FormatError: The source is not a valid file.
        OutputError: The output cannot be written, is the source, exists and `overwrite` is False, or has the suffix of another
            format; or a tensor has a name that .safetensors reserves.
    """
    if not isinstance(source, bytes):
        refuse_same(source, output)
    _check_suffix(output)
    with OpqFile(source) as file:
        if _RESERVED in file:
            raise OutputError(output, f"a .safetensors file has no place for a tensor named {_RESERVED!r}")
        tensors, metadata = file.arrays(), file.metadata
    data = safetensors.numpy.save(tensors, metadata or None)
    write_file(output, data, overwrite=overwrite)
    return Expansion(len(tensors), len(data))


def _check_suffix(output: str | os.PathLike[str]) -> None:
    """Refuse a name that would tell readers of another format."""
    suffix = Path(output).suffix.lower()
    if suffix in _OTHER_FORMATS:
        raise OutputError(
            output,
            f"it would hold a .safetensors checkpoint, and {suffix} is the suffix of another format; "
            "choose a path that ends in .safetensors",
        )
