"""FileState: tensors at known places in files, of which only the parts that are used are read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opq import dtypes, packed_floats
from opq.checkpoints.state import State
from opq.errors import SourceError


class Contents(NamedTuple):
    """What differs after a file was replaced or written to: its node, its size in bytes, and the time of the change."""

    node: int
    size: int
    changed: int


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies: little-endian, row-major, without gaps.

    Args:
        path: The file.
        contents: What `contents_of` gave for the open file when its header was read.
        offset: Offset of its first byte.
        dtype: Name of its dtype, as in opq.dtypes; another name is an error as soon as the tensor is used.
        shape: Its shape.
    """

    path: Path
    contents: Contents
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return dtypes.dense_bytes(self.dtype, math.prod(self.shape))


class FileState(State):
    """Tensors in files.

    Files are read rather than mapped, so that memory is free as soon as a tensor is. A file that changes meanwhile is an error,
    so that tensors of two versions are never mixed.

    Args:
        places: {name of a tensor: its place}.
    """

    def __init__(self, places: Mapping[str, TensorPlace]) -> None:
        self._places = places

    @property
    def contents(self) -> str:
        """A text that differs if another file is read, or one that was replaced or written to."""
        return repr(sorted({(str(place.path), place.contents) for place in self._places.values()}))

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """As State.describe, from the place."""
        place = self._place(name)
        return place.dtype, place.shape

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        return self._read(name, 0, self._place(name).shape)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """As State.rows."""
        place = self._place(name)
        shape = place.shape
        if dtypes.BITS[place.dtype] < 8:  # rows need not begin at a byte
            return self[name][start:stop]
        start, stop, _ = slice(start, stop).indices(shape[0])
        return self._read(name, start * math.prod(shape[1:]), (max(stop - start, 0), *shape[1:]))

    def _place(self, name: str) -> TensorPlace:
        place = self._places[name]
        if place.dtype not in dtypes.NUMPY:
            raise SourceError(place.path, f"tensor {name!r}: dtype {place.dtype} is not supported")
        return place

    def _read(self, name: str, skip: int, shape: tuple[int, ...]) -> NDArray[np.generic]:
        """Part of a tensor with the given shape, after the first `skip` elements."""
        place = self._places[name]
        dtype, is_packed = dtypes.NUMPY[place.dtype], dtypes.BITS[place.dtype] < 8
        count = place.nbytes if is_packed else math.prod(shape)
        word = f"<u{dtype.itemsize}"
        try:
            with place.path.open("rb") as file:
                words = np.fromfile(file, word, count, offset=place.offset + skip * dtype.itemsize)
                changed = contents_of(file) != place.contents
        except OSError as error:
            raise SourceError(place.path, f"tensor {name!r}: {error.strerror or error}") from None
        if changed or len(words) != count:
            raise SourceError(place.path, "the file changed while it was being read; start again")
        if is_packed:
            return packed_floats.unpack(words, place.dtype, shape)
        return words.astype(word[1:], copy=False).view(dtype).reshape(shape)

    def __contains__(self, name: object) -> bool:
        return name in self._places  # without reading it, as a Mapping would

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def contents_of(file: BinaryIO) -> Contents:
    """The Contents of an open file."""
    status = os.fstat(file.fileno())
    # Not the device: machines of a cluster number the device of a shared file system differently.
    return Contents(status.st_ino, status.st_size, status.st_mtime_ns)
