"""Checkpoints in safetensors files: one file, or the shards of a folder."""

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
class _Place:
    """Where a tensor lies: in which file, from which byte on."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


class SafetensorsState(State):
    """The tensors of one or more .safetensors files; `shards` names those to take from each, None for all.

    The files are read, not mapped: what was read and let go takes no memory of the process.
    """

    def __init__(self, shards: Mapping[Path, list[str] | None]) -> None:
        self._places: dict[str, _Place] = {}
        metadata: dict[str, str] = {}
        for path, wanted in shards.items():
            places, texts = _read_index(path)
            if missing := sorted(set(wanted or ()) - set(places)):
                raise SourceError(path, f"its index names {missing[0]!r}, which is not in it")
            self._places.update({name: places[name] for name in (places if wanted is None else wanted)})
            metadata.update(texts)
        self.metadata = metadata

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Name of the dtype, and shape, of a tensor, from the file's header."""
        place = self._places[name]
        if place.dtype not in _DTYPES:
            raise SourceError(place.path, f"tensor {name!r}: dtype {place.dtype} is not supported")
        return _DTYPES[place.dtype], place.shape

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        kind, shape = self.describe(name)
        return self._read(name, kind, 0, shape)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """As State has it."""
        kind, shape = self.describe(name)
        start, stop, _ = slice(start, stop).indices(shape[0])
        return self._read(name, kind, start * math.prod(shape[1:]), (max(stop - start, 0), *shape[1:]))

    def _read(self, name: str, kind: str, skip: int, shape: tuple[int, ...]) -> NDArray[np.generic]:
        """`shape` elements of a tensor, after as many as `skip`."""
        place, dtype, count = self._places[name], dtypes.NUMPY[kind], math.prod(shape)
        word = f"<u{dtype.itemsize}"
        try:
            words = np.fromfile(place.path, word, count, offset=place.offset + skip * dtype.itemsize)
        except OSError as error:
            raise SourceError(place.path, f"tensor {name!r}: {error.strerror or error}") from None
        if len(words) != count:
            raise SourceError(place.path, f"tensor {name!r}: the file has become shorter while it was read")
        return words.astype(word[1:], copy=False).view(dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _read_index(path: Path) -> tuple[dict[str, _Place], dict[str, str]]:
    """Where the tensors of a .safetensors file lie, and its metadata; the library checks the header, but tells no offsets."""
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
        name: _Place(path, 8 + length + tensor["data_offsets"][0], tensor["dtype"], tuple(tensor["shape"]))
        for name, tensor in header.items()
    }
    return places, metadata


def open_folder(folder: Path) -> State:
    """The tensors of a folder with an index and its shards, or with model.safetensors; SourceError for another folder."""
    index = folder / _INDEX
    if not index.exists():
        if (folder / _SINGLE).exists():
            return SafetensorsState({folder / _SINGLE: None})
        raise SourceError(folder, f"expected {_INDEX} or {_SINGLE} in it")
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[Path, list[str] | None] = {}
        for name, file in names.items():
            # Only a plain file name: an index must not lead out of its folder.
            if Path(file).name != file:
                raise SourceError(index, f"shard {file!r} is not in this folder")
            chosen = shards.setdefault(folder / file, [])
            if chosen is not None:
                chosen.append(name)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise SourceError(index, f"not an index of shards: {error!r}") from None
    return SafetensorsState(shards)
