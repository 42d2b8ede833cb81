"""Encode codes to bytes and back: adaptive models of magnitudes and signs, and a range coder, in integers only.

The models are in the native module (src/opq/codec/native), for which a weight has rows (outputs), columns (inputs) and kernel
positions. This module maps the weight's shape to these, and divides a large weight into independent chunks of whole rows.
docs/format.md is the normative text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opq.codec import _native
from opq.codec.byte_reader import ByteReader, varint
from opq.errors import FormatError, WeightError
from opq.thread_map import run_on_all_cores, thread_map

CHUNK = 2**22
"""The largest number of elements in a chunk of several rows."""

_WORTH_A_THREAD = 2**14
"""Bytes of codes below which starting a second thread takes longer than decoding."""

_LARGEST_KERNEL = 128
_LARGEST_SHIFT = 20
_TRELLIS = 21
"""Summand of the shift in the first byte of a section whose codes follow the trellis."""
_LARGEST_TRELLIS_SHIFT = 9
_WHERE = "codes"
_NO_END = "the data do not end with the last weight"

_Line = tuple[int, int, int, int]
"""Inputs, positions and width of a weight's geometry, and the first byte of its section."""

_Job = tuple[bytes | memoryview, memoryview, int, int, int, int, int]
"""A stream, the buffer for its codes, the number of rows, and a line."""


class StreamError(FormatError):
    """A section does not hold exactly a weight of its shape.

    Args:
        number: Which one of the weights that are decoded together.
        problem: What is wrong with it.
    """

    def __init__(self, number: int, problem: str) -> None:
        super().__init__(_WHERE, problem)
        self.number = number


