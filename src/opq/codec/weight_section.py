"""Encode a quantized weight to the bytes of its section and back: the codes, after scales or a table of levels if it has any.

Only this module decides how each kind of codebook is stored. A step is in the header. Scales of rows and columns are bytes in a
byte plane. A table of levels is the number of positive and of negative levels, and the gaps between the magnitudes of
neighbouring levels as integers of the size of their dtype, in byte planes. So levels are stored exactly, in few bytes if they
are close. docs/format.md is the normative text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.codec import code_section
from opq.codec.byte_planes import decode_pack, encode_pack
from opq.codec.byte_reader import ByteReader, varint
from opq.codec.code_section import decode_batch, is_trellis
from opq.codec.code_stream import Geometry, StreamError, encode_pieces
from opq.codec.entry import Entry
from opq.codec.fast_encoder import encode_fast
from opq.codec.section_choice import EncodedWeight
from opq.errors import FormatError, WeightError
from opq.quantization.codebook import LARGEST_TABLE, Codebook, LevelTable, ScaledCodebook, UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor, QuantizedWeight
from opq.quantization.float_order import from_ordinals, to_ordinals

_WHERE = "weight"
_EXTRA_RAW_BITS = range(4)
_PIECE = 2**20
"""The largest number of elements of a piece that has several channels."""

_ZERO = 128  # the byte of a scale of 0


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
    if isinstance(codebook, ScaledCodebook):
        return Entry(name, weight.shape, weight.dtype, "scaled", section, codebook.step)
    return Entry(name, weight.shape, weight.dtype, "levels", section)


def encode_weight(weight: QuantizedWeight, *, fast: bool = False) -> EncodedWeight:
    """Encode a weight.

    Args:
        weight: The weight. Its codes are read in pieces, from several threads.
        fast: Whether to make the fast section too.

    Returns:
        Its sections, and the number of nonzero codes.

    Raises:
        WeightError: The table has more levels than the weight has elements, or codes do not follow the weight's trellis.
    """
    codes, start = weight.read_codes(), b""
    if isinstance(weight.codebook, LevelTable):
        levels = weight.codebook.levels
        if len(levels) > math.prod(weight.shape):
            problem = f"it has {len(levels):,} levels, more levels than elements; remove those that no code uses"
            raise WeightError("weight", weight.shape, problem)
        start = _encode_table(levels)
        # The mean code does not determine the frequencies of levels, so several numbers of raw bits are tried.
        tried = [encode_pieces(weight.shape, codes, extra_raw_bits=bits) for bits in _EXTRA_RAW_BITS]
    else:
        start = encode_scales(weight.codebook) if isinstance(weight.codebook, ScaledCodebook) else b""
        tried = [encode_pieces(weight.shape, codes, trellis=weight.trellis)]
    adaptive, nonzero = min(tried, key=lambda encoded: len(encoded[0]))
    other = encode_fast(weight.shape, codes, trellis=weight.trellis) if fast and adaptive else None
    return EncodedWeight(start + adaptive, None if other is None else start + other, nonzero)


def decode_weight(section: bytes | memoryview, entry: Entry) -> CompressedTensor:
    """Inverse of `encode_weight`.

    Args:
        section: The section's bytes, untrusted.
        entry: The weight's entry.

    Raises:
        FormatError: The section does not hold exactly this weight.
    """
    codebook, codes = split(section, entry)
    return _join(code_section.decode_codes(codes, entry.shape), codebook, is_trellis(codes), entry)


def decode_weights(sections: Mapping[int, bytes | memoryview], entries: Sequence[Entry]) -> list[CompressedTensor]:
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
            with naming(entry):
                parts[entry.section] = split(sections[entry.section], entry)
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
            with naming(entry):
                codebook, section = parts[entry.section]
                joined[whole] = _join(codes[key].reshape(entry.shape), codebook, is_trellis(section), entry)
    return [joined[key, entry.shape, entry.dtype, entry.step] for key, entry in zip(keys, entries, strict=True)]


def have_same_codes(one: tuple[int, ...], two: tuple[int, ...]) -> bool:
    """Whether weights of two shapes that share a section have the same codes, row-major."""
    return Geometry.of(one) == Geometry.of(two)


def with_codes_of(weight: CompressedTensor, entry: Entry) -> CompressedTensor:
    """A weight of the same section with a copy of the same codes."""
    return _join(weight.codes.reshape(entry.shape).copy(), weight.codebook, weight.trellis, entry)


def with_step_of(codebook: Codebook, entry: Entry) -> Codebook:
    """The codebook of a section, with the step of one of its weights; FormatError if scales do not allow that step."""
    if entry.step is None or not isinstance(codebook, UniformCodebook | ScaledCodebook) or codebook.step == entry.step:
        return codebook
    with _as_format_error():
        return replace(codebook, step=entry.step)


def decode_pieces(section: bytes | memoryview, entry: Entry) -> Iterator[CompressedTensor]:
    """As `decode_weight`, in pieces of whole channels."""
    codebook, rest = split(section, entry)
    width, first = math.prod(entry.shape[1:]), 0
    incomplete = np.zeros(0, dtype=np.int32)
    for chunk in code_section.decode_pieces(rest, entry.shape):
        codes = np.concatenate([incomplete, chunk]) if len(incomplete) else chunk
        end, size = len(codes) // width * width, max(_PIECE // width, 1) * width
        for start in range(0, end, size):
            piece = codes[start : min(start + size, end)].reshape(-1, *entry.shape[1:])
            yield _join(piece, codebook.channels(first, first + len(piece)), is_trellis(rest), entry)
            first += len(piece)
        incomplete = codes[end:]


@contextmanager
def naming(entry: Entry) -> Iterator[None]:
    """Context whose FormatErrors name a weight."""
    try:
        yield
    except FormatError as error:
        raise FormatError(f"tensor {entry.name!r}", error.problem) from None


def split(section: bytes | memoryview, entry: Entry) -> tuple[Codebook, bytes | memoryview]:
    """The codebook of a weight, and the part of its section with the codes; FormatError if the section has no codebook."""
    reader = ByteReader(section, _WHERE)
    codebook: Codebook
    with _as_format_error():
        if entry.storage == "levels":
            codebook = LevelTable(_decode_table(reader, dtypes.NUMPY[entry.dtype], min(LARGEST_TABLE, entry.count)))
        elif entry.storage == "scaled":
            codebook = ScaledCodebook(entry.step or 0.0, *_decode_scales(reader, entry.shape))
        else:
            codebook = UniformCodebook(entry.step or 0.0)
        return codebook, reader.rest()


def _join(codes: NDArray[np.int32], codebook: Codebook, trellis: bool, entry: Entry) -> CompressedTensor:
    with _as_format_error():
        return CompressedTensor(codes, with_step_of(codebook, entry), entry.dtype, trellis)


@contextmanager
def _as_format_error() -> Iterator[None]:
    try:
        yield
    except WeightError as error:
        raise FormatError(_WHERE, error.problem) from None


def encode_scales(codebook: ScaledCodebook) -> bytes:
    """The part of a section before the codes: which axes have scales, and these as bytes in a pack."""
    axes = [axis for axis in (codebook.rows, codebook.columns) if axis is not None]
    packed = encode_pack([(axis.astype(np.int16) + _ZERO).astype(np.uint8) for axis in axes])
    flags = (codebook.rows is not None) + 2 * (codebook.columns is not None)
    return bytes([flags]) + varint(len(packed)) + packed


def _decode_scales(reader: ByteReader, shape: tuple[int, ...]) -> list[NDArray[np.int8] | None]:
    flags = reader.take(1)[0]
    if not 1 <= flags <= 3:
        raise FormatError(_WHERE, f"the axes that have scales must be 1, 2 or 3, got {flags}")
    sizes = [(size,) for axis, size in enumerate((shape[0], math.prod(shape[1:]))) if flags >> axis & 1]
    arrays = iter(decode_pack(reader.take(reader.varint()), sizes, [np.dtype(np.uint8)] * len(sizes)))
    # A byte of 0 becomes -128, which ScaledCodebook refuses.
    return [(next(arrays).astype(np.int16) - _ZERO).astype(np.int8) if flags >> axis & 1 else None for axis in range(2)]


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
