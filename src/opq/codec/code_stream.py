"""Codes to bytes and back: adaptive models of magnitudes and signs, range coding, integers alone.

The native module holds the models (src/opq/codec/native) and knows a weight as rows (outputs), columns (inputs) and positions
of a kernel. Here the weight's shape becomes these, and a large weight several independent chunks of whole rows. docs/format.md
is the normative text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opq.codec import _native
from opq.codec.byte_reader import ByteReader, varint
from opq.errors import FormatError
from opq.thread_map import run_on_all_cores, thread_map

CHUNK = 2**22
"""Weights of a chunk, unless a single row has more."""

_WORTH_A_THREAD = 2**14
"""Bytes of codes for which one thread takes about as long as two take to come together."""

_LARGEST_KERNEL = 128
_LARGEST_SHIFT = 20
_WHERE = "codes"

_Line = tuple[int, int, int, int]
"""Inputs, positions and width of a chunk's geometry, and the first byte of its section."""

_Job = tuple[bytes | memoryview, memoryview, int, int, int, int, int]
"""A stream, where its codes go, rows, and a line."""


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
    flat = np.require(codes, np.int32, ["C", "A"]).reshape(-1)
    return encode_pieces(codes.shape, lambda start, stop: flat[start:stop], coarser=coarser)[0]


def encode_pieces(
    shape: tuple[int, ...], piece: Callable[[int, int], NDArray[np.int32]], *, coarser: int = 0
) -> tuple[bytes, int]:
    """As `encode_codes`, of codes of which no more are held than processors work on.

    shape  of the weight, at least one element
    piece  gives the codes from one place in row-major order to another, in one dimension; called twice for each of
           `chunk_spans(shape)`, from several threads
    """
    geometry = _Geometry.of(shape)
    spans = geometry.spans()
    sums = list(thread_map(lambda span: _sum_and_nonzero(piece(*span)), spans))
    total, nonzero = (sum(part) for part in zip(*sums, strict=True))
    if not total:
        return b"", 0
    count = math.prod(shape)
    # Magnitudes of more than a few bits are mostly noise at their lower end: those bits go raw.
    shift = min(max((total // count).bit_length() - 3, 0) + coarser, _LARGEST_SHIFT)
    first = shift | _halvings(total, count << shift) << 5
    line = (geometry.inputs, geometry.positions, geometry.width, first)
    row = geometry.inputs * geometry.positions

    def encode(span: tuple[int, int]) -> bytes:
        return _native.encode_codes(piece(*span).data, (span[1] - span[0]) // row, *line)

    streams = list(thread_map(encode, spans))
    return b"".join([bytes([first]), *(varint(len(stream)) for stream in streams[:-1]), *streams]), nonzero


def _sum_and_nonzero(codes: NDArray[np.int32]) -> tuple[int, int]:
    return int(np.abs(codes).sum(dtype=np.int64)), int(np.count_nonzero(codes))


def _halvings(total: int, count: int) -> int:
    """How often 2 is halved, 0 to 7 times, to come nearest to total / count on a logarithmic scale."""
    mean = (total << 12) // count
    return min(max(13 - (mean * mean).bit_length() // 2, 0), 7)


def chunk_spans(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """From where to where, in row-major order, each chunk of a weight reaches."""
    return _Geometry.of(shape).spans()


def decode_codes(section: bytes, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """The codes of `section`; FormatError unless it holds exactly a tensor of `shape`, which has at least one element."""
    return decode_batch([(section, shape)])[0]


def decode_batch(weights: Iterable[tuple[bytes | memoryview, tuple[int, ...]]]) -> list[NDArray[np.int32]]:
    """The codes of some sections, each with its shape, as of `decode_codes`, on all processors, two at a time on each."""
    decoded: list[NDArray[np.int32]] = []
    jobs: list[_Job] = []
    for section, shape in weights:
        if section:
            codes = np.empty(shape, dtype=np.int32)
            jobs += _jobs(section, shape, codes.reshape(-1))
        else:
            codes = np.zeros(shape, dtype=np.int32)
        decoded.append(codes)
    # The largest first: the last ones, for which there is no other work to do meanwhile, are then small.
    _decode(sorted(jobs, key=lambda job: job[1].nbytes, reverse=True))
    return decoded


def decode_pieces(section: bytes | memoryview, shape: tuple[int, ...]) -> Iterator[NDArray[np.int32]]:
    """As `decode_codes`, in pieces of one dimension that together are the codes in row-major order."""
    if not section:
        return (np.zeros(stop - start, dtype=np.int32) for start, stop in chunk_spans(shape))

    def decode(part: tuple[bytes | memoryview, int, _Line]) -> NDArray[np.int32]:
        stream, rows, line = part
        piece = np.empty(rows * line[0] * line[1], dtype=np.int32)
        _decode([(stream, piece.data, rows, *line)])
        return piece

    return thread_map(decode, _parts(section, shape))


def _jobs(section: bytes | memoryview, shape: tuple[int, ...], flat: NDArray[np.int32]) -> Iterator[_Job]:
    """What the native module is to decode into the codes of a weight, in one dimension."""
    at = 0
    for stream, rows, line in _parts(section, shape):
        count = rows * line[0] * line[1]
        yield (stream, flat[at : at + count].data, rows, *line)
        at += count


def _parts(section: bytes | memoryview, shape: tuple[int, ...]) -> Iterator[tuple[bytes | memoryview, int, _Line]]:
    """The stream of each chunk, its rows, and what it has in common with the others."""
    geometry = _Geometry.of(shape)
    row = geometry.inputs * geometry.positions
    spans = geometry.spans()
    reader = ByteReader(section, _WHERE)
    first = reader.take(1)[0]
    if first & 31 > _LARGEST_SHIFT:
        raise FormatError(_WHERE, f"{first & 31} raw bits where at most {_LARGEST_SHIFT} are allowed")
    lengths = [reader.varint() for _ in spans[:-1]]
    line = (geometry.inputs, geometry.positions, geometry.width, first)
    for (start, stop), length in zip(spans, [*lengths, None], strict=True):
        yield reader.rest() if length is None else reader.take(length), (stop - start) // row, line


def _decode(jobs: list[_Job]) -> None:
    taken = np.zeros(1, dtype=np.int64).data  # how many: threads share the jobs
    many = len(jobs) if sum(job[1].nbytes for job in jobs) > _WORTH_A_THREAD else 1
    if min(run_on_all_cores(lambda: _native.decode_codes(jobs, taken), many)) < len(jobs):
        raise FormatError(_WHERE, "its data do not end where its weights do")
