"""Encode a quantized weight to the bytes of its section and back: the codes, after the table of levels if there is one.

Only this module decides how each kind of codebook is stored. A step is in the header. A table of levels is the number of
positive and of negative levels, and the gaps between the magnitudes of neighbouring levels as integers of the size of their
dtype, in byte planes. So levels are stored exactly, in few bytes if they are close. docs/format.md is the normative text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.codec import code_stream
from opq.codec.byte_planes import decode_pack, encode_pack
from opq.codec.byte_reader import ByteReader, varint
from opq.codec.code_stream import Geometry, StreamError, decode_batch, encode_pieces
from opq.codec.entry import Entry
from opq.errors import FormatError, WeightError
from opq.quantization.codebook import LARGEST_TABLE, Codebook, LevelTable, UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor, QuantizedWeight
from opq.quantization.float_order import from_ordinals, to_ordinals

_WHERE = "levels"
_EXTRA_RAW_BITS = range(4)


def entry_of(name: str, weight: QuantizedWeight, section: int = 0) -> Entry:
    """The header entry of a weight.

    Args:
        name: Name of the weight.
        weight: The weight.
        section: Number of its section.
    """
    codebook = weight.codebook
    if isinstance(codebook, UniformCodebook):
        return Entry(name, weight.shape, weight.dtype, "codes", section, codebook.step)
    return Entry(name, weight.shape, weight.dtype, "levels", section)


def encode_weight(weight: QuantizedWeight) -> tuple[bytes, int]:
    """Encode a weight.

    Args:
        weight: The weight. Its codes are read in pieces, from several threads.

    Returns:
        The section's bytes, and the number of nonzero codes.

    Raises:
        WeightError: The table has more levels than the weight has elements.
    """
    codes = weight.read_codes()
    if not isinstance(weight.codebook, LevelTable):
        return encode_pieces(weight.shape, codes)
    levels = weight.codebook.levels
    if len(levels) > math.prod(weight.shape):
        problem = f"it has {len(levels):,} levels, more levels than elements; remove those that no code uses"
        raise WeightError("weight", weight.shape, problem)
    # The mean code does not determine the frequencies of levels, so several numbers of raw bits are tried.
    tried = [encode_pieces(weight.shape, codes, extra_raw_bits=bits) for bits in _EXTRA_RAW_BITS]
    section, nonzero = min(tried, key=lambda encoded: len(encoded[0]))
    return _encode_table(levels) + section, nonzero


def decode_weight(section: bytes, entry: Entry) -> CompressedTensor:
    """Inverse of `encode_weight`.

    Args:
        section: The section's bytes, untrusted.
        entry: The weight's entry.

    Raises:
        FormatError: The section does not hold exactly this weight.
    """
    codebook, codes = _split(section, entry)
    return _join(code_stream.decode_codes(codes, entry.shape), codebook, entry)


def decode_weights(sections: Mapping[int, bytes], entries: Sequence[Entry]) -> list[CompressedTensor]:
    """As `decode_weight`, for several weights, on all cores. What weights of one section have in common is decoded once.

    Args:
        sections: {number of a section: its bytes, untrusted}.
        entries: The weights' entries.

    Returns:
        The weight of each entry. Equal weights are one object, and weights may share their codes.

    Raises:
        FormatError: A section does not hold exactly a weight; the error names it.
    """
    parts: dict[int, tuple[Codebook, bytes | memoryview]] = {}
    first: dict[tuple[int, Geometry], Entry] = {}
    keys = [(entry.section, Geometry.of(entry.shape)) for entry in entries]
    for key, entry in zip(keys, entries, strict=True):
        if entry.section not in parts:
            with _naming(entry):
                parts[entry.section] = _split(sections[entry.section], entry)
        first.setdefault(key, entry)
    firsts = list(first.values())
    try:
        decoded = decode_batch((parts[entry.section][1], entry.shape) for entry in firsts)
    except StreamError as error:
        raise FormatError(f"tensor {firsts[error.number].name!r}", error.problem) from None
    codes = dict(zip(first, decoded, strict=True))
    joined: dict[object, CompressedTensor] = {}
    for key, entry in zip(keys, entries, strict=True):
        whole = (key, entry.shape, entry.dtype, entry.step)
        if whole not in joined:
            book = parts[entry.section][0] if entry.step is None else UniformCodebook(entry.step)
            with _naming(entry):
                joined[whole] = _join(codes[key].reshape(entry.shape), book, entry)
    return [joined[key, entry.shape, entry.dtype, entry.step] for key, entry in zip(keys, entries, strict=True)]


def have_same_codes(one: tuple[int, ...], two: tuple[int, ...]) -> bool:
    """Whether weights of two shapes that share a section have the same codes, row-major."""
    return Geometry.of(one) == Geometry.of(two)


def with_codes_of(weight: CompressedTensor, entry: Entry) -> CompressedTensor:
    """A weight of the same section with a copy of the same codes."""
    codebook = weight.codebook if entry.step is None else UniformCodebook(entry.step)
    return CompressedTensor(weight.codes.reshape(entry.shape).copy(), codebook, entry.dtype)


@contextmanager
def _naming(entry: Entry) -> Iterator[None]:
    try:
        yield
    except FormatError as error:
        raise FormatError(f"tensor {entry.name!r}", error.problem) from None


def decode_pieces(section: bytes, entry: Entry) -> Iterator[CompressedTensor]:
    """As `decode_weight`, in one-dimensional pieces, whose concatenation is the weight in row-major order."""
    codebook, codes = _split(section, entry)
    return (_join(piece, codebook, entry) for piece in code_stream.decode_pieces(codes, entry.shape))


def table_bytes(section: bytes) -> int:
    """Bytes of the table in a section with a table of levels."""
    reader = ByteReader(section, _WHERE)
    for _ in range(2):
        reader.varint()
    reader.take(reader.varint())
    return len(section) - len(reader.rest())


def _split(section: bytes, entry: Entry) -> tuple[Codebook, bytes | memoryview]:
    """The codebook of a weight, and the part of its section with the codes."""
    if entry.step is not None:
        return UniformCodebook(entry.step), section
    reader = ByteReader(section, _WHERE)
    levels = _decode_table(reader, dtypes.NUMPY[entry.dtype], min(LARGEST_TABLE, entry.count))
    return LevelTable(levels), reader.rest()


def _join(codes: NDArray[np.int32], codebook: Codebook, entry: Entry) -> CompressedTensor:
    try:
        return CompressedTensor(codes, codebook, entry.dtype)
    except WeightError as error:
        raise FormatError(_WHERE, error.problem) from None


def _encode_table(levels: NDArray[np.generic]) -> bytes:
    ordinals = to_ordinals(levels)
    positives, negatives = ordinals[ordinals > 0], -ordinals[ordinals < 0][::-1]
    gaps = np.concatenate([np.diff(positives, prepend=0), np.diff(negatives, prepend=0)])
    packed = encode_pack([gaps.astype(f"u{levels.dtype.itemsize}")])
    return varint(len(positives)) + varint(len(negatives)) + varint(len(packed)) + packed


def _decode_table(reader: ByteReader, dtype: np.dtype[np.generic], largest: int) -> NDArray[np.generic]:
    positives = reader.varint(largest)
    negatives = reader.varint(largest - positives)
    if positives + negatives == 0:
        raise FormatError(_WHERE, "the table must have at least one level, got 0")
    kind = np.dtype(f"u{dtype.itemsize}")
    (gaps,) = decode_pack(reader.take(reader.varint()), [(positives + negatives,)], [kind])
    infinity = int(to_ordinals(np.array([np.inf]).astype(dtype))[0])
    above = _ordinals_of_gaps(gaps[:positives], infinity - 1)
    below = -_ordinals_of_gaps(gaps[positives:], infinity)[::-1]
    return from_ordinals(np.concatenate([below, above]).astype(f"i{dtype.itemsize}"), dtype)


def _ordinals_of_gaps(gaps: NDArray[np.generic], largest: int) -> NDArray[np.int64]:
    """The running sums of gaps; FormatError if a gap is 0, or a sum is above `largest`."""
    sums = gaps.astype(np.uint64).cumsum(dtype=np.uint64)
    # A sum that overflows is smaller than the one before.
    if (gaps == 0).any() or (sums > largest).any() or (sums[1:] <= sums[:-1]).any():
        raise FormatError(_WHERE, "levels must be strictly ascending and finite in their dtype")
    return sums.astype(np.int64)
