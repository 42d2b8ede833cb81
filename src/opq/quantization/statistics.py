"""One pass over a weight, from which everything else is planned."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import to_device
from numpy.typing import NDArray

from opq.allocation.layers import LayerStatistics
from opq.errors import WeightError
from opq.quantization.quantizer import Array, namespace

SAMPLE = 2**15
"""Magnitudes kept of a weight that has more than so many."""

EXCERPT = 2**14
"""Weights of which neighbouring ones are kept together."""

_BLOCK = 2**18


def measure(weight: Array, name: str = "weight") -> LayerStatistics:
    """Statistics of a floating-point `weight` of any shape with at least one element; axis 0 is the channel axis.

    Raises WeightError when the weight is empty, or holds NaN or infinite values, or values that add up to infinity; `name` is
    for that message.
    """
    xp = namespace(weight)
    shape = tuple(weight.shape)
    count = math.prod(shape)
    if count == 0:
        raise WeightError(name, shape, "it is empty; store it as it is with exclude")
    channels = shape[0] if shape else 1
    sums = _channel_sums(xp.reshape(weight, (channels, count // channels)), xp)
    if not np.isfinite(sums).all():
        _refuse(weight, name, xp)
    magnitudes = _sample(weight, count, xp)
    # Only a sample with a zero in it is worth counting zeros for: a pruned checkpoint, not one that happens to hold a few.
    zeros = int(xp.sum(weight == 0, dtype=xp.int64)) if magnitudes[0] == 0.0 else 0
    excerpt = _excerpt(xp.reshape(weight, (channels, *shape[1:])), xp)
    return LayerStatistics(shape, float(sums.sum() / count), sums * (channels / count), zeros, magnitudes, excerpt)


def _channel_sums(rows: Array, xp: Any) -> NDArray[np.float64]:
    """Sum of magnitudes of each row, a cache-sized block at a time."""
    channels, width = rows.shape
    sums = np.empty(channels, dtype=np.float64)
    block = max(_BLOCK // width, 1)
    work = _working_dtype(rows, xp)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, channels, block):
            magnitudes = xp.abs(xp.astype(rows[start : start + block, :], work, copy=False))
            sums[start : start + block] = _numpy(xp.sum(magnitudes, axis=1))
    return sums


def _sample(weight: Array, count: int, xp: Any) -> NDArray[np.floating]:
    stride = -(-count // SAMPLE)
    # A stride that shares a factor with the size would see the same few kernel positions again and again.
    while stride > 1 and math.gcd(stride, count) > 1:
        stride += 1
    picked = xp.reshape(weight, (-1,))[::stride]
    magnitudes: NDArray[np.floating] = np.abs(_numpy(xp.astype(picked, _working_dtype(weight, xp), copy=False)))
    magnitudes.sort()
    return magnitudes


def _excerpt(channels: Array, xp: Any) -> NDArray[np.floating]:
    """As many channels from the middle as EXCERPT weights make up; none where one has more."""
    count = channels.shape[0]
    some = min(EXCERPT // max(math.prod(channels.shape[1:]), 1), count)
    start = (count - some) // 2
    return np.array(_numpy(xp.astype(channels[start : start + some, ...], _working_dtype(channels, xp))))


def _working_dtype(weight: Array, xp: Any) -> Any:
    return xp.float64 if weight.dtype == xp.float64 else xp.float32


def _refuse(weight: Array, name: str, xp: Any) -> None:
    bad = int(xp.sum(~xp.isfinite(xp.astype(weight, xp.float64)), dtype=xp.int64))
    if bad:
        problem = f"{bad:,} of its values are NaN or infinite, and these cannot be quantized; mend the checkpoint"
    else:
        problem = "its magnitudes add up to more than its dtype can hold"
    raise WeightError(name, weight.shape, f"{problem}, or store the tensor as it is with exclude")


def _numpy(array: Array) -> NDArray[Any]:
    return np.asarray(to_device(array, "cpu"))
