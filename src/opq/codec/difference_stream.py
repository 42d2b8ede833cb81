"""Integers that differ little from those of a base, as bytes and back: static tables of contexts, interleaved rANS states.

docs/format.md, "Differences", is the normative text. `opq.codec.difference_contexts` chooses the contexts.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    Grid,
    Group,
    differences_of,
    in_contexts,
    largest_contexts,
    magnitudes_of,
    octaves_of,
    raw_spans,
    symbols_of,
)
from opq.codec.fast_section import block_rows
from opq.codec.fast_tables import SHARES, SYMBOLS, decoding_tables, shares_of, table_bytes
from opq.errors import FormatError
from opq.thread_map import thread_map

_WHERE = "differences"
_ROWS, _COLUMNS, _KEYS = 1, 2, 4
_PIECE = 2**16
"""Elements whose raw bits are packed at once; a multiple of 8."""


@dataclass(frozen=True)
class Classes:
    """What the contexts of elements follow from.

    Args:
        rows, columns, keys: uint8 class of each row, each column and each of KEYS keys; None if all are 0.
        base: A context is the sum of an element's classes less this, 0..255, within 0 to `count` - 1.
        count: Number of contexts, at least 1, and at most `largest_contexts` of the number of elements.
    """

    rows: NDArray[np.uint8] | None = None
    columns: NDArray[np.uint8] | None = None
    keys: NDArray[np.uint8] | None = None
    base: int = 0
    count: int = 1

    def of(self, grid: Grid) -> NDArray[np.uint8]:
        """The context of each element."""
        if self.count == 1:
            return np.zeros(len(grid.keys), dtype=np.uint8)
        total = grid.spread(self.rows, self.columns)
        if self.keys is not None:
            total += self.keys.astype(np.int16)[grid.keys]
        total -= np.int16(self.base)
        return np.clip(total, 0, self.count - 1, out=total).astype(np.uint8)

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
    contexts = classes.of(grid)
    counts = context_counts(symbols, contexts, classes.count)
    size = int(np.flatnonzero(counts.any(axis=0))[-1]) + 1
    tables = table_bytes(counts[:, :size])
    packed = encode_pack([np.ascontiguousarray(tables.T)])
    shares = shares_of(tables)
    order, groups = in_contexts(contexts, classes.count)
    ordered = symbols[order]
    frequent = counts.argmax(axis=1).astype(np.uint8)

    def encode(job: tuple[Group, NDArray[np.uint8], int]) -> bytes:
        group, lines, top = job
        block = group.classes[top : top + block_rows(LINE)]
        of_group = shares[group.first : group.first + group.contexts]
        part = lines[top * LINE : (top + len(block)) * LINE]
        return _native.fast_encode(*_matrix(block, group), part.data, np.ascontiguousarray(of_group).reshape(-1).data)

    jobs = []
    for group in groups:
        lines = frequent[group.first + np.repeat(group.classes, LINE)]
        for begin, start, count in group.spans:
            lines[begin : begin + count] = ordered[start : start + count]
        jobs += [(group, lines, top) for top in group.blocks]
    streams = list(thread_map(encode, jobs))
    lengths = b"".join(varint(len(stream)) for stream in streams)
    head = bytes([size - 1]) + classes.encode() + varint(len(packed)) + packed
    changed = np.flatnonzero(differences)
    raw = _raw_bytes(magnitudes_of(differences[changed]), octaves_of(symbols[changed]))
    return b"".join([head, lengths, *streams, *raw])


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
    order, groups = in_contexts(classes.of(grid), classes.count)
    jobs = [(group, top) for group in groups for top in group.blocks]
    lengths = [reader.varint() for _ in jobs]
    ordered = np.empty(len(grid.keys), dtype=np.uint8)
    lines = {id(group): np.empty(len(group.classes) * LINE, dtype=np.uint8) for group in groups}
    parts = [(group, top, reader.take(length)) for (group, top), length in zip(jobs, lengths, strict=True)]

    def decode(job: tuple[Group, int, bytes]) -> None:
        group, top, stream = job
        block = group.classes[top : top + block_rows(LINE)]
        output = lines[id(group)][top * LINE : (top + len(block)) * LINE]
        of_group = np.ascontiguousarray(entries[group.first : group.first + group.contexts]).reshape(-1)
        sets = np.zeros(len(block), dtype=np.uint8)
        if not _native.fast_decode(
            *_matrix(block, group), stream, of_group.data, np.arange(SYMBOLS, dtype=np.uint8).data, 1, sets.data, output.data
        ):
            raise FormatError(_WHERE, "a stream does not end with its last element")

    run(lambda job=job: decode(job) for job in parts)  # type: ignore[misc]
    for group in groups:
        for begin, start, count in group.spans:
            ordered[start : start + count] = lines[id(group)][begin : begin + count]
    symbols = np.empty_like(ordered)
    symbols[order] = ordered
    low = _decode_raw(reader, octaves_of(symbols[np.flatnonzero(symbols)]))
    reader.end()
    return differences_of(symbols, low), classes


def context_counts(symbols: NDArray[np.uint8], contexts: NDArray[np.uint8], count: int) -> NDArray[np.uint32]:
    """(count, SYMBOLS) uint32: how often each symbol occurs in each context."""
    pairs = (contexts.astype(np.uint16) << np.uint16(8)) | symbols
    return np.bincount(pairs, minlength=count * SYMBOLS).astype(np.uint32).reshape(count, SYMBOLS)


def _matrix(lines: NDArray[np.uint8], group: Group) -> tuple[int, int, memoryview, memoryview, int, int, bool, int]:
    """The arguments that the native functions begin with."""
    return len(lines), LINE, lines.data, np.zeros(LINE, dtype=np.uint8).data, group.contexts, 0, False, 0


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


def _raw_bytes(magnitudes: NDArray[np.uint64], octaves: NDArray[np.uint8]) -> Iterable[bytes]:
    """The low bits of magnitudes: for each number of bits whole bytes, lowest first, then the others packed."""
    for bits, elements in raw_spans(octaves):
        chosen = magnitudes[elements]
        for byte in range(bits // 8):
            yield (chosen >> np.uint64(8 * byte)).astype(np.uint8).tobytes()
        if bits % 8:
            top = (chosen >> np.uint64(bits // 8 * 8)).astype(np.uint8)
            for start in range(0, len(top), _PIECE):
                single = np.unpackbits(top[start : start + _PIECE, None], axis=1, count=bits % 8, bitorder="little")
                yield np.packbits(single, bitorder="little").tobytes()


def _decode_raw(reader: ByteReader, octaves: NDArray[np.uint8]) -> NDArray[np.uint64]:
    low = np.zeros(len(octaves), dtype=np.uint64)
    for bits, elements in raw_spans(octaves):
        count, whole, rest = len(elements), bits // 8, bits % 8
        found = np.zeros(count, dtype=np.uint64)
        for byte in range(whole):
            found |= np.frombuffer(reader.take(count), dtype=np.uint8).astype(np.uint64) << np.uint64(8 * byte)
        for start in range(0, count if rest else 0, _PIECE):
            size = min(_PIECE, count - start)
            packed = np.frombuffer(reader.take((size * rest + 7) // 8), dtype=np.uint8)
            single = np.unpackbits(packed, count=size * rest, bitorder="little").reshape(size, rest)
            top = np.packbits(single, axis=1, bitorder="little")[:, 0].astype(np.uint64)
            found[start : start + size] |= top << np.uint64(8 * whole)
        low[elements] = found
    return low
