"""Tables of probabilities and classes of rows and columns, for fast sections.

All arithmetic is on integers, so that every machine gives the same tables. docs/format.md, "Fast sections", is the normative
text.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opq.codec import _native
from opq.errors import FormatError

SHARES = 4096
"""The sum of the shares of a table."""

SYMBOLS = 256
MAX_CONTEXTS = 16

_CODES = np.arange(81)
_WEIGHTS: NDArray[np.int64] = np.where(_CODES < 16, _CODES, (8 + _CODES % 8) << np.maximum(_CODES // 8 - 1, 0))
"""The weight of each byte of a table: 0 to 15, then eight numbers in each octave, up to 4096."""

# Bits of a symbol of each share, in 4096ths.
_BITS: NDArray[np.int64] = np.rint(4096 * (12 - np.log2(np.maximum(np.arange(SHARES + 1), 1)))).astype(np.int64)


def magnitude_classes(sums: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Quarters of octaves of mean magnitudes.

    Args:
        sums: Sum of the magnitudes of each row or column, below 2^45.
        count: Number of elements in each.

    Returns:
        For each, with x = max(1, floor(64 sum / count)) and e = floor(log2 x): 4 e + floor(4 x / 2^e).
    """
    x = np.maximum((sums << 6) // count, 1)
    exponents = np.frexp(x.astype(np.float64))[1].astype(np.int64) - 1
    return np.asarray(4 * exponents + ((x << 2) >> exponents), dtype=np.int64)


def table_bytes(counts: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """The bytes of tables whose shares are nearly proportional to counts.

    Args:
        counts: (tables, symbols) uint32, not all 0. A table without counts gets the bytes of the one before, or of the first
            that has some.

    Returns:
        (tables, symbols) uint8; at least 1 where the count is not 0.
    """
    used = _without_empty_rows(counts.astype(np.int64))
    totals = used.sum(axis=1, keepdims=True)
    sixteenths = (used * 16 * SHARES + totals // 2) // totals
    middles = 8 * (_WEIGHTS[1:] + _WEIGHTS[:-1])
    codes = middles.searchsorted(sixteenths, side="right")
    return np.asarray(np.maximum(codes, used > 0), dtype=np.uint8)


def _without_empty_rows(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    used = np.flatnonzero(counts.any(axis=1))
    return counts[used[np.maximum(used.searchsorted(np.arange(len(counts)), side="right") - 1, 0)]]


def shares_of(codes: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The shares of tables from their bytes, untrusted.

    Args:
        codes: (tables, symbols) uint8.

    Returns:
        (tables, SYMBOLS) uint16; each row sums to SHARES.

    Raises:
        FormatError: A byte is too large, or a table has no share for its most frequent symbol.
    """
    if codes.size and int(codes.max()) >= len(_WEIGHTS):
        raise FormatError("codes", f"a byte of a table must be at most {len(_WEIGHTS) - 1}, got {codes.max()}")
    weights = _WEIGHTS[codes]
    totals = weights.sum(axis=1, keepdims=True)
    if not totals.all():
        raise FormatError("codes", "a table has no symbols")
    shares = np.where(weights > 0, np.maximum(weights * SHARES // totals, 1), 0)
    largest = weights.argmax(axis=1)
    shares[np.arange(len(shares)), largest] += SHARES - shares.sum(axis=1)
    if (shares[np.arange(len(shares)), largest] < 1).any():
        raise FormatError("codes", "a table has no share left for its most frequent symbol")
    whole = np.zeros((len(shares), SYMBOLS), dtype=np.uint16)
    whole[:, : shares.shape[1]] = shares
    return whole


def decoding_tables(shares: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """Entries that decode: the share less 1, the place in it shifted by 12 bits, and the symbol shifted by 24.

    Args:
        shares: (tables, SYMBOLS) uint16; each row sums to SHARES.

    Returns:
        (tables * SHARES,) uint32.
    """
    tables = np.empty(len(shares) * SHARES, dtype=np.uint32)
    _native.fast_tables(np.ascontiguousarray(shares).reshape(-1).data, tables.data)
    return tables


def symbol_bits(counts: NDArray[np.uint32], shares: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Bits of symbols that occur this often, in 4096ths, rounded in each share; arrays of the same shape."""
    return np.asarray(counts * _BITS[shares], dtype=np.int64)
