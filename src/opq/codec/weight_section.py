"""A weight with a table of levels to bytes and back: the table, and the codes behind it.

The table is the number of positive and of negative levels, and the gaps between the magnitudes of neighbouring ones, as words
of their dtype's size, in byte planes: levels are stored exactly, and what is common to neighbours is stored once.
docs/format.md is the normative text.
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
from opq.codec.code_stream import decode_batch, encode_codes
from opq.errors import FormatError, WeightError
from opq.quantization.compressed_tensor import LARGEST_TABLE, CompressedTensor
from opq.quantization.float_order import from_ordinals, to_ordinals

_WHERE = "levels"
_COARSER = range(4)


def encode_weight(tensor: CompressedTensor) -> bytes:
    """The section of a weight: its table of levels, if it has one, and its codes."""
    if tensor.levels is None:
        return encode_codes(tensor.codes)
    if len(tensor.levels) > tensor.codes.size:
        raise WeightError("weight", tensor.shape, "it has more levels than elements; leave out those that no code uses")
    # How often a level is used follows from its place in the table but roughly: where to stop looking is tried out.
    tried = (encode_codes(tensor.codes, coarser=bits) for bits in _COARSER)
    return _encode_table(tensor.levels) + min(tried, key=len)


def decode_weight(section: bytes, shape: tuple[int, ...], dtype: str, step: float | None) -> CompressedTensor:
    """The weight in `section`, with a table of levels where `step` is None; FormatError unless it holds exactly that."""
    return decode_weights([(section, shape, dtype, step)])[0]


def decode_weights(weights: Sequence[tuple[bytes, tuple[int, ...], str, float | None]]) -> list[CompressedTensor]:
    """As `decode_weight`, of several sections with shape, dtype and step."""
    parts = [_split(*weight) for weight in weights]
    decoded = decode_batch((codes, shape) for (_, codes), (_, shape, _, _) in zip(parts, weights, strict=True))
    return [
        _assign(codes, step, dtype, levels)
        for codes, (levels, _), (_, _, dtype, step) in zip(decoded, parts, weights, strict=True)
    ]


def decode_pieces(section: bytes, shape: tuple[int, ...], dtype: str, step: float | None) -> Iterator[CompressedTensor]:
    """As `decode_weight`, in pieces of one dimension that together are the weight in row-major order."""
    levels, codes = _split(section, shape, dtype, step)
    return (_assign(piece, step, dtype, levels) for piece in code_stream.decode_pieces(codes, shape))


def table_bytes(section: bytes) -> int:
    """How many bytes of a section of levels its table takes."""
    reader = ByteReader(section, _WHERE)
    for _ in range(2):
        reader.varint()
    reader.take(reader.varint())
    return len(section) - len(reader.rest())


def _split(
    section: bytes, shape: tuple[int, ...], dtype: str, step: float | None
) -> tuple[NDArray[np.generic] | None, bytes | memoryview]:
    """The table of levels, where there is no step, and the section of codes."""
    if step is not None:
        return None, section
    reader = ByteReader(section, _WHERE)
    return _decode_table(reader, dtypes.NUMPY[dtype], min(LARGEST_TABLE, math.prod(shape))), reader.rest()


def _assign(codes: NDArray[np.int32], step: float | None, dtype: str, levels: NDArray[np.generic] | None) -> CompressedTensor:
    if levels is not None:
        negatives = int(np.signbit(levels).sum())
        if not -negatives <= codes.min() <= codes.max() <= len(levels) - negatives:
            raise FormatError(_WHERE, f"a code is beyond its table of {len(levels)} levels")
    return CompressedTensor(codes, step, dtype, levels)


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
