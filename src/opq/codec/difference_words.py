"""Tensors as integers of the same order, whose differences are small where the values are near each other.

docs/format.md, "Differences", is the normative text.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.codec.byte_planes import is_valid
from opq.errors import FormatError

SUPPORTED = frozenset(name for name, dtype in dtypes.NUMPY.items() if dtype.itemsize <= 8)
"""Names of the dtypes whose tensors can be stored as a difference."""

_WHERE = "differences"
_MANTISSA = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
_FIRST_EXPONENT = {"float64": 896}
"""The exponent field of key 0, where there are more than 256."""


def changes(base: NDArray[np.generic], new: NDArray[np.generic]) -> NDArray[np.intp]:
    """Where two tensors of one dtype and shape differ in bits: positions in row-major order."""
    return np.flatnonzero(_unsigned(base) != _unsigned(new))


def zero_bits(array: NDArray[np.generic]) -> int:
    """How many low bits of all elements are 0, below the number of bits of an element."""
    words = _unsigned(array)
    used = int(np.bitwise_or.reduce(words)) if words.size else 0
    return (used & -used).bit_length() - 1 if used else 8 * array.dtype.itemsize - 1


def to_integers(array: NDArray[np.generic], shift: int) -> NDArray[np.int64]:
    """The integers of a tensor, in one dimension.

    Args:
        array: Of a dtype in SUPPORTED.
        shift: Number of low bits that are left out, below the bits of an element.

    Raises:
        FormatError: One of these bits is not 0.
    """
    bits = 8 * array.dtype.itemsize
    words = _unsigned(array)
    if shift and (words & words.dtype.type((1 << shift) - 1)).any():
        raise FormatError(_WHERE, f"the {shift} lowest bits of each element of the base must be 0")
    if array.dtype.name not in _MANTISSA:
        return np.asarray(words.view(f"i{bits // 8}").astype(np.int64) >> shift)
    magnitudes = (words & words.dtype.type(2 ** (bits - 1) - 1)).astype(np.int64) >> shift
    return np.where(words >> (bits - 1) != 0, ~magnitudes, magnitudes)


def from_integers(integers: NDArray[np.int64], dtype: np.dtype[np.generic], shift: int) -> NDArray[np.generic]:
    """Inverse of `to_integers`.

    Raises:
        FormatError: An integer is out of range, or the bytes are no valid elements of the dtype.
    """
    bits = 8 * dtype.itemsize
    largest = 2 ** (bits - 1 - shift) - 1
    if integers.size and not -largest - 1 <= int(integers.min()) <= int(integers.max()) <= largest:
        raise FormatError(_WHERE, f"an element must be from {-largest - 1} to {largest}")
    if dtype.name in _MANTISSA:
        negative = integers < 0
        words = (np.where(negative, ~integers, integers) << shift).astype(f"u{bits // 8}")
        words |= negative.astype(words.dtype) << words.dtype.type(bits - 1)
    else:
        words = (integers << shift).astype(f"i{bits // 8}")
    array: NDArray[np.generic] = words.view(dtype)
    if not is_valid(array):
        raise FormatError(_WHERE, f"an element is no valid {dtype.name}")
    return array


def keys_of(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The key of each element, in one dimension: the exponent of a float, at most 255; 0 of other dtypes."""
    name = array.dtype.name
    if name not in _MANTISSA:
        return np.zeros(array.size, dtype=np.uint8)
    mantissa = _MANTISSA[name]
    exponents = (_unsigned(array) >> mantissa).astype(np.int32) & (1 << (8 * array.dtype.itemsize - 1 - mantissa)) - 1
    return np.asarray(np.clip(exponents - _FIRST_EXPONENT.get(name, 0), 0, 255), dtype=np.uint8)


def _unsigned(array: NDArray[np.generic]) -> NDArray[np.unsignedinteger]:
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    words: NDArray[np.unsignedinteger] = plain.reshape(-1).view(f"u{array.dtype.itemsize}")
    return words
