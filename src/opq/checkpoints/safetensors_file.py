"""Checkpoints in safetensors files: a single file, or shards."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from opq import dtypes, packed_floats
from opq.checkpoints.state import State
from opq.checkpoints.wrappers import without_prefixes
from opq.errors import SourceError
from opq.progress import logger

_DTYPES = {header: name for name, header in dtypes.SAFETENSORS.items()}


@dataclass(frozen=True)
class _TensorPlace:
    """The file of a tensor, what identifies its contents, and the offset of the tensor's first byte."""

    path: Path
    contents: tuple[int, ...]
    offset: int
    dtype: str
    shape: tuple[int, ...]


class SafetensorsState(State):
    """The tensors of one or more .safetensors files.

    Files are read rather than mapped, so that memory is free as soon as a tensor is.

    Args:
        shards: {file: names of its tensors by an index, or None}. Tensors that the index does not name are read too.

    Raises:
        SourceError: A file cannot be read, or has no tensor of a given name.
    """

    def __init__(self, shards: Mapping[Path, list[str] | None]) -> None:
        self._places: dict[str, _TensorPlace] = {}
        metadata: dict[str, str] = {}
        unnamed: dict[str, _TensorPlace] = {}
        for path, listed in shards.items():
            names = None if listed is None else set(listed)
            places, texts = _read_index(path)
            if missing := sorted((names or set()) - set(places)):
                raise SourceError(path, f"it does not have {missing[0]!r}, which the index lists for it")
            self._places.update({name: places[name] for name in (places if names is None else names)})
            unnamed.update({name: place for name, place in places.items() if names is not None and name not in names})
            metadata.update(texts)
        warn_of_unnamed(unnamed := {name: place for name, place in unnamed.items() if name not in self._places}, shards)
        self._places.update(unnamed)
        self._names = without_prefixes(self._places)
        self.metadata = metadata

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """As State.describe, from the file's header."""
        place = self._places[self._names[name]]
        if place.dtype not in _DTYPES:
            raise SourceError(place.path, f"tensor {name!r}: dtype {place.dtype} is not supported")
        return _DTYPES[place.dtype], place.shape

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        kind, shape = self.describe(name)
        return self._read(name, kind, 0, shape)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """As State.rows."""
        kind, shape = self.describe(name)
        if dtypes.BITS[kind] < 8:  # rows need not begin at a byte
            return self[name][start:stop]
        start, stop, _ = slice(start, stop).indices(shape[0])
        return self._read(name, kind, start * math.prod(shape[1:]), (max(stop - start, 0), *shape[1:]))

    def _read(self, name: str, kind: str, skip: int, shape: tuple[int, ...]) -> NDArray[np.generic]:
        """Part of a tensor with the given shape, after the first `skip` elements."""
        place, dtype = self._places[self._names[name]], dtypes.NUMPY[kind]
        is_packed = dtypes.BITS[kind] < 8
        count = dtypes.dense_bytes(kind, math.prod(shape)) if is_packed else math.prod(shape)
        word = f"<u{dtype.itemsize}"
        try:
            with place.path.open("rb") as file:
                words = np.fromfile(file, word, count, offset=place.offset + skip * dtype.itemsize)
                changed = _contents(file) != place.contents
        except OSError as error:
            raise SourceError(place.path, f"tensor {name!r}: {error.strerror or error}") from None
        if changed or len(words) != count:
            raise SourceError(place.path, "the file changed while it was being read; start again")
        if is_packed:
            return packed_floats.unpack(words, kind, shape)
        return words.astype(word[1:], copy=False).view(dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _read_index(path: Path) -> tuple[dict[str, _TensorPlace], dict[str, str]]:
    """The places of a file's tensors, and its metadata. The safetensors library checks the header, but gives no offsets."""
    try:
        with safe_open(str(path), framework="numpy"):
            pass
        with path.open("rb") as file:
            contents = _contents(file)
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise SourceError(path, "no such file") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise SourceError(path, f"not a safetensors file: {error}") from None
    metadata = header.pop("__metadata__", None) or {}
    places = {
        name: _TensorPlace(path, contents, 8 + length + tensor["data_offsets"][0], tensor["dtype"], tuple(tensor["shape"]))
        for name, tensor in header.items()
    }
    return places, metadata


def _contents(file: BinaryIO) -> tuple[int, ...]:
    """What differs after a file was replaced or written to."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def warn_of_unnamed(names: Collection[str], shards: Iterable[Path]) -> None:
    """Log that shards have tensors that their index does not name, and that were taken.

    Args:
        names: The tensors.
        shards: The shards.
    """
    if names:
        folder, first = next(iter(shards)).parent, next(iter(names))
        logger.warning("%s: took %d tensors that the index does not name, such as %r", folder, len(names), first)
