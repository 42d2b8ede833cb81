"""float4 and float6 elements: packed bit by bit as in checkpoints, or one per byte as in NumPy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from opq import dtypes


def unpack(packed: NDArray[np.uint8], name: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """One element per byte.

    Args:
        packed: Bytes, (n,). The first element is in the lowest bits of the first byte.
        name: "float4_e2m1fn", "float6_e2m3fn" or "float6_e3m2fn".
        shape: Shape of the array.
    """
    bits, count = dtypes.BITS[name], math.prod(shape)
    fields = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    words = np.packbits(fields, axis=1, bitorder="little") if count else np.zeros(0, dtype=np.uint8)
    return words.reshape(-1).view(dtypes.NUMPY[name]).reshape(shape)


def pack(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The inverse of `unpack`: bytes, (n,)."""
    words = np.ascontiguousarray(array).reshape(-1, 1).view(np.uint8)
    fields = np.unpackbits(words, axis=1, count=dtypes.BITS[array.dtype.name], bitorder="little")
    return np.packbits(fields.reshape(-1), bitorder="little")
