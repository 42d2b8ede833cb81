"""One pass over a weight, from which everything else is planned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from array_api_compat import to_device
from numpy.typing import NDArray

from opq.errors import WeightError
from opq.quantization.arrays import Array, namespace
from opq.rate_distortion.layers import LayerStatistics

SAMPLE = 2**15
"""Magnitudes kept of a weight that has more than so many."""

EXCERPT = 2**14
"""Weights of which neighbouring ones are kept together."""


def measure(weight: Array, name: str = "weight") -> LayerStatistics:
    """Statistics of a floating-point `weight` of any shape with at least one element; axis 0 is the channel axis.

    Raises WeightError when the weight is empty, or holds NaN or infinite values, or values that add up to infinity; `name` is
    for that message.
    """
    xp = namespace(weight)
    shape = tuple(weight.shape)
    channels = weight if shape else xp.reshape(weight, (1,))
    return measure_rows(shape, lambda start, stop: channels[start:stop, ...], name)


def measure_rows(shape: tuple[int, ...], rows: Callable[[int, int], Array], name: str) -> LayerStatistics:
    """As `measure`, of a weight of which only some rows are held at a time.

    shape  of the weight
    rows   gives the rows from one place along axis 0 to another
    """
    count = math.prod(shape)
    if count == 0:
        raise WeightError(name, shape, "it is empty; store it as it is with exclude")
    channels = shape[0] if shape else 1
    width = count // channels
    stride = _stride(count)
    sums, picked = np.empty(channels, dtype=np.float64), []
    for start, stop in blocks(channels, width):
        block = rows(start, stop)
        xp = namespace(block)
        work = _working_dtype(block, xp)
        with np.errstate(over="ignore", invalid="ignore"):
            magnitudes = xp.abs(xp.astype(xp.reshape(block, (stop - start, width)), work, copy=False))
            sums[start:stop] = _numpy(xp.sum(magnitudes, axis=1))
        # A copy: a view would keep the whole block.
        picked.append(np.array(_numpy(xp.reshape(magnitudes, (-1,))[-start * width % stride :: stride])))
    if not np.isfinite(sums).all():
        _refuse(shape, rows, name)
    magnitudes = np.concatenate(picked)
    magnitudes.sort()
    # Only a sample with a zero in it is worth counting zeros for: a pruned checkpoint, not one that happens to hold a few.
    zeros = _count(shape, rows, lambda block, xp: block == 0) if magnitudes[0] == 0.0 else 0
    scales = sums * (channels / count)
    return LayerStatistics(shape, float(sums.sum() / count), scales, zeros, magnitudes, _excerpt(shape, rows))


def blocks(rows: int, width: int, most: int = 2**18) -> Iterator[tuple[int, int]]:
    """From where to where to go through rows of `width` elements, at most `most` elements or one row at a time."""
    height = max(most // width, 1)
    return ((start, min(start + height, rows)) for start in range(0, rows, height))


def _stride(count: int) -> int:
    stride = -(-count // SAMPLE)
    # A stride that shares a factor with the size would see the same few kernel positions again and again.
    while stride > 1 and math.gcd(stride, count) > 1:
        stride += 1
    return stride


def _excerpt(shape: tuple[int, ...], rows: Callable[[int, int], Array]) -> NDArray[np.floating]:
    """As many channels from the middle as EXCERPT weights make up; none where one has more."""
    channels = shape[0] if shape else 1
    some = min(EXCERPT // max(math.prod(shape[1:]), 1), channels)
    start = (channels - some) // 2
    middle = rows(start, start + some)
    xp = namespace(middle)
    return np.array(_numpy(xp.astype(middle, _working_dtype(middle, xp))))


def _working_dtype(weight: Array, xp: Any) -> Any:
    return xp.float64 if weight.dtype == xp.float64 else xp.float32


def _refuse(shape: tuple[int, ...], rows: Callable[[int, int], Array], name: str) -> None:
    bad = _count(shape, rows, lambda block, xp: ~xp.isfinite(xp.astype(block, xp.float64)))
    if bad:
        problem = f"{bad:,} of its values are NaN or infinite, and these cannot be quantized; mend the checkpoint"
    else:
        problem = "its magnitudes add up to more than its dtype can hold"
    raise WeightError(name, shape, f"{problem}, or store the tensor as it is with exclude")


def _count(shape: tuple[int, ...], rows: Callable[[int, int], Array], has: Callable[[Array, Any], Array]) -> int:
    """Of how many elements something holds."""
    channels = shape[0] if shape else 1
    found = 0
    for start, stop in blocks(channels, math.prod(shape) // channels):
        block = rows(start, stop)
        xp = namespace(block)
        found += int(xp.sum(has(block, xp), dtype=xp.int64))
    return found


def _numpy(array: Array) -> NDArray[Any]:
    return np.asarray(to_device(array, "cpu"))
