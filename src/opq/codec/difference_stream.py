"""Integers that differ little from those of a base, as bytes and back: static tables of contexts, interleaved rANS states.

docs/format.md, "Differences", is the normative text. `opq.codec.difference_contexts` chooses the contexts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opq.codec import _native
from opq.codec.byte_planes import decode_pack, encode_pack
from opq.codec.byte_reader import ByteReader, varint
from opq.codec.code_section import run
from opq.codec.difference_layout import (
    KEYS,
    LINE,
    MOST_SYMBOLS,
    Axis,
    Grid,
    Stream,
    in_lines,
    largest_contexts,
    symbols_of,
)
from opq.codec.fast_tables import SHARES, SYMBOLS, decoding_tables, shares_of, table_bytes
from opq.errors import FormatError
from opq.thread_map import thread_map

_WHERE = "differences"
_ROWS, _COLUMNS, _KEYS = 1, 2, 4


@dataclass(frozen=True)
class Classes:
    """What the contexts of elements follow from.

    Args:
        rows, columns, keys: uint8 class of each row, each column and each of KEYS keys; None if all are 0.
        base: A context is the sum of an element's classes less this, 0..255, within 0 to `count` - 1.
        count: Number of contexts, at least 1, and at most `largest_contexts` of the number of elements.
    """

    rows: Axis = None
    columns: Axis = None
    keys: Axis = None
    base: int = 0
    count: int = 1

    def of(self, grid: Grid) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The context of each element, and how many elements each context has."""
        contexts, sizes = np.empty(len(grid.keys), dtype=np.uint8), np.zeros(KEYS, dtype=np.int64)
        arguments = grid.arguments(self.rows, self.columns, self.keys)
        _native.difference_contexts(*arguments, self.base, self.count, contexts.data, sizes.data)
        return contexts, sizes[: self.count]

    def gathered(self, counts: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """(count, SYMBOLS) counts of symbols in each context, of those in each sum of classes."""
        end = self.base + self.count
        found = counts[self.base : end].copy()
        found[0] += counts[: self.base].sum(axis=0, dtype=np.uint32)
        found[-1] += counts[end:].sum(axis=0, dtype=np.uint32)
        return found

    def encode(self) -> bytes:
        """The bytes that hold them, after the number of the last symbol."""
        axes = self.rows, self.columns, self.keys
        flags = sum(bit for bit, axis in zip((_ROWS, _COLUMNS, _KEYS), axes, strict=True) if axis is not None)
        packed = encode_pack([axis for axis in axes if axis is not None]) if flags else b""
        return bytes([flags, self.count - 1, self.base]) + (varint(len(packed)) + packed if flags else b"")


def encode_differences(differences: NDArray[np.int64], grid: Grid, classes: Classes) -> bytes:
    """Encode differences of elements in contexts.

    Args:
        differences: int64, at least one, in one dimension.
        grid: Where the elements are, and their keys.
        classes: What their contexts follow from.

    Returns:
        The bytes.
    """
    symbols = symbols_of(differences)
    counts = classes.gathered(grid.counts(symbols, classes.rows, classes.columns, classes.keys))
    size = symbols_in(counts)
    tables = table_bytes(counts[:, :size])
    packed = encode_pack([np.ascontiguousarray(tables.T)])
    shares = shares_of(tables)
    contexts, sizes = classes.of(grid)
    places, of_lines, streams = in_lines(sizes)
    lines = np.repeat(counts.argmax(axis=1).astype(np.uint8)[of_lines], LINE)
    _native.sort_symbols(contexts.data, places.data, symbols.data, lines.data, False)

    def encode(stream: Stream) -> bytes:
        of_group = shares[stream.first : stream.first + stream.contexts]
        return _native.fast_encode(*_matrix(stream), lines[stream.places].data, of_group.reshape(-1).data)

    coded = list(thread_map(encode, streams))
    lengths = b"".join(varint(len(stream)) for stream in coded)
    head = bytes([size - 1]) + classes.encode() + varint(len(packed)) + packed
    return b"".join([head, lengths, *coded, _native.write_raw_bits(differences.data, symbols.data)])


def decode_differences(data: bytes | memoryview, grid: Grid) -> tuple[NDArray[np.int64], Classes]:
    """Inverse of `encode_differences`.

    Args:
        data: The bytes, untrusted.
        grid: Where the elements are, and their keys; at least one element.

    Raises:
        FormatError: They do not hold exactly the differences of these elements.
    """
    reader = ByteReader(data, _WHERE)
    size = reader.take(1)[0] + 1
    if size > MOST_SYMBOLS:
        raise FormatError(_WHERE, f"the last symbol must be at most {MOST_SYMBOLS - 1}, got {size - 1}")
    classes = _decode_classes(reader, grid)
    (tables,) = decode_pack(reader.take(reader.varint()), [(size, classes.count)], [np.dtype(np.uint8)])
    shares = shares_of(np.ascontiguousarray(tables.T).view(np.uint8))
    entries = decoding_tables(shares).reshape(-1, SHARES)
    contexts, sizes = classes.of(grid)
    places, of_lines, streams = in_lines(sizes)
    lengths = [reader.varint() for _ in streams]
    lines = np.empty(len(of_lines) * LINE, dtype=np.uint8)
    parts = [(stream, reader.take(length)) for stream, length in zip(streams, lengths, strict=True)]

    def decode(stream: Stream, data: bytes) -> None:
        of_group = entries[stream.first : stream.first + stream.contexts]
        sets, values = np.zeros(len(stream.classes), dtype=np.uint8), np.arange(SYMBOLS, dtype=np.uint8)
        output = lines[stream.places].data
        if not _native.fast_decode(*_matrix(stream), data, of_group.reshape(-1).data, values.data, 1, sets.data, output):
            raise FormatError(_WHERE, "a stream does not end with its last element")

    run(lambda part=part: decode(*part) for part in parts)  # type: ignore[misc]
    symbols, differences = np.empty(len(contexts), dtype=np.uint8), np.empty(len(contexts), dtype=np.int64)
    _native.sort_symbols(contexts.data, places.data, symbols.data, lines.data, True)
    raw = reader.rest()
    expected = _native.read_raw_bits(symbols.data, raw, differences.data)
    if len(raw) != expected:
        raise FormatError(_WHERE, f"the raw bits must have {expected:,} bytes, got {len(raw):,}")
    return differences, classes


def symbols_in(counts: NDArray[np.uint32]) -> int:
    """One more than the largest symbol that occurs."""
    return int(np.flatnonzero(counts.any(axis=0))[-1]) + 1


def _matrix(stream: Stream) -> tuple[int, int, memoryview, memoryview, int, int, bool, int]:
    """The arguments that the native functions begin with."""
    columns = np.zeros(LINE, dtype=np.uint8)
    return len(stream.classes), LINE, stream.classes.data, columns.data, stream.contexts, 0, False, 0


def _decode_classes(reader: ByteReader, grid: Grid) -> Classes:
    flags, more, base = reader.take(3)
    allowed = _ROWS | _KEYS | (_COLUMNS if grid.columns else 0)
    most = largest_contexts(len(grid.keys))
    if flags & ~allowed or more >= most:
        raise FormatError(_WHERE, f"unknown classes {flags}, or more than {most} contexts: {more + 1}")
    sizes = {_ROWS: len(grid.rows), _COLUMNS: grid.columns, _KEYS: KEYS}
    found: dict[int, NDArray[np.uint8]] = {}
    if flags:
        shapes = [(sizes[bit],) for bit in sizes if flags & bit]
        arrays = decode_pack(reader.take(reader.varint()), shapes, [np.dtype(np.uint8)] * len(shapes))
        found = dict(zip((bit for bit in sizes if flags & bit), (array.view(np.uint8) for array in arrays), strict=True))
    return Classes(found.get(_ROWS), found.get(_COLUMNS), found.get(_KEYS), base, more + 1)
