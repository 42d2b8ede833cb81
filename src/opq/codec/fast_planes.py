"""Byte planes by static tables, in blocks that are decoded alone: the fast counterpart of coded planes in `opq.codec.byte_planes`.

docs/format.md, "Fast planes", is the normative text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from opq.codec import _native
from opq.codec.byte_reader import ByteReader, varint
from opq.codec.fast_tables import SHARES, SYMBOLS, coded_bits, shares_of, table_bytes
from opq.errors import FormatError

FEWEST = 4096
"""Bytes of the smallest fast plane."""

BLOCK = 2**18
"""Bytes of a plane that are decoded alone; the last block of a plane has the rest."""

_GROUP = 256
_TABLES = 8
_STATES = 4 * 32
_PIECE = 16 * BLOCK
_SAVING = 32  # a block is coded if that saves at least one byte in so many
_ONE_TABLE = np.zeros(BLOCK // _GROUP, dtype=np.uint8)


def encode_plane(plane: NDArray[np.uint8]) -> bytes | None:
    """Encode a plane.

    Args:
        plane: The bytes, at least FEWEST.

    Returns:
        What follows the plane's first number in a pack; None if it would not be shorter than the plane.
    """
    pieces = [plane[start : start + _PIECE] for start in range(0, len(plane), _PIECE)]
    blocks = [
        block for piece in pieces for block in _encode_blocks([piece[at : at + BLOCK] for at in range(0, len(piece), BLOCK)])
    ]
    if sum(map(len, blocks)) >= len(plane):
        return None
    return b"".join([*(varint(len(block)) for block in blocks), *blocks])


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


def _encode_blocks(blocks: Sequence[NDArray[np.uint8]]) -> list[bytes]:
    """Each block in the form that its counts of bytes ask for."""
    counts = np.zeros((len(blocks), _TABLES, SYMBOLS), dtype=np.uint32)
    for block, found in zip(blocks, counts, strict=True):
        _native.count_groups(block.data, _ONE_TABLE[: -(-len(block) // _GROUP)].data, found.reshape(-1).data)
    encoded = []
    for block, found in zip(blocks, counts[:, 0], strict=True):
        used = np.flatnonzero(found)
        if len(used) == 1:
            encoded.append(bytes([used[0]]))
            continue
        first, last = int(used[0]), int(used[-1])
        alone = _Tables(found[None, first : last + 1], _ONE_TABLE[: -(-len(block) // _GROUP)])
        if not _pays(alone, len(block)):
            encoded.append(block.tobytes())
            continue
        classes = _classes(block)
        by_class = np.zeros((_TABLES, SYMBOLS), dtype=np.uint32)
        _native.count_groups(block.data, classes.data, by_class.reshape(-1).data)
        several = _Tables(by_class[: int(classes.max()) + 1, first : last + 1], classes)
        encoded.append(_encode_block(block, first, min(alone, several, key=lambda tables: tables.bits)))
    return encoded


class _Tables:
    """Tables of a block.

    Args:
        counts: (tables, symbols) uint32: how often each symbol occurs.
        classes: (groups,) uint8: the table of each group.

    Attributes:
        bits: Bits of all that a block holds but its states, in 4096ths.
    """

    def __init__(self, counts: NDArray[np.uint32], classes: NDArray[np.uint8]) -> None:
        self.classes = classes
        self.marks = table_bytes(counts)
        self.shares = shares_of(self.marks)
        whole = np.zeros((len(counts), SYMBOLS), dtype=np.uint32)
        whole[:, : counts.shape[1]] = counts
        self.bits = coded_bits(whole, self.shares) + 8 * SHARES * (self.marks.size + len(self.packed_classes()))

    def packed_classes(self) -> bytes:
        """Three bits for each group, the lowest first; nothing for one table."""
        if len(self.marks) == 1:
            return b""
        return np.packbits(self.classes[:, None] >> np.arange(3) & 1, bitorder="little").tobytes()


def _pays(tables: _Tables, count: int) -> bool:
    taken = tables.bits // (8 * SHARES) + 4 + _STATES
    return taken * _SAVING <= count * (_SAVING - 1)


def _classes(block: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Classes of groups by their mean byte, in the finest steps of which eight hold nine in ten groups."""
    groups = -(-len(block) // _GROUP)
    sums = np.zeros(groups, dtype=np.uint32)
    _native.sum_groups(block.data, sums.data)
    sizes = np.full(groups, _GROUP, dtype=np.int64)
    sizes[-1] = len(block) - _GROUP * (groups - 1)
    halves = (4 * sums.astype(np.int64) + sizes) // (2 * sizes)
    ordered = np.sort(halves)
    shift = 0
    while (ordered[-1 - groups // 20] >> shift) - (ordered[groups // 20] >> shift) >= _TABLES:
        shift += 1
    classes = (halves >> shift) - (ordered[groups // 2] >> shift) + _TABLES // 2
    classes = classes.clip(0, _TABLES - 1)
    return (classes - classes.min()).astype(np.uint8)


def _encode_block(block: NDArray[np.uint8], first: int, tables: _Tables) -> bytes:
    shares = np.zeros((_TABLES, SYMBOLS), dtype=np.uint16)
    shares[: len(tables.shares), first:] = tables.shares[:, : SYMBOLS - first]
    stream = _native.encode_block(block.data, tables.classes.data, shares.reshape(-1).data)
    head = bytes([first, tables.marks.shape[1] - 1, len(tables.marks) - 1])
    return head + tables.packed_classes() + tables.marks.tobytes() + stream
