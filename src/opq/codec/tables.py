"""Frequency tables: one byte a symbol in the file, exact integer intervals for the coder.

A byte b > 0 stands for the weight (8 + (b-1) mod 8) << ((b-1) div 8), a float of three mantissa bits; 0 stands for 0. From
the weights follow frequencies that add up to 2^24 by integer arithmetic alone, and constriction's categorical model is given
these frequencies so that it reproduces them exactly. No rounding of any machine can therefore move an interval.
"""

from __future__ import annotations

import constriction
import numpy as np
from numpy.typing import NDArray

from opq.errors import FormatError

PRECISION = 24
"""Bits of a probability."""

_BYTES = np.arange(1, 256, dtype=np.int64)
_WEIGHTS = np.concatenate([[0], (8 + (_BYTES - 1) % 8) << ((_BYTES - 1) // 8)])
# Halfway between neighbours: where the nearest byte changes.
_MIDPOINTS = (_WEIGHTS[1:-1] + _WEIGHTS[2:]) / 2.0


def encode_table(counts: NDArray[np.integer]) -> bytes:
    """One byte a symbol for `counts` >= 0, each below 2^31; a count above 0 never becomes 0."""
    scaled = 8.0 * counts
    return np.where(counts > 0, 1 + np.searchsorted(_MIDPOINTS, scaled), 0).astype(np.uint8).tobytes()


def frequencies(table: bytes) -> NDArray[np.int64]:
    """The frequency of each symbol of `table`, at least 1, together 2^24; `table` holds 2 to 2^12 bytes, not all zero."""
    weights = _WEIGHTS[np.frombuffer(table, dtype=np.uint8)]
    total = int(weights.sum())
    if total == 0:
        raise FormatError("frequency table", "every weight is zero")
    free = 2**PRECISION - len(weights)
    shares: NDArray[np.int64] = weights * free // total
    shares[int(np.argmax(weights))] += free - int(shares.sum())
    return np.asarray(shares + 1, dtype=np.int64)


def table_model(table: bytes) -> constriction.stream.model.Categorical:
    """The coder's model of `table`."""
    # The model adds 1 to every symbol and scales the rest to what is left of 2^24, here by exactly 1.
    shares = (frequencies(table) - 1).astype(np.float64)
    return constriction.stream.model.Categorical(shares, perfect=False)


def words_to_bytes(words: NDArray[np.uint32]) -> bytes:
    """A coder's words as bytes, lowest first; zero bytes at the very end are left out."""
    return words.astype("<u4").tobytes().rstrip(b"\0")


def bytes_to_coder(data: bytes) -> constriction.stream.stack.AnsCoder:
    """The coder whose words `words_to_bytes` wrote."""
    if data.endswith(b"\0"):
        raise FormatError("coded section", "it ends in a zero byte")
    words = np.frombuffer(data + b"\0" * (-len(data) % 4), dtype="<u4").astype(np.uint32)
    return constriction.stream.stack.AnsCoder(words) if len(words) else constriction.stream.stack.AnsCoder()
