"""Choose the contexts of differences: classes of rows, columns and keys whose sum follows the logarithm of a difference.

How far an element moves is about a product: of its row, its column, and the unit of its last place, which its key gives. So
logarithms add up, and the sum of three classes is one of a few contexts with static tables. A writer is free in this choice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opq.codec.byte_planes import estimate_pack
from opq.codec.difference_layout import KEYS, Grid, largest_contexts, magnitudes_of, symbols_of
from opq.codec.difference_stream import Classes, context_counts, encode_differences
from opq.codec.fast_tables import shares_of, symbol_bits, table_bytes

_CONTEXTS = 32
_PER_OCTAVE = 2
"""Classes in an octave."""

_LARGEST, _SMALLEST = 16.0, 2.0**-10
"""Limits of a magnitude, or of a mean of many, in units of what is expected of it."""

_RAREST = 2.0**-20
"""The smallest mean of a key."""

_OUTSIDE = 0.001
"""The share of elements below the first context, and above the last one, that have these contexts."""


def encode_best(differences: NDArray[np.int64], grid: Grid) -> bytes:
    """Encode differences in the contexts of those tried that take the fewest bytes.

    Args:
        differences: int64, at least one, in one dimension.
        grid: Where the elements are, and their keys.
    """
    symbols = symbols_of(differences)
    most = min(_CONTEXTS, largest_contexts(len(differences)))
    tried = [Classes()]
    if most > 1:
        tried += [classes for axes in (False, True) if (classes := _classes(differences, grid, most, axes)) is not None]
    best = min(tried, key=lambda classes: _bits(symbols, grid, classes))
    return encode_differences(differences, grid, best)


def _bits(symbols: NDArray[np.uint8], grid: Grid, classes: Classes) -> int:
    counts = context_counts(symbols, classes.of(grid), classes.count)
    size = int(np.flatnonzero(counts.any(axis=0))[-1]) + 1
    tables = table_bytes(counts[:, :size])
    axes = [axis for axis in (classes.rows, classes.columns, classes.keys) if axis is not None]
    side = estimate_pack([np.ascontiguousarray(tables.T)]) + (estimate_pack(axes) if axes else 0)
    return int(symbol_bits(counts, shares_of(tables)).sum()) + 8 * 4096 * side


def _classes(differences: NDArray[np.int64], grid: Grid, most: int, axes: bool) -> Classes | None:
    """Classes of keys, with `axes` of rows and columns too; None if that is one context."""
    changed = np.flatnonzero(differences)
    magnitudes = np.minimum(magnitudes_of(differences[changed]), np.uint64(2**24)).astype(np.float64)
    seen, keys = np.bincount(grid.keys, minlength=KEYS), grid.keys[changed]
    means = np.maximum(np.bincount(keys, magnitudes, KEYS) / np.maximum(seen, 1), _RAREST)
    of_keys, rows, columns = _in_octaves(means), None, None
    of_keys[seen == 0] = of_keys[seen > 0].min()
    if axes and len(grid.rows) > 1:
        rows, columns = _axes(np.minimum(magnitudes / means[keys], _LARGEST), changed, grid)
    used = [_from_zero(part) for part in (rows, columns, of_keys)]
    total = grid.spread(used[0], used[1])
    if used[2] is not None:
        total += used[2].astype(np.int16)[grid.keys]
    shares = np.bincount(total).cumsum() / len(total)
    first, last = shares.searchsorted((_OUTSIDE, 1.0 - _OUTSIDE))
    count = min(int(last - first) + 1, most)
    base = min(int(first) + (int(last - first) + 1 - count) // 2, 255)
    return Classes(used[0], used[1], used[2], base, count) if count > 1 else None


def _axes(
    relative: NDArray[np.float64], changed: NDArray[np.intp], grid: Grid
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Classes of rows, and of the columns of a matrix.

    Args:
        relative: Magnitudes of the differences that are not 0, in units of what their keys let expect.
        changed: Where these are.
        grid: Where all elements are.
    """
    sizes = np.asarray(grid.rows)
    row = sizes.cumsum().searchsorted(changed, side="right")
    by_row = np.maximum(np.bincount(row, relative, len(sizes)) / sizes, _SMALLEST)
    if not grid.columns:
        return _in_octaves(by_row), None
    relative = np.minimum(relative / by_row[row], _LARGEST)
    by_column = np.bincount(changed % grid.columns, relative, grid.columns) / len(sizes)
    return _in_octaves(by_row), _in_octaves(np.maximum(by_column, _SMALLEST))


def _in_octaves(means: NDArray[np.float64]) -> NDArray[np.int64]:
    """Logarithms of positive numbers, in fractions of octaves."""
    return np.asarray(np.rint(_PER_OCTAVE * np.log2(means)), dtype=np.int64)


def _from_zero(logarithms: NDArray[np.int64] | None) -> NDArray[np.uint8] | None:
    """The same as classes, the smallest of which is 0; None if all are."""
    if logarithms is None or (logarithms == logarithms[0]).all():
        return None
    return np.asarray(logarithms - logarithms.min(), dtype=np.uint8)
