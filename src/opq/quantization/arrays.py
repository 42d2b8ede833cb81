"""Helpers for arrays of NumPy, PyTorch, and other libraries that follow the Python array API standard."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

Array = Any
"""An array of any library that array-api-compat supports."""


def namespace(array: Array) -> Any:
    """The array API functions for `array`."""
    # array_api_compat.numpy imports all submodules of NumPy, f2py among them, which takes 0.1 s.
    return np if isinstance(array, np.ndarray) else array_namespace(array)


def working_copy(weight: Array, xp: Any) -> Array:
    """`weight` in the dtype in which it is rounded: float64 for float64, float32 for every other dtype."""
    return weight if weight.dtype == xp.float64 else xp.astype(weight, xp.float32, copy=False)


def array_like(value: float | Array, like: Array, xp: Any) -> Array:
    """A number as a zero-dimensional array, or a NumPy array, with the dtype and device of `like`.

    Some libraries turn a division by a Python number into a multiplication by its reciprocal, which rounds differently.
    """
    return xp.asarray(value, dtype=like.dtype, device=device(like))
