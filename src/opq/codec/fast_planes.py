"""Byte planes by static tables, in blocks that are decoded alone: the fast counterpart of adaptive planes.

docs/format.md, "Fast planes", is the normative text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opq.codec import _native
from opq.codec.byte_reader import ByteReader
from opq.codec.fast_tables import SHARES, SYMBOLS, shares_of, symbol_bits, table_bytes
from opq.errors import FormatError

FEWEST = 4096
"""Bytes of the smallest fast plane."""

BLOCK = 2**18
"""Bytes of a plane that are decoded alone; the last block of a plane has the rest."""

PIECE = 16 * BLOCK
"""Bytes of a plane that are encoded together."""

_GROUP = 256
_TABLES = 8
_STATES = 4 * 32
_SAVING = 32  # a block is coded if that saves at least one byte in so many

Block = bytes | memoryview


def encode_blocks(piece: NDArray[np.uint8]) -> list[Block]:
    """Encode part of a plane, of at most PIECE bytes, that begins where a block does. Blocks may be views of it."""
    blocks = [piece[start : start + BLOCK] for start in range(0, len(piece), BLOCK)]
    classes = _classes(blocks)
    counts = np.zeros((len(blocks), _TABLES, SYMBOLS), dtype=np.uint32)
    for block, own, found in zip(blocks, classes, counts, strict=True):
        _native.count_groups(block.data, own.data, found.reshape(-1).data)
    alone = _Tables.of(counts.sum(axis=1, keepdims=True, dtype=np.uint32), [np.zeros_like(own) for own in classes])
    saving = [number for number, tables in enumerate(alone) if tables.size * _SAVING <= len(blocks[number]) * (_SAVING - 1)]
    several = dict(zip(saving, _Tables.of(counts[saving], [classes[number] for number in saving]), strict=True))
    encoded: list[Block] = []
    for number, (block, tables) in enumerate(zip(blocks, alone, strict=True)):
        if tables.first == tables.last:
            encoded.append(block[:1].tobytes())
        elif number in several:
            encoded.append(min(tables, several[number], key=lambda found: found.size).encode(block))
        else:
            encoded.append(block.data)
    return encoded


def read_plane(reader: ByteReader, count: int) -> list[memoryview]:
    """The blocks of a plane of `count` bytes, untrusted. `merge` decodes them."""
    lengths = [reader.varint(limit=min(BLOCK, count - start)) for start in range(0, count, BLOCK)]
    return [reader.view(length) for length in lengths]


def blocks_of(plane: bytes | memoryview) -> list[memoryview]:
    """The blocks of a plane that is not coded, in the form of `read_plane`."""
    view = memoryview(plane)
    return [view[start : start + BLOCK] for start in range(0, len(view), BLOCK)]


def merge(blocks: Sequence[bytes | memoryview], rotated: bool, words: NDArray[np.unsignedinteger], where: str) -> None:
    """Decode a block of each plane of words, and make words of them.

    Args:
        blocks: One for each byte of a word, the highest first, untrusted.
        rotated: Whether the planes are those of words rotated left by one bit.
        words: In one dimension, as many as each block has bytes; receives the words.
        where: Part of the file for errors.

    Raises:
        FormatError: A block does not hold exactly its bytes.
    """
    problem = _native.merge_blocks(list(blocks), rotated, words.view(np.uint8).data)
    if problem is not None:
        raise FormatError(where, problem)


@dataclass(frozen=True)
class _Tables:
    """Tables of a block.

    Args:
        marks: (tables, SYMBOLS) uint8: their bytes.
        shares: (tables, SYMBOLS) uint16.
        classes: (groups,) uint8: the table of each group.
        first: The lowest symbol.
        last: The highest symbol.
        bits: Bits of the block's symbols, in 4096ths.
    """

    marks: NDArray[np.uint8]
    shares: NDArray[np.uint16]
    classes: NDArray[np.uint8]
    first: int
    last: int
    bits: int

    @classmethod
    def of(cls, counts: NDArray[np.uint32], classes: Sequence[NDArray[np.uint8]]) -> list[_Tables]:
        """The tables of blocks, from (blocks, tables, SYMBOLS) counts and the classes of each block's groups."""
        if not len(counts):
            return []
        marks = table_bytes(counts.reshape(-1, SYMBOLS))
        shares = shares_of(marks).reshape(counts.shape)
        bits = symbol_bits(counts, shares).sum(axis=(1, 2))
        used = np.asarray(counts.any(axis=1))
        firsts, lasts = used.argmax(axis=1), SYMBOLS - 1 - used[:, ::-1].argmax(axis=1)
        ends = zip(firsts.tolist(), lasts.tolist(), bits.tolist(), strict=True)
        parts = zip(marks.reshape(counts.shape), shares, classes, ends, strict=True)
        return [cls(own[: int(table.max()) + 1], share, table, *end) for own, share, table, end in parts]

    @property
    def size(self) -> int:
        """Bytes of the block, but for rounding."""
        packed = -(-3 * len(self.classes) // 8) if len(self.marks) > 1 else 0
        return 3 + packed + len(self.marks) * (self.last - self.first + 1) + _STATES + self.bits // (8 * SHARES)

    def encode(self, block: NDArray[np.uint8]) -> bytes:
        """The block with these tables."""
        head = bytes([self.first, self.last - self.first, len(self.marks) - 1])
        if len(self.marks) > 1:
            head += np.packbits(self.classes[:, None] >> np.arange(3) & 1, bitorder="little").tobytes()
        shares = np.zeros((_TABLES, SYMBOLS), dtype=np.uint16)
        shares[: len(self.shares)] = self.shares
        stream = _native.encode_block(block.data, self.classes.data, shares.reshape(-1).data)
        return head + self.marks[:, self.first : self.last + 1].tobytes() + stream


def _classes(blocks: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Classes of each block's groups by their mean byte, in the finest steps of which eight hold nine in ten groups.

    All classes from 0 to the largest one are used.
    """
    found = []
    for same in ([block for block in blocks if len(block) == BLOCK], [block for block in blocks if len(block) < BLOCK]):
        if same:
            found += list(_classes_of(same))
    return found


def _classes_of(blocks: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """(blocks, groups) classes of blocks of the same length."""
    groups = -(-len(blocks[0]) // _GROUP)
    sums = np.zeros((len(blocks), groups), dtype=np.uint32)
    for block, own in zip(blocks, sums, strict=True):
        _native.sum_groups(block.data, own.data)
    sizes = np.full(groups, _GROUP, dtype=np.int64)
    sizes[-1] = len(blocks[0]) - _GROUP * (groups - 1)
    halves = (4 * sums.astype(np.int64) + sizes) // (2 * sizes)
    ordered = np.sort(halves.astype(np.uint16), axis=1, kind="stable").astype(
        np.int64
    )  # a radix sort; means are below 2^9 halves
    low, middle, high = (ordered[:, place, None] for place in (groups // 20, groups // 2, -1 - groups // 20))
    shift = np.zeros((len(blocks), 1), dtype=np.int64)
    for _ in range(6):  # means are below 2^9 halves
        shift += (high >> shift) - (low >> shift) >= _TABLES
    steps = ((halves >> shift) - (middle >> shift) + _TABLES // 2).clip(0, _TABLES - 1)
    used = np.zeros((len(blocks), _TABLES), dtype=bool)
    np.put_along_axis(used, steps, True, axis=1)
    return np.asarray(np.take_along_axis(used.cumsum(axis=1) - 1, steps, axis=1), dtype=np.uint8)
