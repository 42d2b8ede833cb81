"""Magnitudes as tokens and low bits, so that a table of at most 96 entries serves codes of any width.

A magnitude m < 16 is the token m. Above, the token names m's leading bit and the two bits under it, and the bits below those
go raw: with e = floor(log2 m), token = 16 + 4 (e - 4) + (m >> (e - 2)) mod 4, followed by e - 2 low bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DIRECT = 16
"""Magnitudes below this are their own token."""

TOKENS = DIRECT + 4 * 20
"""Number of tokens: magnitudes reach 2^24 - 1."""

_GROUP = np.arange(TOKENS - DIRECT)

LOW_BITS: NDArray[np.int64] = np.concatenate([np.zeros(DIRECT, dtype=np.int64), _GROUP // 4 + 2])
"""Raw bits that follow each token."""

FIRST: NDArray[np.int64] = np.concatenate([np.arange(DIRECT), (4 + _GROUP % 4) << (_GROUP // 4 + 2)])
"""Smallest magnitude of each token."""


def tokenize(magnitudes: NDArray[np.int32]) -> NDArray[np.int32]:
    """The token of each magnitude in [0, 2^24)."""
    tokens = magnitudes.astype(np.int32, copy=True)
    large = np.flatnonzero(tokens >= DIRECT)
    if len(large):
        tokens[large] = np.searchsorted(FIRST, tokens[large], side="right") - 1
    return tokens
