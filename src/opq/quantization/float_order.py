"""Floating-point numbers as integers of the same order.

The order is totalOrder of IEEE 754. The ordinal of a nonnegative number is the number of values of its type between +0 and it,
so +0 has ordinal 0. The ordinal of a negative number is -1 minus the ordinal of its magnitude, so -0 has ordinal -1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_ordinals(array: NDArray[np.generic]) -> NDArray[np.signedinteger[Any]]:
    """The ordinals of floating-point numbers.

    Args:
        array: Numbers of 2, 4 or 8 bytes, any shape.

    Returns:
        Signed integers of the same size, in the same shape.
    """
    words: NDArray[np.signedinteger[Any]] = np.ascontiguousarray(array).view(f"i{array.dtype.itemsize}").reshape(array.shape)
    # The words of negative numbers increase with their magnitude, so all bits but the sign are inverted.
    return words ^ ((words >> (8 * array.dtype.itemsize - 1)) & np.iinfo(words.dtype).max)


def from_ordinals(ordinals: NDArray[np.signedinteger[Any]], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Inverse of `to_ordinals`.

    Args:
        ordinals: Signed integers of the size of `dtype`.
        dtype: The floating-point dtype.
    """
    return (ordinals ^ ((ordinals >> (8 * dtype.itemsize - 1)) & np.iinfo(ordinals.dtype).max)).view(dtype)
