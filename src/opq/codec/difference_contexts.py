"""Choose the contexts of differences: classes of rows, columns and keys whose sum follows the logarithm of a difference.

How far an element moves is about a product: of its row, its column, and the unit of its last place, which its key gives. So
logarithms add up, and the sum of three classes is one of a few contexts with static tables. A writer is free in this choice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opq.codec import _native
from opq.codec.byte_planes import estimate_pack
from opq.codec.difference_layout import DIRECT, FIRST_OCTAVE, KEYS, MOST_SYMBOLS, SUMS, Axis, Grid, largest_contexts, symbols_of
from opq.codec.difference_stream import Classes, encode_differences, symbols_in
from opq.codec.fast_tables import SYMBOLS, shares_of, symbol_bits, table_bytes

_CONTEXTS = 32
_PER_OCTAVE = 2
"""Classes in an octave."""

_LARGEST, _SMALLEST = 16.0, 2.0**-10
"""Limits of a magnitude, or of a mean of many, in units of what is expected of it."""

_RAREST = 2.0**-20
"""The smallest mean of a key."""

_OUTSIDE = 0.001
"""The share of elements below the first context, and above the last one, that have these contexts."""


_Tried = tuple[Classes, NDArray[np.uint32]]
"""Classes, and how often each symbol occurs in each of their contexts."""

_TOKENS = np.minimum(np.arange(SYMBOLS), MOST_SYMBOLS - 1) + 1 >> 1
_MAGNITUDES = np.where(_TOKENS < DIRECT, _TOKENS, np.minimum(1.5 * 2.0 ** (_TOKENS - DIRECT + FIRST_OCTAVE), 2.0**24))
"""About the mean magnitude of each symbol; the few that are larger say nothing of the others."""


def encode_best(differences: NDArray[np.int64], grid: Grid) -> bytes:
    """Encode differences in the contexts of those tried that take the fewest bytes.

    Args:
        differences: int64, at least one, in one dimension.
        grid: Where the elements are, and their keys.
    """
    symbols = symbols_of(differences)
    of_keys = grid.counts(symbols, keys=np.arange(KEYS, dtype=np.uint8))[:KEYS]
    tried = [(Classes(), of_keys.sum(axis=0, keepdims=True, dtype=np.uint32))]
    if largest_contexts(len(symbols)) > 1:
        tried += _of_keys(of_keys)
        if len(grid.rows) > 1:
            tried += _of_axes(symbols, of_keys, grid)
    best, _ = min(tried, key=lambda pair: _bits(*pair))
    return encode_differences(differences, grid, best)


def _bits(classes: Classes, counts: NDArray[np.uint32]) -> int:
    """Bits of differences in these contexts, in 4096ths, of tables and of classes."""
    counts = counts[:, : symbols_in(counts)]
    tables = table_bytes(counts)
    axes = [axis for axis in (classes.rows, classes.columns, classes.keys) if axis is not None]
    side = estimate_pack([np.ascontiguousarray(tables.T)]) + (estimate_pack(axes) if axes else 0)
    return int(symbol_bits(counts, shares_of(tables)[:, : counts.shape[1]]).sum()) + 8 * 4096 * side


def _of_keys(counts: NDArray[np.uint32]) -> list[_Tried]:
    """Contexts from classes of keys.

    Args:
        counts: (KEYS, SYMBOLS): how often each symbol occurs with each key.
    """
    classes, sums = _classes_of_keys(counts), np.zeros((SUMS, SYMBOLS), dtype=np.uint32)
    for key in np.flatnonzero(counts.any(axis=1)):
        sums[classes[key]] += counts[key]
    return _limited(sums, keys=_unless_all_0(classes))


def _of_axes(symbols: NDArray[np.uint8], counts: NDArray[np.uint32], grid: Grid) -> list[_Tried]:
    """Contexts from classes of rows, of the columns of a matrix, and of keys."""
    relative = np.minimum(_MAGNITUDES / _means(counts)[:, None], _LARGEST)
    row_sums, by_column = np.zeros(len(grid.rows)), np.zeros(grid.columns)

    def add_up(factors: NDArray[np.float64], row_sums: NDArray[np.float64], column_sums: NDArray[np.float64]) -> None:
        table, sums = relative.reshape(-1).data, (row_sums.data, column_sums.data)
        _native.sum_differences(*grid.arguments(), symbols.data, table, factors.data, _LARGEST, *sums)

    add_up(np.ones(len(grid.rows)), row_sums, np.zeros(grid.columns))
    by_row = np.maximum(row_sums / grid.rows, _SMALLEST)
    rows, columns, keys = _unless_all_0(_in_octaves(by_row)), None, _unless_all_0(_classes_of_keys(counts))
    if grid.columns:
        add_up(1.0 / by_row, row_sums, by_column)
        columns = _unless_all_0(_in_octaves(np.maximum(by_column / len(grid.rows), _SMALLEST)))
    return _limited(grid.counts(symbols, rows, columns, keys), rows, columns, keys)


def _limited(counts: NDArray[np.uint32], rows: Axis = None, columns: Axis = None, keys: Axis = None) -> list[_Tried]:
    """These classes in a limited number of contexts; none if that is 1.

    Args:
        counts: (SUMS, SYMBOLS): how often each symbol occurs with each sum of classes.
        rows: The classes of rows.
        columns: The classes of columns.
        keys: The classes of keys.
    """
    sizes = counts.sum(axis=1, dtype=np.int64)
    shares = sizes.cumsum() / sizes.sum()
    first, last = (int(place) for place in shares.searchsorted((_OUTSIDE, 1.0 - _OUTSIDE)))
    count = min(last - first + 1, _CONTEXTS, largest_contexts(int(sizes.sum())))
    classes = Classes(rows, columns, keys, min(first + (last - first + 1 - count) // 2, 255), count)
    return [(classes, classes.gathered(counts))] if count > 1 else []


def _means(counts: NDArray[np.uint32]) -> NDArray[np.float64]:
    """The mean magnitude of each key."""
    return np.asarray(np.maximum(counts @ _MAGNITUDES / np.maximum(counts.sum(axis=1), 1), _RAREST))


def _classes_of_keys(counts: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Classes of keys from their means, the smallest of those that occur for the others."""
    octaves, seen = _in_octaves(_means(counts)), counts.any(axis=1)
    octaves[~seen] = octaves[seen].min()
    return np.asarray(octaves - octaves.min(), dtype=np.uint8)


def _in_octaves(means: NDArray[np.float64]) -> NDArray[np.int64]:
    """Logarithms of positive numbers, in fractions of octaves."""
    return np.asarray(np.rint(_PER_OCTAVE * np.log2(means)), dtype=np.int64)


def _unless_all_0(classes: NDArray[np.int64] | NDArray[np.uint8]) -> Axis:
    """Classes from 0 on; None if all are the same."""
    found = np.asarray(classes - classes.min(), dtype=np.uint8)
    return found if found.any() else None
