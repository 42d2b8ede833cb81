"""What both sides of a difference share: symbols of differences, contexts of elements, and the order in which they are coded.

docs/format.md, "Differences", is the normative text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opq.codec.fast_section import block_rows
from opq.codec.fast_tables import MAX_CONTEXTS

KEYS = 256
"""The number of keys that elements may have."""

MOST_CONTEXTS, ENOUGH = 64, 256
"""The largest number of contexts; and elements for each of them, at least, so that tables cost little."""

LINE = 32
"""Elements of a line, which have one context."""

DIRECT = 16
"""Magnitudes below this have tokens of their own; a larger one has that of its octave."""

_FIRST_OCTAVE = 4
MOST_SYMBOLS = 2 * (DIRECT + 63 - _FIRST_OCTAVE) + 1
"""Of differences below 2^64 in magnitude: 0, and two signs of each other token."""


def largest_contexts(count: int) -> int:
    """The largest number of contexts of so many elements."""
    return max(min(count // ENOUGH, MOST_CONTEXTS), 1)


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

    def spread(self, rows: NDArray[np.generic] | None, columns: NDArray[np.generic] | None) -> NDArray[np.int16]:
        """The sum of the classes of each element's row and column, as int16."""
        total = np.zeros(len(self.keys), dtype=np.int16)
        if rows is not None:
            total += np.repeat(rows.astype(np.int16), self.rows)
        if columns is not None:
            total.reshape(-1, self.columns)[:] += columns.astype(np.int16)
        return total


@dataclass(frozen=True)
class Group:
    """Elements of up to 16 neighbouring contexts, in lines of one context.

    Args:
        first: The first of these contexts.
        contexts: How many they are.
        classes: uint8 context of each line, less `first`.
        spans: For each context with elements: where it starts in the lines, and where in the order, and how many it has.
    """

    first: int
    contexts: int
    classes: NDArray[np.uint8]
    spans: Sequence[tuple[int, int, int]]

    @property
    def blocks(self) -> range:
        """The first line of each stream."""
        return range(0, len(self.classes), block_rows(LINE))


def in_contexts(contexts: NDArray[np.uint8], count: int) -> tuple[NDArray[np.intp], list[Group]]:
    """The order in which elements are coded: those of context 0 first; and their groups.

    Args:
        contexts: The context of each element, below `count`.
        count: The number of contexts.
    """
    order = contexts.argsort(kind="stable")
    sizes = np.bincount(contexts, minlength=count)
    starts = sizes.cumsum() - sizes
    groups = []
    for first in range(0, count, MAX_CONTEXTS):
        within = range(first, min(first + MAX_CONTEXTS, count))
        lines = -(-sizes[within.start : within.stop] // LINE)
        begins = (lines.cumsum() - lines) * LINE
        if lines.any():
            classes = np.repeat(np.arange(len(within), dtype=np.uint8), lines)
            spans = [(int(begins[n - first]), int(starts[n]), int(sizes[n])) for n in within if sizes[n]]
            groups.append(Group(first, len(within), classes, spans))
    return order, groups


def octaves(magnitudes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """floor(log2) of positive integers."""
    found = np.frexp(magnitudes.astype(np.float64))[1].astype(np.int64) - 1
    # Of integers above 2^53 the float may be rounded up to the next power of two.
    return np.asarray(found - ((magnitudes >> found.astype(np.uint64)) == 0), dtype=np.int64)


def magnitudes_of(differences: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Magnitudes; that of -2^63 too."""
    words = differences.view(np.uint64)
    return np.where(differences < 0, ~words + np.uint64(1), words)


def symbols_of(differences: NDArray[np.int64]) -> NDArray[np.uint8]:
    """0 for 0; 2 t - 1 for a positive and 2 t for a negative difference of token t."""
    changed = np.flatnonzero(differences)  # often few
    chosen = differences[changed]
    magnitudes = magnitudes_of(chosen)
    tokens = magnitudes.astype(np.int64)
    large = np.flatnonzero(magnitudes >= DIRECT)
    tokens[large] = octaves(magnitudes[large]) + DIRECT - _FIRST_OCTAVE
    symbols = np.zeros(len(differences), dtype=np.uint8)
    symbols[changed] = 2 * tokens - (chosen > 0)
    return symbols


def octaves_of(symbols: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """How many low bits of each magnitude follow as raw bits."""
    tokens = (symbols + 1) >> 1
    return np.where(tokens < DIRECT, 0, tokens - np.uint8(DIRECT - _FIRST_OCTAVE)).astype(np.uint8)


def differences_of(symbols: NDArray[np.uint8], low: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Inverse of `symbols_of`.

    Args:
        symbols: uint8.
        low: The low bits of each magnitude whose symbol is not 0, as many as `octaves_of` says.
    """
    changed = np.flatnonzero(symbols)
    chosen = symbols[changed]
    bits = octaves_of(chosen).astype(np.uint64)
    tokens = ((chosen.astype(np.uint16) + 1) >> 1).astype(np.uint64)
    magnitudes = np.where(bits > 0, (np.uint64(1) << bits) | low, tokens)
    differences = np.zeros(len(symbols), dtype=np.int64)
    differences[changed] = np.where(chosen & 1 == 0, ~magnitudes + np.uint64(1), magnitudes).view(np.int64)
    return differences


def raw_spans(octaves: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """(number of raw bits, elements that have so many), ascending."""
    counts = np.bincount(octaves)
    for bits in np.flatnonzero(counts[1:]) + 1:
        yield int(bits), np.flatnonzero(octaves == bits)
