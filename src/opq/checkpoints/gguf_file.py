"""Checkpoints in GGUF files, the format of llama.cpp.

Only the header is read when a file is opened, by the rules of GGUF's specification; the library gguf has the sizes of types.
Its own reader makes several arrays for each element of the metadata: a vocabulary takes seconds, and a small file can fill
the memory.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from opq.checkpoints.file_kind import check_memory
from opq.checkpoints.file_state import Contents, FileState, TensorPlace, contents_of
from opq.checkpoints.wrappers import warn_of_ignored, without_prefixes
from opq.errors import MissingExtraError, SourceError

_VERSIONS = (2, 3)
_DTYPES = {
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
}  # fmt: skip
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32
_MOST_DIMENSIONS = 4  # ggml's own limit

TYPES_KEY = "gguf.tensor_types"
"""The key of the metadata that holds {tensor of blocks: its type in GGUF}, as JSON."""


class GgufState(FileState):
    """The tensors of a GGUF file, with the axes in the order of NumPy, which is the reverse of GGUF's.

    A tensor of a quantized type, such as Q4_K, is the uint8 array of its blocks. Bytes at the same place of all blocks are
    together, so that they take fewer bytes in a file: for a tensor of (rows, columns) the shape is (bytes of a block, rows,
    blocks of a row), and `numpy.moveaxis(array, 0, -1)` has the bytes of the GGUF file.

    Args:
        path: The file.

    Raises:
        SourceError: The file is damaged, of another version, a part of a checkpoint, or has types that are not known.
        MissingExtraError: The library gguf is not installed.
    """

    def __init__(self, path: Path) -> None:
        places, types = _read_header(path)
        short = without_prefixes(places)
        super().__init__({name: places[old] for name, old in short.items()})
        self.packed = {name: f"GGUF's {types[old]}" for name, old in short.items() if old in types}
        if types:
            self.metadata = {TYPES_KEY: json.dumps({name: types[old] for name, old in short.items() if old in types})}

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """As State.describe."""
        kind, shape = super().describe(name)
        return kind, (shape[-1], *shape[:-1]) if name in self.packed else shape

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        array = super().__getitem__(name)
        return np.ascontiguousarray(np.moveaxis(array, -1, 0)) if name in self.packed else array

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """As State.rows."""
        return self[name][start:stop] if name in self.packed else super().rows(name, start, stop)


class _Header:
    """Reads the header of a GGUF file in sequence. All methods raise ValueError if the file ends too early or is not valid.

    Args:
        file: The open file.
        size: Its size in bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self.offset = 0

    def _advance(self, count: int) -> None:
        if count > self._size - self.offset:
            raise ValueError("it ends within its header")
        self.offset += count

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        self._advance(count)
        return self._file.read(count)

    def skip(self, count: int) -> None:
        """Leave out the next `count` bytes."""
        self._advance(count)
        self._file.seek(count, os.SEEK_CUR)

    def number(self, kind: str = "Q") -> Any:
        """The next number, of a type of the module struct."""
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        """The next string."""
        return self.take(self.number()).decode()

    def value(self) -> Any:
        """The next value of the metadata if it is a number; None for strings and arrays, which are left out."""
        kind = self.number("I")
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            self.skip(self.number())
            return None
        if kind != _ARRAY:
            raise ValueError(f"it has metadata of type {kind}")
        kind, count = self.number("I"), self.number()
        if kind in _SCALARS:
            self.skip(count * struct.calcsize(f"<{_SCALARS[kind]}"))
        elif kind == _STRING:
            for _ in range(count):
                self.skip(self.number())
        else:
            raise ValueError(f"it has arrays of type {kind}")
        return None


_Tensor = tuple[tuple[int, ...], int, int]
"""Shape in elements, number of the type, and offset in the data of the file."""


def _read_header(path: Path) -> tuple[dict[str, TensorPlace], dict[str, str]]:
    """The places of all tensors, and {tensor of a quantized type: name of the type}."""
    try:
        with path.open("rb") as file:
            contents = contents_of(file)
            header = _Header(file, path.stat().st_size)
            tensors, metadata = _read_tables(path, header)
    except (ValueError, struct.error, OSError) as error:
        raise SourceError(path, f"a damaged GGUF file: {error}") from None
    if (parts := metadata.get("split.count")) not in (None, 0, 1):
        raise SourceError(path, f"one of {parts} parts of a checkpoint; join them with llama-gguf-split --merge")
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise SourceError(path, f"a damaged GGUF file: its alignment is {alignment}")
    places, types = _find_tensors(path, contents, tensors, -(-header.offset // alignment) * alignment)
    warn_of_ignored(path, list(metadata))
    return places, types


def _read_tables(path: Path, header: _Header) -> tuple[dict[str, _Tensor], dict[str, Any]]:
    """{name: tensor}, and the metadata as in _Header.value."""
    header.skip(len("GGUF"))
    version = header.number("I")
    if version not in _VERSIONS:
        what = "a big-endian GGUF file" if version % 2**16 == 0 else f"a GGUF file of version {version}"
        raise SourceError(path, f"{what}; expected version 2 or 3, little-endian")
    num_tensors, num_metadata = header.number(), header.number()
    metadata = {}
    for _ in range(num_metadata):
        key = header.text()
        metadata[key] = header.value()
    tensors: dict[str, _Tensor] = {}
    for _ in range(num_tensors):
        name = header.text()
        dimensions = header.number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(header.number() for _ in range(dimensions))[::-1]
        if 0 in shape:
            raise ValueError(f"tensor {name!r} is empty")
        if name in tensors:
            raise ValueError(f"it has two tensors {name!r}")
        tensors[name] = shape, header.number("I"), header.number()
    return tensors, metadata


def _find_tensors(
    path: Path, contents: Contents, tensors: Mapping[str, _Tensor], start: int
) -> tuple[dict[str, TensorPlace], dict[str, str]]:
    """As `_read_header`; the data of the file begin at `start`."""
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError:
        raise MissingExtraError(f"reading {path.name}", "gguf") from None
    known = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    places, types = {}, {}
    for name, (shape, number, offset) in tensors.items():
        if number not in known:
            raise SourceError(path, f"tensor {name!r} is of a type ({number}) that gguf does not know; install a newer gguf")
        kind, block, block_bytes = known[number]
        if kind not in _DTYPES:
            if not shape or shape[-1] % block:
                raise SourceError(path, f"tensor {name!r} {shape} must have rows of whole blocks of {block}, as {kind} has")
            shape = (*shape[:-1], shape[-1] // block, block_bytes)
            types[name] = kind
        places[name] = TensorPlace(path, contents, start + offset, _DTYPES.get(kind, "uint8"), shape)
        if places[name].offset + places[name].nbytes > contents.size:
            raise SourceError(path, f"tensor {name!r} ends after the file; it is damaged, or not complete")
    check_memory(path, ((name, place.nbytes) for name, place in places.items()))
    return places, types
