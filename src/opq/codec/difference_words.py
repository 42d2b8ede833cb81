"""Tensors as integers of the same order, whose differences are small where the values are near each other.

docs/format.md, "Differences", is the normative text.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.codec import _native
from opq.codec.byte_planes import is_valid
from opq.errors import FormatError

SUPPORTED = frozenset(name for name, dtype in dtypes.NUMPY.items() if dtype.itemsize <= 8)
"""Names of the dtypes whose tensors can be stored as a difference."""

_WHERE = "differences"
_MANTISSA = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
_FIRST_EXPONENT = {"float64": 896}
"""The exponent field of key 0, where there are more than 256."""

_LOW_BITS_ARE_SET, _OUT_OF_RANGE = 1, 2
"""What the native module finds wrong in sums."""


def zero_bits(base: NDArray[np.generic], new: NDArray[np.generic]) -> int | None:
    """How many low bits are 0 in all elements that differ between two tensors of one dtype and shape; None if none do."""
    bits = _native.changed_bits(_bytes_of(base), _bytes_of(new), base.dtype.itemsize)
    return (bits & -bits).bit_length() - 1 if bits else None


def subtract(base: NDArray[np.generic], new: NDArray[np.generic], shift: int, differences: NDArray[np.int64]) -> None:
    """The integers of a tensor less those of a base.

    Args:
        base: Of a dtype in SUPPORTED.
        new: Of the same dtype and size.
        shift: Number of low bits that are left out, below the bits of an element.
        differences: Receives them, in one dimension, modulo 2^64.
    """
    _native.subtract_words(_bytes_of(base), _bytes_of(new), *_kind(base.dtype), shift, differences.data)


def add(base: NDArray[np.generic], differences: NDArray[np.int64], shift: int) -> NDArray[np.generic]:
    """Inverse of `subtract`: a tensor of the base's dtype and shape.

    Args:
        base: Of a dtype in SUPPORTED.
        differences: In one dimension, untrusted. Where one is 0, the element is the base's.
        shift: As in `subtract`.

    Raises:
        FormatError: An element of the base has low bits that were left out, a sum is out of range, or an element is not valid.
    """
    array: NDArray[np.generic] = np.empty(base.shape, dtype=base.dtype.newbyteorder("="))
    output = array.reshape(-1).view(np.uint8).data
    problem = _native.add_words(_bytes_of(base), differences.data, *_kind(base.dtype), shift, output)
    if problem == _LOW_BITS_ARE_SET:
        raise FormatError(_WHERE, f"the {shift} lowest bits of each element of the base must be 0")
    if problem == _OUT_OF_RANGE:
        largest = 2 ** (8 * base.dtype.itemsize - 1 - shift) - 1
        raise FormatError(_WHERE, f"an element must be from {-largest - 1} to {largest}")
    if not is_valid(array) and not is_valid(array.reshape(-1)[differences != 0]):
        raise FormatError(_WHERE, f"an element is no valid {base.dtype.name}")
    return array


def keys_of(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The key of each element, in one dimension: the exponent of a float, at most 255; 0 of other dtypes."""
    name = array.dtype.name
    if name not in _MANTISSA:
        return np.zeros(array.size, dtype=np.uint8)
    mantissa, width = _MANTISSA[name], 8 * array.dtype.itemsize
    fields = _unsigned(array) >> mantissa
    if width - 1 - mantissa == 8:
        return fields.astype(np.uint8)  # without the sign
    exponents = fields.astype(np.int32) & (1 << (width - 1 - mantissa)) - 1
    return np.asarray(np.clip(exponents - _FIRST_EXPONENT.get(name, 0), 0, 255), dtype=np.uint8)


def _kind(dtype: np.dtype[np.generic]) -> tuple[int, bool]:
    """The size of a word in bytes, and whether its highest bit is a sign beside a magnitude."""
    return dtype.itemsize, dtype.name in _MANTISSA


def _bytes_of(array: NDArray[np.generic]) -> memoryview:
    return _unsigned(array).data


def _unsigned(array: NDArray[np.generic]) -> NDArray[np.unsignedinteger]:
    plain = np.require(array, array.dtype.newbyteorder("="), ["C", "A"])
    words: NDArray[np.unsignedinteger] = plain.reshape(-1).view(f"u{array.dtype.itemsize}")
    return words
