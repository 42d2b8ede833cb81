"""Checkpoints in safetensors files: a single file, or the shards in a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from opq import dtypes
from opq.checkpoints.state import State
from opq.errors import SourceError

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


@dataclass(frozen=True)
class _TensorPlace:
    """The file of a tensor, and the offset of its first byte."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


class SafetensorsState(State):
    """The tensors of one or more .safetensors files.

    Files are read rather than mapped, so that memory is free as soon as a tensor is.

    Args:
        shards: {file: names of the tensors to read from it, or None for all}.

    Raises:
        SourceError: A file cannot be read, or has no tensor of a given name.
    """

    def __init__(self, shards: Mapping[Path, list[str] | None]) -> None:
        self._places: dict[str, _TensorPlace] = {}
        metadata: dict[str, str] = {}
        for path, names in shards.items():
            places, texts = _read_index(path)
            if missing := sorted(set(names or ()) - set(places)):
                raise SourceError(path, f"it does not have {missing[0]!r}, although the index says so")
            self._places.update({name: places[name] for name in (places if names is None else names)})
            metadata.update(texts)
        self.metadata = metadata

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """As State.describe, from the file's header."""
        place = self._places[name]
        if place.dtype not in _DTYPES:
            raise SourceError(place.path, f"tensor {name!r}: dtype {place.dtype} is not supported")
        return _DTYPES[place.dtype], place.shape

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        kind, shape = self.describe(name)
        return self._read(name, kind, 0, shape)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """As State.rows."""
        kind, shape = self.describe(name)
        start, stop, _ = slice(start, stop).indices(shape[0])
        return self._read(name, kind, start * math.prod(shape[1:]), (max(stop - start, 0), *shape[1:]))

    def _read(self, name: str, kind: str, skip: int, shape: tuple[int, ...]) -> NDArray[np.generic]:
        """Part of a tensor with the given shape, after the first `skip` elements."""
        place, dtype, count = self._places[name], dtypes.NUMPY[kind], math.prod(shape)
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


def _read_index(path: Path) -> tuple[dict[str, _TensorPlace], dict[str, str]]:
    """The places of a file's tensors, and its metadata. The safetensors library checks the header, but gives no offsets."""
    try:
        with safe_open(str(path), framework="numpy"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise SourceError(path, "no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise SourceError(path, f"not a safetensors file: {error}") from None
    metadata = header.pop("__metadata__", None) or {}
    places = {
        name: _TensorPlace(path, 8 + length + tensor["data_offsets"][0], tensor["dtype"], tuple(tensor["shape"]))
        for name, tensor in header.items()
    }
    return places, metadata


def open_folder(folder: Path) -> State:
    """Open a folder with an index and shards, or with model.safetensors.

    Raises:
        SourceError: The folder has neither, or the index is not valid.
    """
    index = folder / _INDEX
    if not index.exists():
        if (folder / _SINGLE).exists():
            return SafetensorsState({folder / _SINGLE: None})
        raise SourceError(folder, f"expected {_INDEX} or {_SINGLE} in the folder")
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[Path, list[str] | None] = {}
        for name, file in names.items():
            # An index is untrusted, so it must not name files outside of its folder.
            if Path(file).name != file:
                raise SourceError(index, f"shard {file!r} is not in this folder")
            shard_names = shards.setdefault(folder / file, [])
            if shard_names is not None:
                shard_names.append(name)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise SourceError(index, f"not an index of shards: {error!r}") from None
    return SafetensorsState(shards)
