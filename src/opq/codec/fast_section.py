"""Decode fast sections: static tables, 32 interleaved rANS states, streams over blocks of rows that are decoded alone.

docs/format.md, "Fast sections", is the normative text. `opq.codec.fast_encoder` writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from opq.codec import _native
from opq.codec.byte_planes import decode_pack
from opq.codec.byte_reader import ByteReader
from opq.codec.code_stream import Geometry
from opq.codec.fast_tables import MAX_CONTEXTS, SHARES, SYMBOLS, decoding_tables, shares_of
from opq.errors import FormatError

FAST = 31
"""The lowest five bits of the first byte of a fast section."""

TRELLIS = 32
"""The bit of the first byte that says that the codes follow a trellis; all higher bits are 0."""

LANES = 32
_BLOCK = 2**18
_LARGEST_CODE = 2**24 - 1
_WHERE = "codes"

Values = Callable[[NDArray[np.int32], int], NDArray[np.generic]]
"""Gives the values of codes in rows of one set, in an array of the same shape."""


def is_fast(section: bytes | memoryview) -> bool:
    """Whether a section of codes is a fast one."""
    return len(section) > 0 and section[0] & 31 == FAST


def block_rows(columns: int) -> int:
    """The number of rows of each stream but the last: a multiple of 32, and if possible at most 2^18 codes."""
    return LANES * max(_BLOCK // (LANES * columns), 1)


def largest_contexts(count: int) -> int:
    """The largest number of contexts of a weight with so many elements; 0 if it is too small for a fast section."""
    return min(count // SHARES, MAX_CONTEXTS)


def most_patches(count: int) -> int:
    """The largest number of patches of a weight with so many elements."""
    return count // 64


@dataclass(frozen=True)
class Block:
    """Rows of a weight that are decoded alone.

    Args:
        top: The first row.
        rows: Their number.
        stream: Their stream, untrusted.
    """

    top: int
    rows: int
    stream: memoryview


class FastSection:
    """A fast section, parsed: everything but its streams is decoded.

    Args:
        section: The bytes, untrusted.
        shape: Shape of the weight, at least one element.

    Raises:
        FormatError: The section does not belong to a weight of this shape.

    Attributes:
        rows: Number of rows.
        columns: Number of columns.
        trellis: Whether codes follow a trellis.
        blocks: The blocks of rows, in order.
    """

    def __init__(self, section: bytes | memoryview, shape: tuple[int, ...]) -> None:
        geometry = Geometry.of(shape)
        self.rows, self.columns = geometry.outputs, geometry.inputs * geometry.positions
        count = self.rows * self.columns
        reader = ByteReader(section, _WHERE)
        first, below, last, more = reader.take(4)
        if first & 31 != FAST or first > FAST + TRELLIS:
            raise FormatError(_WHERE, f"the first byte of a fast section must be {FAST} or {FAST + TRELLIS}, got {first}")
        self.trellis = first == FAST + TRELLIS
        if self.trellis and geometry.positions > 1:
            raise FormatError(_WHERE, "codes of a weight with kernels cannot follow the trellis")
        if last < 1 or below > 128 or last - below > 127:
            problem = f"the range of symbols must be 2 or more numbers from -128 to 127, got {-below} to {last - below}"
            raise FormatError(_WHERE, problem)
        self._lowest, self._contexts = -below, more + 1
        if self._contexts > largest_contexts(count):
            problem = f"there must be at most {largest_contexts(count)} contexts of {count:,} elements, got {self._contexts}"
            raise FormatError(_WHERE, problem)
        self._base = reader.take(1)[0] if more else 0
        self._classes = [np.zeros(size, dtype=np.uint8) for size in (self.rows, self.columns)]
        if more:
            self._classes = _bytes_of(reader, [(self.rows,), (self.columns,)])
        (tables,) = _bytes_of(reader, [(last + 1, self._contexts * (1 + self.trellis))])
        self._positions, self._patches = _decode_patches(reader, count)
        height = block_rows(self.columns)
        tops = range(0, self.rows, height)
        lengths = [reader.varint() for _ in tops[1:]]
        rest, at, self.blocks = reader.rest(), 0, []
        for top, length in zip(tops, [*lengths, None], strict=True):
            end = len(rest) if length is None else at + length
            if end > len(rest):
                raise FormatError(_WHERE, f"a stream must end within the section's {len(rest):,} bytes, got {end:,}")
            self.blocks.append(Block(top, min(height, self.rows - top), rest[at:end]))
            at = end
        shares = shares_of(np.ascontiguousarray(tables.T))
        self._used = shares.any(axis=0)
        self._tables = decoding_tables(shares)

    @cached_property
    def symbol_codes(self) -> NDArray[np.int32]:
        """The code of each of 256 symbols; with a trellis (512,), for quantizer 0 and then for quantizer 1."""
        numbers = np.arange(SYMBOLS, dtype=np.int32) + np.int32(self._lowest)
        numbers[~self._used] = 0
        if not self.trellis:
            return numbers
        return np.concatenate([2 * numbers, 2 * numbers - np.sign(numbers)])

    @property
    def patched_codes(self) -> list[NDArray[np.int32]]:
        """The codes of all patches, in one array; no array if there are none."""
        return [self._patches] if len(self._patches) else []

    def decode(self, block: Block, values: NDArray[np.generic], sets: NDArray[np.uint8], output: NDArray[np.generic]) -> None:
        """Decode a block without its patches.

        Args:
            block: One of the blocks.
            values: The value of each of `symbol_codes`, in as many rows as there are sets of values.
            sets: (rows,) the set of each row of the weight.
            output: Of the same dtype, in one dimension; receives the block's values, row-major.

        Raises:
            FormatError: The stream does not hold exactly these rows.
        """
        classes = self._classes[0][block.top : block.top + block.rows]
        size = output.dtype.itemsize
        matrix = (block.rows, self.columns, classes.data, self._classes[1].data, self._contexts, self._base)
        table, found = (array.reshape(-1).view(np.uint8).data for array in (values, output))
        of_rows = sets[block.top : block.top + block.rows].data
        more = block.stream, self._tables.data, table, size, of_rows, found
        if not _native.fast_decode(*matrix, self.trellis, self._lowest, *more):
            raise FormatError(_WHERE, "the data do not end with the last weight")

    def patches(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Positions of patches between two positions, row-major, less the first; and the codes that belong there."""
        within = slice(*self._positions.searchsorted([start, stop]))
        return self._positions[within] - start, self._patches[within]

    def jobs(
        self,
        values: Values,
        output: NDArray[np.generic],
        blocks: Iterable[Block] | None = None,
        sets: NDArray[np.uint8] | None = None,
    ) -> list[Callable[[], None]]:
        """Functions that each decode a block, with its patches. They may be called in any order and from several threads.

        Args:
            values: Gives the values of codes.
            output: In one dimension; receives the values of the blocks, row-major and one after the other.
            blocks: Blocks that follow each other; None for all.
            sets: (rows,) the set of values of each row; None: set 0.
        """
        of_rows = np.zeros(self.rows, dtype=np.uint8) if sets is None else sets
        table = np.stack([values(self.symbol_codes, number) for number in range(int(of_rows.max()) + 1)])
        chosen = self.blocks if blocks is None else list(blocks)
        start = chosen[0].top * self.columns if chosen else 0

        def job(block: Block) -> None:
            first, last = block.top * self.columns, (block.top + block.rows) * self.columns
            part = output[first - start : last - start]
            self.decode(block, table, of_rows, part)
            at, codes = self.patches(first, last)
            if not len(at):
                return
            numbers = of_rows[(first + at) // self.columns]
            for number in np.unique(numbers) if len(table) > 1 else (0,):
                part[at[numbers == number]] = values(codes[numbers == number], int(number))

        return [lambda block=block: job(block) for block in chosen]  # type: ignore[misc]


def _bytes_of(reader: ByteReader, shapes: list[tuple[int, ...]]) -> list[NDArray[np.uint8]]:
    """Arrays of bytes in a pack after its length."""
    pack = reader.take(reader.varint())
    return [array.view(np.uint8) for array in decode_pack(pack, shapes, [np.dtype(np.uint8)] * len(shapes))]


def _decode_patches(reader: ByteReader, count: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    number = reader.varint(most_patches(count))
    if not number:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32)
    kinds: list[np.dtype[np.generic]] = [np.dtype(np.uint32)] * 2
    gaps, folded = (array.astype(np.int64) for array in decode_pack(reader.take(reader.varint()), [(number,)] * 2, kinds))
    positions = (gaps + 1).cumsum() - 1
    codes = (folded >> 1) ^ -(folded & 1)
    if int(positions[-1]) >= count:
        raise FormatError(_WHERE, f"a patch must be at a position below {count:,}, got {int(positions[-1]):,}")
    if int(np.abs(codes).max()) > _LARGEST_CODE:
        raise FormatError(_WHERE, f"the magnitude of a code must be at most {_LARGEST_CODE:,}, got {np.abs(codes).max():,}")
    return positions, codes.astype(np.int32)
