"""Encode codes to a fast section: static tables, 32 interleaved rANS states, streams over blocks of rows.

docs/format.md, "Fast sections", is the normative text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opq.codec import _native
from opq.codec.byte_planes import encode_pack
from opq.codec.byte_reader import varint
from opq.codec.code_stream import Geometry, chunk_spans
from opq.codec.fast_section import FAST, TRELLIS, block_rows, largest_contexts, most_patches
from opq.codec.fast_tables import MAX_CONTEXTS, SYMBOLS, magnitude_classes, shares_of, symbol_bits, table_bytes
from opq.thread_map import thread_map

_RARE = 2**14
"""Numbers at the ends of the range are patched if fewer than one code in so many is one of them."""

_LINES = 2**20


@dataclass(frozen=True)
class _Symbols:
    """The codes of a weight as symbols.

    Args:
        symbols: (rows, columns) uint8: a number less `lowest`.
        lowest: The number of symbol 0, -128..0.
        size: How many symbols there are.
        trellis: Whether numbers are the k of a trellis.
        patches: Positions, int64 and ascending, and codes, int32, of codes that symbols do not give.
    """

    symbols: NDArray[np.uint8]
    lowest: int
    size: int
    trellis: bool
    patches: tuple[NDArray[np.int64], NDArray[np.int32]]


@dataclass(frozen=True)
class _Contexts:
    """Classes of rows and columns, and the tables that follow from them.

    Args:
        count: Number of contexts, at least 1.
        base: A context is the sum of both classes less this.
        rows, columns: uint8 classes.
        head: The bytes of a section that hold all of this.
        shares: (tables, SYMBOLS) uint16.
        bits: Bits of head and symbols, in 4096ths.
    """

    count: int
    base: int
    rows: NDArray[np.uint8]
    columns: NDArray[np.uint8]
    head: bytes
    shares: NDArray[np.uint16]
    bits: int


def encode_fast(
    shape: tuple[int, ...], piece: Callable[[int, int], NDArray[np.int32]], *, trellis: bool = False
) -> bytes | None:
    """Encode codes to a fast section. Memory holds one byte for each code.

    Args:
        shape: Shape of the weight, at least one element.
        piece: As in `opq.codec.code_stream.encode_pieces`; called once for each chunk.
        trellis: Whether the codes follow the trellis; they must.

    Returns:
        The section's bytes; None if there are fewer than SHARES codes, they are all 0, or too many of them are beyond a byte.
    """
    found = _symbols(shape, piece, trellis) if largest_contexts(math.prod(shape)) else None
    if found is None:
        return None
    limit = largest_contexts(found.symbols.size)
    magnitudes = _magnitude_sums(found)
    tried = [_contexts(found, magnitudes, shift) for shift in ((0, 1) if limit > 1 else ())]
    best = min([*tried, _contexts(found, None, 0)], key=lambda contexts: contexts.bits)
    rows, columns = found.symbols.shape
    height = block_rows(columns)

    def encode(top: int) -> bytes:
        block = found.symbols[top : top + height]
        classes, shares = best.rows[top : top + height].data, best.shares.reshape(-1).data
        numbers = best.count, best.base, trellis, found.lowest
        return _native.fast_encode(len(block), columns, classes, best.columns.data, *numbers, block.reshape(-1).data, shares)

    streams = list(thread_map(encode, range(0, rows, height)))
    start = bytes([FAST | TRELLIS * trellis, -found.lowest, found.size - 1])
    lengths = (varint(len(stream)) for stream in streams[:-1])
    return b"".join([start, best.head, _encode_patches(*found.patches), *lengths, *streams])


def _symbols(shape: tuple[int, ...], piece: Callable[[int, int], NDArray[np.int32]], trellis: bool) -> _Symbols | None:
    """The codes as symbols; None if they are all 0 or too many would be patched."""
    geometry = Geometry.of(shape)
    rows, columns = geometry.outputs, geometry.inputs * geometry.positions
    narrow = np.empty(rows * columns, dtype=np.int8)
    positions: list[NDArray[np.int64]] = []
    wide: list[NDArray[np.int32]] = []
    for start, stop in chunk_spans(shape):
        codes = piece(start, stop)
        numbers = _halves(codes) if trellis else codes
        outside = np.flatnonzero((numbers > 127) | (numbers < -128))
        if sum(map(len, wide)) + len(outside) > most_patches(len(narrow)):
            return None
        positions.append(outside + start)
        wide.append(codes[outside])
        narrow[start:stop] = _clipped(numbers, -128, 127) if len(outside) else numbers
    counts = np.bincount(narrow.view(np.uint8), minlength=SYMBOLS)[np.arange(-128, 128)]
    often = np.flatnonzero(counts * _RARE >= len(narrow)) - 128
    lowest, highest = min(int(often[0]), 0), int(often[-1])
    if lowest == highest == 0 and not counts[:128].any() and not counts[129:].any():
        return None
    highest = max(highest, lowest + 1)
    patches = np.concatenate(positions), np.concatenate(wide)
    rare = np.flatnonzero((narrow < lowest) | (narrow > highest))
    rare = rare[~np.isin(rare, patches[0])]
    patched = np.concatenate([patches[0], rare])
    if len(patched) > most_patches(len(narrow)):
        return None
    order = patched.argsort()
    values = np.concatenate([patches[1], _codes_at(shape, piece, rare)])
    at = patched[order]
    narrow[at] = _clipped(narrow[at].astype(np.int32), lowest, highest)
    symbols = (narrow.astype(np.int16) - np.int16(lowest)).astype(np.uint8).reshape(rows, columns)
    return _Symbols(symbols, lowest, highest - lowest + 1, trellis, (at, values[order]))


def _halves(codes: NDArray[np.int32]) -> NDArray[np.int32]:
    """The numbers k of codes n that follow a trellis: (|n| + 1) / 2, rounded down, with the sign of n."""
    return np.asarray(np.sign(codes) * ((np.abs(codes) + 1) >> 1), dtype=np.int32)


def _clipped(numbers: NDArray[np.int32], lowest: int, highest: int) -> NDArray[np.int32]:
    """For each number the nearest one of the range that has the same parity; the range has both."""
    above, below = numbers > highest, numbers < lowest
    ends = np.where(above, highest - ((numbers - highest) & 1), lowest + ((lowest - numbers) & 1))
    return np.asarray(np.where(above | below, ends, numbers), dtype=np.int32)


def _codes_at(
    shape: tuple[int, ...], piece: Callable[[int, int], NDArray[np.int32]], positions: NDArray[np.int64]
) -> NDArray[np.int32]:
    found = [np.zeros(0, dtype=np.int32)]
    for start, stop in chunk_spans(shape):
        inside = positions[positions.searchsorted(start) : positions.searchsorted(stop)]
        if len(inside):
            found.append(piece(start, stop)[inside - start])
    return np.concatenate(found)


def _magnitude_sums(found: _Symbols) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The sums of the magnitudes of rows and of columns."""
    rows, columns = found.symbols.shape
    height = max(_LINES // columns, 1)
    by_row, by_column = np.empty(rows, dtype=np.int64), np.zeros(columns, dtype=np.int64)
    for top in range(0, rows, height):
        magnitudes = np.abs(found.symbols[top : top + height].astype(np.int16) + np.int16(found.lowest))
        by_row[top : top + height] = magnitudes.sum(axis=1, dtype=np.int64)
        by_column += magnitudes.sum(axis=0, dtype=np.int64)
    return by_row, by_column


def _contexts(found: _Symbols, sums: tuple[NDArray[np.int64], NDArray[np.int64]] | None, shift: int) -> _Contexts:
    """One context; or with the sums of magnitudes, contexts of quarter octaves, or of half ones for shift = 1."""
    rows, columns = found.symbols.shape
    if sums is None:
        count, base, head = 1, 0, b"\0"
        classes = np.zeros(rows, dtype=np.uint8), np.zeros(columns, dtype=np.uint8)
    else:
        quarters = magnitude_classes(sums[0], columns) >> shift, magnitude_classes(sums[1], rows) >> shift
        classes = tuple((part - part.min()).astype(np.uint8) for part in quarters)
        span = int(classes[0].max()) + int(classes[1].max())
        count = min(span + 1, MAX_CONTEXTS >> shift, largest_contexts(found.symbols.size))
        middle = int(np.median(classes[0]) + np.median(classes[1]))
        base = min(max(middle - count // 2, 0), span + 1 - count, 255)
        if count == 1:
            return _contexts(found, None, 0)
        packed = encode_pack(classes)
        head = bytes([count - 1, base]) + varint(len(packed)) + packed
    counts = np.zeros((count * (1 + found.trellis), SYMBOLS), dtype=np.uint32)
    matrix = (rows, columns, classes[0].data, classes[1].data, count, base, found.trellis, found.lowest)
    _native.fast_count(*matrix, found.symbols.reshape(-1).data, counts.reshape(-1).data)
    tables = table_bytes(counts[:, : found.size])
    packed = encode_pack([np.ascontiguousarray(tables.T)])
    head += varint(len(packed)) + packed
    shares = shares_of(tables)
    return _Contexts(count, base, *classes, head, shares, int(symbol_bits(counts, shares).sum()) + 8 * 4096 * len(head))


def _encode_patches(positions: NDArray[np.int64], codes: NDArray[np.int32]) -> bytes:
    if not len(positions):
        return b"\0"
    gaps = np.diff(positions, prepend=-1) - 1
    signs = codes.astype(np.int64)
    packed = encode_pack([gaps.astype(np.uint32), ((signs << 1) ^ (signs >> 63)).astype(np.uint32)])
    return varint(len(positions)) + varint(len(packed)) + packed
