"""Codes to bytes and back: adaptive models of magnitudes and signs, range coding, integers alone.

The native module holds the models (src/opq/codec/native) and knows a weight as rows (outputs), columns (inputs) and positions
of a kernel. Here the weight's shape becomes these, and a large weight several independent chunks of whole rows. docs/format.md
is the normative text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opq.codec import _native
from opq.codec.cursor import Cursor, varint
from opq.errors import FormatError
from opq.parallel import in_parallel

CHUNK = 2**22
"""Weights of a chunk, unless a single row has more."""

_LARGEST_KERNEL = 128
_LARGEST_SHIFT = 20
_WHERE = "codes"


@dataclass(frozen=True)
class _Geometry:
    """A weight as rows of `inputs` kernels of `positions` weights, in lines of `width`."""

    outputs: int
    inputs: int
    positions: int
    width: int

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> _Geometry:
        outputs, inputs = (1, 1, *shape)[-2:] if len(shape) < 2 else shape[:2]
        kernel = math.prod(shape[2:])
        if kernel > _LARGEST_KERNEL:
            return cls(outputs * inputs, kernel, 1, 1)
        return cls(outputs, inputs, kernel, shape[-1] if kernel > 1 else 1)

    def split(self, rows: NDArray[np.int32]) -> list[NDArray[np.int32]]:
        """The chunks of a weight that stands as its rows: views of as many whole rows as a chunk may hold."""
        height = max(CHUNK // (self.inputs * self.positions), 1)
        return [rows[start : start + height] for start in range(0, self.outputs, height)]


def encode_codes(codes: NDArray[np.int32]) -> bytes:
    """The section of `codes`: int32 of any shape with at least one element, magnitudes below 2^24; empty if all are 0."""
    if not codes.any():
        return b""
    geometry = _Geometry.of(codes.shape)
    rows = np.ascontiguousarray(codes).reshape(geometry.outputs, -1)
    # Magnitudes of more than a few bits are mostly noise at their lower end: those bits go raw.
    mean = int(np.abs(rows).sum(dtype=np.int64)) // rows.size
    shift = min(max(mean.bit_length() - 3, 0), _LARGEST_SHIFT)
    line = (geometry.inputs, geometry.positions, geometry.width, shift)
    streams = list(in_parallel(lambda chunk: _native.encode_codes(chunk.data, len(chunk), *line), geometry.split(rows)))
    return b"".join([bytes([shift]), *(varint(len(stream)) for stream in streams[:-1]), *streams])


def decode_codes(section: bytes, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """The codes of `section`; FormatError unless it holds exactly a tensor of `shape`, which has at least one element."""
    if not section:
        return np.zeros(shape, dtype=np.int32)
    geometry = _Geometry.of(shape)
    codes = np.empty(shape, dtype=np.int32)
    chunks = geometry.split(codes.reshape(geometry.outputs, -1))
    cursor = Cursor(section, _WHERE)
    shift = cursor.take(1)[0]
    if shift > _LARGEST_SHIFT:
        raise FormatError(_WHERE, f"{shift} raw bits where at most {_LARGEST_SHIFT} are allowed")
    lengths = [cursor.varint() for _ in chunks[:-1]]
    streams = [*(cursor.take(length) for length in lengths), cursor.rest()]
    line = (geometry.inputs, geometry.positions, geometry.width, shift)

    def decode(pair: tuple[bytes, NDArray[np.int32]]) -> bool:
        stream, chunk = pair
        return _native.decode_codes(stream, chunk.data, len(chunk), *line)

    if not all(in_parallel(decode, zip(streams, chunks, strict=True))):
        raise FormatError(_WHERE, "its data do not end where its weights do")
    return codes
