"""Codes of a direction: no slice of it may become all zero, because the network divides by its norm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def keep_nonzero(codes: NDArray[np.int32], weight: NDArray[np.generic], axes: Sequence[int]) -> NDArray[np.int32]:
    """Give the largest magnitude of every slice whose codes are all zero the code 1 or -1, by its sign.

    Args:
        codes: Codes of the weight.
        weight: The weight, of the same shape, with at least one element.
        axes: The axes of a slice; there is one slice for each position along the others.

    Returns:
        The codes; a copy if some of them are changed.
    """
    others = [axis for axis in range(codes.ndim) if axis not in axes]
    order = (*others, *axes)
    slices = codes.transpose(order).reshape(int(np.prod([codes.shape[axis] for axis in others])), -1)
    empty = np.flatnonzero(~slices.any(axis=1))
    if not len(empty):
        return codes
    values = weight.transpose(order).reshape(slices.shape)[empty].astype(np.float64)
    largest = np.abs(values).argmax(axis=1)
    changed = slices.copy()
    changed[empty, largest] = np.where(values[np.arange(len(empty)), largest] < 0.0, -1, 1)
    moved = changed.reshape([codes.shape[axis] for axis in order])
    return np.ascontiguousarray(moved.transpose(np.argsort(order)))