@dataclass(frozen=True)
class Geometry:
    """A weight as `outputs` rows of `inputs` kernels of `positions` elements; `width` is the last axis of the kernel.

    A section gives the same codes, row-major, for all shapes of one geometry.
    """

    outputs: int
    inputs: int
    positions: int
    width: int

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Geometry:
        """The geometry of a shape."""
        outputs, inputs = (1, 1, *shape)[-2:] if len(shape) < 2 else shape[:2]
        kernel = math.prod(shape[2:])
        if kernel > _LARGEST_KERNEL:
            return cls(outputs * inputs, kernel, 1, 1)
        return cls(outputs, inputs, kernel, shape[-1] if kernel > 1 else 1)

    def spans(self) -> list[tuple[int, int]]:
        """(start, stop) of each chunk in row-major order; a chunk has as many whole rows as CHUNK allows, at least one."""
        row = self.inputs * self.positions
        size, end = max(CHUNK // row, 1) * row, self.outputs * row
        return [(start, min(start + size, end)) for start in range(0, end, size)]


def encode_codes(codes: NDArray[np.int32], *, extra_raw_bits: int = 0, trellis: bool = False) -> bytes:
    """Encode codes.

    Args:
        codes: int32, any shape with at least one element, magnitudes below 2^24.
        extra_raw_bits: Low bits of a magnitude that are stored raw, in addition to those that the mean magnitude suggests.
        trellis: Whether the codes are those of `opq.quantization.trellis`.

    Returns:
        The section's bytes; empty if all codes are 0.

    Raises:
        WeightError: With `trellis`: the codes do not follow the trellis, or the weight has kernels.
    """
    flat = np.require(codes, np.int32, ["C", "A"]).reshape(-1)

    def piece(start: int, stop: int) -> NDArray[np.int32]:
        return flat[start:stop]

    return encode_pieces(codes.shape, piece, extra_raw_bits=extra_raw_bits, trellis=trellis)[0]


def encode_pieces(
    shape: tuple[int, ...],
    piece: Callable[[int, int], NDArray[np.int32]],
    *,
    extra_raw_bits: int = 0,
    trellis: bool = False,
) -> tuple[bytes, int]:
    """As `encode_codes`, for codes that are read in pieces, so that memory holds about one chunk per core.

    Args:
        shape: Shape of the weight, at least one element.
        piece: piece(start, stop) returns the codes from one position in row-major order to another, in one dimension. It is
            called twice for each of `chunk_spans(shape)`, from several threads.
        extra_raw_bits: As in `encode_codes`.
        trellis: As in `encode_codes`.

    Returns:
        The section's bytes, and the number of nonzero codes.

    Raises:
        WeightError: As `encode_codes`.
    """
    geometry = Geometry.of(shape)
    if trellis and geometry.positions > 1:
        raise WeightError("weight", shape, "codes of a weight with kernels cannot follow the trellis; round it otherwise")
    spans = geometry.spans()
    sums = list(thread_map(lambda span: _sum_and_nonzero(piece(*span), trellis), spans))
    total, nonzero = (sum(part) for part in zip(*sums, strict=True))
    if not total:
        return b"", 0
    count = math.prod(shape)
    # The low bits of large magnitudes are mostly noise, so they are stored raw.
    largest = _LARGEST_TRELLIS_SHIFT if trellis else _LARGEST_SHIFT
    shift = min(max((total // count).bit_length() - 3, 0) + extra_raw_bits, largest)
    first = shift + _TRELLIS * trellis | _halvings(total, count << shift) << 5
    line = (geometry.inputs, geometry.positions, geometry.width, first)
    row = geometry.inputs * geometry.positions

    def encode(span: tuple[int, int]) -> bytes:
        return _native.encode_codes(piece(*span).data, (span[1] - span[0]) // row, *line)

    try:
        streams = list(thread_map(encode, spans))
    except ValueError as error:
        raise WeightError("weight", shape, f"{error}; give it codes of opq.quantization.trellis") from None
    return b"".join([bytes([first]), *(varint(len(stream)) for stream in streams[:-1]), *streams]), nonzero


def _sum_and_nonzero(codes: NDArray[np.int32], trellis: bool) -> tuple[int, int]:
    """The sum of the magnitudes that are coded, and the number of codes that are not 0."""
    total = int(np.abs(codes).sum(dtype=np.int64))
    if trellis:  # an odd n is coded as (|n| + 1) / 2, an even one as |n| / 2
        total = (total + int(np.count_nonzero(codes & 1))) // 2
    return total, int(np.count_nonzero(codes))


def _halvings(total: int, count: int) -> int:
    """The n in 0..7 for which 2 / 2^n is nearest to total / count on a logarithmic scale."""
    mean = (total << 12) // count
    return min(max(13 - (mean * mean).bit_length() // 2, 0), 7)


def chunk_spans(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """(start, stop) of each chunk of a weight, in row-major order."""
    return Geometry.of(shape).spans()


def is_trellis(section: bytes | memoryview) -> bool:
    """Whether the codes of a section follow the trellis. A section without bytes, whose codes are 0, does not say so."""
    return len(section) > 0 and _TRELLIS <= section[0] & 31 <= _TRELLIS + _LARGEST_TRELLIS_SHIFT


def decode_codes(section: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Inverse of `encode_codes`.

    Args:
        section: The section's bytes, untrusted.
        shape: Shape of the weight, at least one element.

    Raises:
        FormatError: The section does not hold exactly a weight of this shape.
    """
    return decode_batch([(section, shape)])[0]


def decode_batch(weights: Iterable[tuple[bytes | memoryview, tuple[int, ...]]]) -> list[NDArray[np.int32]]:
    """As `decode_codes`, for several weights, on all cores; each core interleaves two weights.

    Args:
        weights: (section, shape) of each weight.

    Returns:
        The codes of each weight.

    Raises:
        StreamError: A section does not hold exactly a weight of its shape.
    """
    decoded: list[NDArray[np.int32]] = []
    jobs: list[tuple[_Job, int]] = []
    for number, (section, shape) in enumerate(weights):
        if section:
            codes = np.empty(shape, dtype=np.int32)
            with _naming(number):
                jobs += [(job, number) for job in _jobs(section, shape, codes.reshape(-1))]
        else:
            codes = np.zeros(shape, dtype=np.int32)
        decoded.append(codes)
    # The largest first, so that cores finish at about the same time.
    jobs.sort(key=lambda job: job[0][1].nbytes, reverse=True)
    valid = _decode([job for job, _ in jobs])
    if valid < len(jobs):
        raise StreamError(jobs[valid][1], _NO_END)
    return decoded


@contextmanager
def _naming(number: int) -> Iterator[None]:
    try:
        yield
    except FormatError as error:
        raise StreamError(number, error.problem) from None


def decode_pieces(section: bytes | memoryview, shape: tuple[int, ...]) -> Iterator[NDArray[np.int32]]:
    """As `decode_codes`, in one-dimensional pieces, whose concatenation is the codes in row-major order."""
    if not section:
        return (np.zeros(stop - start, dtype=np.int32) for start, stop in chunk_spans(shape))

    def decode(part: tuple[bytes | memoryview, int, _Line]) -> NDArray[np.int32]:
        stream, rows, line = part
        piece = np.empty(rows * line[0] * line[1], dtype=np.int32)
        if not _decode([(stream, piece.data, rows, *line)]):
            raise FormatError(_WHERE, _NO_END)
        return piece

    return thread_map(decode, _parts(section, shape))


def _jobs(section: bytes | memoryview, shape: tuple[int, ...], flat: NDArray[np.int32]) -> Iterator[_Job]:
    """The jobs that decode a weight into `flat`, the buffer for its codes in one dimension."""
    at = 0
    for stream, rows, line in _parts(section, shape):
        count = rows * line[0] * line[1]
        yield (stream, flat[at : at + count].data, rows, *line)
        at += count


def _parts(section: bytes | memoryview, shape: tuple[int, ...]) -> Iterator[tuple[bytes | memoryview, int, _Line]]:
    """The stream of each chunk, its number of rows, and the line of the weight."""
    geometry = Geometry.of(shape)
    row = geometry.inputs * geometry.positions
    spans = geometry.spans()
    reader = ByteReader(section, _WHERE)
    first = reader.take(1)[0]
    if first & 31 > _TRELLIS + _LARGEST_TRELLIS_SHIFT:
        raise FormatError(_WHERE, "expected an adaptive section, got a fast one")
    if first & 31 >= _TRELLIS and geometry.positions > 1:
        raise FormatError(_WHERE, f"codes of a weight with kernels cannot follow the trellis, got raw bits of {first & 31}")
    lengths = [reader.varint() for _ in spans[:-1]]
    line = (geometry.inputs, geometry.positions, geometry.width, first)
    for (start, stop), length in zip(spans, [*lengths, None], strict=True):
        yield reader.rest() if length is None else reader.take(length), (stop - start) // row, line


def _decode(jobs: list[_Job]) -> int:
    """Decode streams into their buffers. The number of jobs before the first one whose stream is invalid."""
    next_job = np.zeros(1, dtype=np.int64).data  # threads share the jobs and this counter
    max_threads = len(jobs) if sum(job[1].nbytes for job in jobs) > _WORTH_A_THREAD else 1
    return min(run_on_all_cores(lambda: _native.decode_codes(jobs, next_job), max_threads))
