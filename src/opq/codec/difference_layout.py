"""What both sides of a difference share: symbols of differences, contexts of elements, and the order in which they are coded.

docs/format.md, "Differences", is the normative text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from opq.codec import _native
from opq.codec.fast_section import block_rows
from opq.codec.fast_tables import MAX_CONTEXTS, SYMBOLS

KEYS = 256
"""The number of keys that elements may have, and of classes."""

SUMS = 3 * (KEYS - 1) + 1
"""The number of sums of three classes."""

MOST_CONTEXTS, ENOUGH = 64, 256
"""The largest number of contexts; and elements for each of them, at least, so that tables cost little."""

LINE = 32
"""Elements of a line, which have one context."""

DIRECT = 16
"""Magnitudes below this have tokens of their own; a larger one has that of its octave."""

FIRST_OCTAVE = 4
"""The logarithm of DIRECT."""

MOST_SYMBOLS = 2 * (DIRECT + 63 - FIRST_OCTAVE) + 1
"""Of differences below 2^64 in magnitude: 0, and two signs of each other token."""

Axis = NDArray[np.uint8] | None
"""Classes of rows, columns or keys; None if all are 0."""

Arguments = tuple[memoryview, memoryview, memoryview, memoryview, memoryview]


def largest_contexts(count: int) -> int:
    """The largest number of contexts of so many elements."""
    return max(min(count // ENOUGH, MOST_CONTEXTS), 1)


def symbols_of(differences: NDArray[np.int64]) -> NDArray[np.uint8]:
    """0 for 0; 2 t - 1 for a positive and 2 t for a negative difference of token t."""
    symbols = np.empty(len(differences), dtype=np.uint8)
    _native.difference_symbols(differences.data, symbols.data)
    return symbols


@dataclass(frozen=True)
class Grid:
    """Where elements are and what the base says of them, which both sides know.

    Args:
        rows: The sizes of the rows, which lie behind each other, all positive.
        keys: uint8 key of each element, in one dimension.
        columns: The size of each row of a matrix; 0 if the rows are different tensors.
    """

    rows: Sequence[int]
    keys: NDArray[np.uint8]
    columns: int = 0

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum(self.rows, dtype=np.int64)

    def arguments(self, rows: Axis = None, columns: Axis = None, keys: Axis = None) -> Arguments:
        """What the native functions begin with, for these classes."""
        of_rows, of_columns, of_keys = (
            np.zeros(size, dtype=np.uint8) if axis is None else axis
            for axis, size in ((rows, len(self.rows)), (columns, self.columns), (keys, KEYS))
        )
        return self.keys.data, self._ends.data, of_rows.data, of_columns.data, of_keys.data

    def counts(
        self, symbols: NDArray[np.uint8], rows: Axis = None, columns: Axis = None, keys: Axis = None
    ) -> NDArray[np.uint32]:
        """(SUMS, SYMBOLS) uint32: how often each symbol occurs with each sum of classes."""
        counts = np.zeros((SUMS, SYMBOLS), dtype=np.uint32)
        _native.count_differences(*self.arguments(rows, columns, keys), symbols.data, counts.reshape(-1).data)
        return counts


@dataclass(frozen=True)
class Stream:
    """Lines of up to 16 neighbouring contexts, which are coded together.

    Args:
        first: The first of these contexts.
        contexts: How many they are.
        top: The first line.
        classes: uint8 context of each line, less `first`.
    """

    first: int
    contexts: int
    top: int
    classes: NDArray[np.uint8]

    @property
    def places(self) -> slice:
        """Where the elements of the lines are."""
        return slice(self.top * LINE, (self.top + len(self.classes)) * LINE)


def in_lines(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8], list[Stream]]:
    """The lines in which elements are coded, those of context 0 first.

    Args:
        sizes: The number of elements of each context.

    Returns:
        256 places where the elements of contexts begin, the context of each line, and the streams.
    """
    lines = -(-sizes // LINE)
    ends = lines.cumsum()
    places = np.zeros(KEYS, dtype=np.int64)
    places[: len(sizes)] = (ends - lines) * LINE
    contexts = np.repeat(np.arange(len(sizes), dtype=np.uint8), lines)
    streams, start = [], 0
    for first in range(0, len(sizes), MAX_CONTEXTS):
        count = min(len(sizes) - first, MAX_CONTEXTS)
        end = int(ends[first + count - 1])
        for top in range(start, end, block_rows(LINE)):
            of_stream = contexts[top : min(top + block_rows(LINE), end)] - np.uint8(first)
            streams.append(Stream(first, count, top, of_stream))
        start = end
    return places, contexts, streams
