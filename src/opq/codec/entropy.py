"""Codes to bytes and back: adaptive models of magnitudes and signs, range coding, integers alone.

The native module holds the models (src/opq/codec/native) and knows a weight as rows (outputs), columns (inputs) and positions
of a kernel. Here the weight's shape becomes these, and a large weight several independent chunks of whole rows. docs/format.md
is the normative text.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
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

    def spans(self) -> list[tuple[int, int]]:
        """From where to where each chunk reaches, each of as many whole rows as it may hold."""
        row = self.inputs * self.positions
        size, end = max(CHUNK // row, 1) * row, self.outputs * row
        return [(start, min(start + size, end)) for start in range(0, end, size)]


def encode_codes(codes: NDArray[np.int32], *, coarser: int = 0) -> bytes:
    """The section of `codes`: int32 of any shape with at least one element, magnitudes below 2^24; empty if all are 0.

    `coarser` is how many more low bits of a magnitude go raw than the mean magnitude suggests.
    """
    flat = np.ascontiguousarray(codes).reshape(-1)
    return encode_pieces(codes.shape, lambda start, stop: flat[start:stop], coarser=coarser)


def encode_pieces(shape: tuple[int, ...], piece: Callable[[int, int], NDArray[np.int32]], *, coarser: int = 0) -> bytes:
    """As `encode_codes`, of codes of which no more are held than processors work on.

    shape  of the weight, at least one element
    piece  gives the codes from one place in row-major order to another, in one dimension; called twice for each of
           `chunk_spans(shape)`, from several threads
    """
    geometry = _Geometry.of(shape)
    spans = geometry.spans()
    total = sum(in_parallel(lambda span: int(np.abs(piece(*span)).sum(dtype=np.int64)), spans))
    if not total:
        return b""
    # Magnitudes of more than a few bits are mostly noise at their lower end: those bits go raw.
    shift = min(max((total // math.prod(shape)).bit_length() - 3, 0) + coarser, _LARGEST_SHIFT)
    line = (geometry.inputs, geometry.positions, geometry.width, shift)
    row = geometry.inputs * geometry.positions

    def encode(span: tuple[int, int]) -> bytes:
        return _native.encode_codes(piece(*span).data, (span[1] - span[0]) // row, *line)

    streams = list(in_parallel(encode, spans))
    return b"".join([bytes([shift]), *(varint(len(stream)) for stream in streams[:-1]), *streams])


def chunk_spans(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """From where to where, in row-major order, each chunk of a weight reaches."""
    return _Geometry.of(shape).spans()


def decode_codes(section: bytes, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """The codes of `section`; FormatError unless it holds exactly a tensor of `shape`, which has at least one element."""
    codes = np.zeros(shape, dtype=np.int32)
    flat = codes.reshape(-1)
    if section:
        deque(_decode(section, shape, lambda start, stop: flat[start:stop]), maxlen=0)
    return codes


def decode_pieces(section: bytes, shape: tuple[int, ...]) -> Iterator[NDArray[np.int32]]:
    """As `decode_codes`, in pieces of one dimension that together are the codes in row-major order."""
    if not section:
        return (np.zeros(stop - start, dtype=np.int32) for start, stop in chunk_spans(shape))
    return _decode(section, shape, lambda start, stop: np.empty(stop - start, dtype=np.int32))


def _decode(
    section: bytes, shape: tuple[int, ...], room: Callable[[int, int], NDArray[np.int32]]
) -> Iterator[NDArray[np.int32]]:
    """The chunks of a section, each decoded into the room made for it."""
    geometry = _Geometry.of(shape)
    spans = geometry.spans()
    cursor = Cursor(section, _WHERE)
    shift = cursor.take(1)[0]
    if shift > _LARGEST_SHIFT:
        raise FormatError(_WHERE, f"{shift} raw bits where at most {_LARGEST_SHIFT} are allowed")
    lengths = [cursor.varint() for _ in spans[:-1]]
    streams = [*(cursor.take(length) for length in lengths), cursor.rest()]
    line = (geometry.inputs, geometry.positions, geometry.width, shift)

    def decode(pair: tuple[bytes, tuple[int, int]]) -> NDArray[np.int32]:
        stream, span = pair
        chunk = room(*span)
        rows = len(chunk) // (geometry.inputs * geometry.positions)
        if not _native.decode_codes(stream, chunk.data, rows, *line):
            raise FormatError(_WHERE, "its data do not end where its weights do")
        return chunk

    return in_parallel(decode, zip(streams, spans, strict=True))
