"""A .opq file back to a .safetensors checkpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass

import safetensors.numpy

from opq.atomic_file import write_file
from opq.codec.file_reader import OpqFile


@dataclass(frozen=True)
class Expansion:
    """What was written: how many tensors, in how many bytes."""

    tensors: int
    file_bytes: int


def expand(source: str | os.PathLike[str] | bytes, output: str | os.PathLike[str], *, overwrite: bool = True) -> Expansion:
    """Write every tensor of a .opq file, with its name, shape and dtype, to a .safetensors file.

    Args:
        source: The .opq file, by path or as bytes.
        output: Where to write.
        overwrite: Whether a file that is there is replaced.

    Raises:
        SourceError, FormatError: The source cannot be read.
        OutputError: The output cannot be written, or it exists and `overwrite` is False.
    """
    with OpqFile(source) as file:
        tensors, metadata = file.arrays(), file.metadata
    data = safetensors.numpy.save(tensors, metadata or None)
    write_file(output, data, overwrite=overwrite)
    return Expansion(len(tensors), len(data))
