"""FileState: tensors at known places in files, of which only the parts that are used are read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.checkpoints.state import State
from opq.errors import SourceError


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies: little-endian, row-major, without gaps.

    Args:
        path: The file.
        offset: Offset of its first byte.
        dtype: Name of its dtype, as in opq.dtypes; another name is an error as soon as the tensor is used.
        shape: Its shape.
    """

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * dtypes.NUMPY[self.dtype].itemsize


class FileState(State):
    """Tensors in files.

    Files are read rather than mapped, so that memory is free as soon as a tensor is.

    Args:
        places: {name of a tensor: its place}.
    """

    def __init__(self, places: Mapping[str, TensorPlace]) -> None:
        self._places = places

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """As State.describe, from the place."""
        place = self._place(name)
        return place.dtype, place.shape

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        return self._read(name, 0, self._place(name).shape)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """As State.rows."""
        shape = self._place(name).shape
        start, stop, _ = slice(start, stop).indices(shape[0])
        return self._read(name, start * math.prod(shape[1:]), (max(stop - start, 0), *shape[1:]))

    def _place(self, name: str) -> TensorPlace:
        place = self._places[name]
        if place.dtype not in dtypes.NUMPY:
            raise SourceError(place.path, f"tensor {name!r}: dtype {place.dtype} is not supported")
        return place

    def _read(self, name: str, skip: int, shape: tuple[int, ...]) -> NDArray[np.generic]:
        """Part of a tensor with the given shape, after the first `skip` elements."""
        place, count = self._places[name], math.prod(shape)
        dtype = dtypes.NUMPY[place.dtype]
        word = f"<u{dtype.itemsize}"
        try:
            words = np.fromfile(place.path, word, count, offset=place.offset + skip * dtype.itemsize)
        except OSError as error:
            raise SourceError(place.path, f"tensor {name!r}: {error.strerror or error}") from None
        if len(words) != count:
            raise SourceError(place.path, f"tensor {name!r}: the file became shorter while it was read")
        return words.astype(word[1:], copy=False).view(dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
