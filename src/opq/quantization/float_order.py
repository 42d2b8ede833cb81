"""Floating-point numbers as integers of the same order.

The order is that of IEEE 754's totalOrder: the ordinal of a positive number tells how many numbers of its type lie below it
down to +0, which has 0; that of a negative number is -1 less the ordinal of its magnitude, so that -0 has -1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_ordinals(array: NDArray[np.generic]) -> NDArray[np.signedinteger[Any]]:
    """The ordinals of floating-point numbers of 2, 4 or 8 bytes: signed integers of as many bytes, in the same shape."""
    words: NDArray[np.signedinteger[Any]] = np.ascontiguousarray(array).view(f"i{array.dtype.itemsize}").reshape(array.shape)
    # The words of negative numbers fall where the numbers fall in magnitude: all bits but the sign turn round.
    return words ^ ((words >> (8 * array.dtype.itemsize - 1)) & np.iinfo(words.dtype).max)


def from_ordinals(ordinals: NDArray[np.signedinteger[Any]], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """The numbers of a floating-point dtype with these ordinals, which are integers of as many bytes."""
    return (ordinals ^ ((ordinals >> (8 * dtype.itemsize - 1)) & np.iinfo(ordinals.dtype).max)).view(dtype)
