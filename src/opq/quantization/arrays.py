"""Arrays of any library that follows the Python array API standard, NumPy and PyTorch among them."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

Array = Any
"""An array of any library that array-api-compat knows."""


def namespace(array: Array) -> Any:
    """The array API functions for `array`."""
    # NumPy's own, not array_api_compat's: importing those loads all of NumPy, its Fortran compiler included, for 0.1 s.
    return np if isinstance(array, np.ndarray) else array_namespace(array)


def working_copy(weight: Array, xp: Any) -> Array:
    """`weight` in the dtype in which it is rounded: float64 for float64, float32 for every other."""
    return weight if weight.dtype == xp.float64 else xp.astype(weight, xp.float32, copy=False)


def scalar_like(value: float | Array, like: Array, xp: Any) -> Array:
    """A zero-dimensional array with the dtype and device of `like`.

    Not a Python number: some libraries turn a division by a number into a multiplication by its reciprocal, which rounds
    differently.
    """
    return xp.asarray(value, dtype=like.dtype, device=device(like))
