"""A quantized weight to the bytes of its section and back: codes, with the table of a codebook that has one.

How each kind of codebook is stored is decided here alone. A step goes into the header. A table of levels is the number of
positive and of negative levels, and the gaps between the magnitudes of neighbouring ones, as words of their dtype's size, in
byte planes: levels are stored exactly, and what is common to neighbours is stored once. docs/format.md is the normative text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.codec import code_stream
from opq.codec.byte_planes import decode_pack, encode_pack
from opq.codec.byte_reader import ByteReader, varint
from opq.codec.code_stream import decode_batch, encode_pieces
from opq.codec.header import Entry
from opq.errors import FormatError, WeightError
from opq.quantization.codebook import LARGEST_TABLE, Codebook, LevelTable, UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor, QuantizedWeight
from opq.quantization.float_order import from_ordinals, to_ordinals

_WHERE = "levels"
_COARSER = range(4)


def entry_of(name: str, weight: QuantizedWeight, section: int = 0) -> Entry:
    """The header's entry of a weight whose section has this number."""
    codebook = weight.codebook
    if isinstance(codebook, UniformCodebook):
        return Entry(name, weight.shape, weight.dtype, "codes", section, codebook.step)
    return Entry(name, weight.shape, weight.dtype, "levels", section)


def encode_weight(weight: QuantizedWeight) -> tuple[bytes, int]:
    """The section of a weight, and how many of its codes are not zero."""
    codes = weight.read_codes()
    if not isinstance(weight.codebook, LevelTable):
        return encode_pieces(weight.shape, codes)
    levels = weight.codebook.levels
    if len(levels) > math.prod(weight.shape):
        raise WeightError("weight", weight.shape, "it has more levels than elements; leave out those that no code uses")
    # How often a level is used follows only roughly from its place in the table, so the number of raw bits is tried out.
    tried = [encode_pieces(weight.shape, codes, coarser=bits) for bits in _COARSER]
    section, nonzero = min(tried, key=lambda found: len(found[0]))
    return _encode_table(levels) + section, nonzero


def decode_weight(section: bytes, entry: Entry) -> CompressedTensor:
    """The weight of `entry` in its section; FormatError unless it holds exactly that."""
    return decode_weights([(section, entry)])[0]


def decode_weights(weights: Sequence[tuple[bytes, Entry]]) -> list[CompressedTensor]:
    """As `decode_weight`, of several weights, on all cores."""
    parts = [_split(section, entry) for section, entry in weights]
    decoded = decode_batch((codes, entry.shape) for (_, codes), (_, entry) in zip(parts, weights, strict=True))
    return [_join(codes, book, entry) for codes, (book, _), (_, entry) in zip(decoded, parts, weights, strict=True)]


def decode_pieces(section: bytes, entry: Entry) -> Iterator[CompressedTensor]:
    """As `decode_weight`, in pieces of one dimension that together are the weight in row-major order."""
    codebook, codes = _split(section, entry)
    return (_join(piece, codebook, entry) for piece in code_stream.decode_pieces(codes, entry.shape))


def table_bytes(section: bytes) -> int:
    """How many bytes of a section of levels its table takes."""
    reader = ByteReader(section, _WHERE)
    for _ in range(2):
        reader.varint()
    reader.take(reader.varint())
    return len(section) - len(reader.rest())


def _split(section: bytes, entry: Entry) -> tuple[Codebook, bytes | memoryview]:
    """The codebook of a weight, and the part of its section that holds the codes."""
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
        raise FormatError(_WHERE, "there are none")
    kind = np.dtype(f"u{dtype.itemsize}")
    (gaps,) = decode_pack(reader.take(reader.varint()), [(positives + negatives,)], [kind])
    infinity = int(to_ordinals(np.array([np.inf]).astype(dtype))[0])
    above = _add_up(gaps[:positives], infinity - 1)
    below = -_add_up(gaps[positives:], infinity)[::-1]
    return from_ordinals(np.concatenate([below, above]).astype(f"i{dtype.itemsize}"), dtype)


def _add_up(gaps: NDArray[np.generic], largest: int) -> NDArray[np.int64]:
    """The running sums of gaps; FormatError where one is 0, or a sum beyond `largest`."""
    sums = gaps.astype(np.uint64).cumsum(dtype=np.uint64)
    # Sums that overflow would fall back behind the one before.
    if (gaps == 0).any() or (sums > largest).any() or (sums[1:] <= sums[:-1]).any():
        raise FormatError(_WHERE, "they do not ascend, or lead beyond their dtype")
    return sums.astype(np.int64)
