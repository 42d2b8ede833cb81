"""Statistics of a weight, measured in one pass over it."""

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
"""The largest number of magnitudes in the sample of a weight."""

EXCERPT = 2**14
"""The largest number of elements in the excerpt of a weight."""


def measure(weight: Array, name: str = "weight") -> LayerStatistics:
    """Measure the statistics of a weight.

    Args:
        weight: Floating-point array of any shape with at least one element; axis 0 is the channel axis.
        name: Name of the weight, for messages.

    Raises:
        WeightError: The weight is empty, or has NaN or infinite values, or the sum of its magnitudes is infinite.
    """
    xp = namespace(weight)
    shape = tuple(weight.shape)
    channels = weight if shape else xp.reshape(weight, (1,))
    return measure_rows(shape, lambda start, stop: channels[start:stop, ...], name)


def measure_rows(shape: tuple[int, ...], rows: Callable[[int, int], Array], name: str) -> LayerStatistics:
    """As `measure`, for a weight that is read some rows at a time.

    Args:
        shape: Shape of the weight.
        rows: rows(start, stop) returns weight[start:stop].
        name: Name of the weight, for messages.

    Raises:
        WeightError: As `measure`.
    """
    count = math.prod(shape)
    if count == 0:
        raise WeightError(name, shape, f"it is empty; skip it with exclude=[{name!r}]")
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
        # A copy, because a view would keep the whole block in memory.
        picked.append(np.array(_numpy(xp.reshape(magnitudes, (-1,))[-start * width % stride :: stride])))
    if not np.isfinite(sums).all():
        _refuse(shape, rows, name)
    sample = np.concatenate(picked)
    magnitudes = np.sort(sample)
    # Counting zeros is a second pass, so it is done only if the sample has one, as in a pruned checkpoint.
    zeros = _count(shape, rows, lambda block, xp: block == 0) if magnitudes[0] == 0.0 else 0
    scales = sums * (channels / count)
    return LayerStatistics(shape, float(sums.sum() / count), scales, zeros, magnitudes, sample, stride, _excerpt(shape, rows))


def blocks(rows: int, width: int, max_size: int = 2**18) -> Iterator[tuple[int, int]]:
    """Divide rows into blocks.

    Args:
        rows: Number of rows.
        width: Elements per row.
        max_size: Largest number of elements in a block of several rows.

    Returns:
        (start, stop) of each block, in rows.
    """
    height = max(max_size // width, 1)
    return ((start, min(start + height, rows)) for start in range(0, rows, height))


def _stride(count: int) -> int:
    stride = -(-count // SAMPLE)
    # A stride with a common factor with the size would sample only some kernel positions.
    while stride > 1 and math.gcd(stride, count) > 1:
        stride += 1
    return stride


def _excerpt(shape: tuple[int, ...], rows: Callable[[int, int], Array]) -> NDArray[np.floating]:
    """Channels from the middle, at most EXCERPT elements; no rows if a single channel has more."""
    channels = shape[0] if shape else 1
    height = min(EXCERPT // max(math.prod(shape[1:]), 1), channels)
    start = (channels - height) // 2
    middle = rows(start, start + height)
    xp = namespace(middle)
    return np.array(_numpy(xp.astype(middle, _working_dtype(middle, xp))))


def _working_dtype(weight: Array, xp: Any) -> Any:
    return xp.float64 if weight.dtype == xp.float64 else xp.float32


def _refuse(shape: tuple[int, ...], rows: Callable[[int, int], Array], name: str) -> None:
    bad = _count(shape, rows, lambda block, xp: ~xp.isfinite(xp.astype(block, xp.float64)))
    if bad:
        problem = f"{bad:,} {'value is' if bad == 1 else 'values are'} NaN or infinite; fix the checkpoint, or"
    else:
        problem = "the sum of its magnitudes is infinite in its dtype;"
    raise WeightError(name, shape, f"{problem} skip the tensor with exclude=[{name!r}]")


def _count(shape: tuple[int, ...], rows: Callable[[int, int], Array], condition: Callable[[Array, Any], Array]) -> int:
    """The number of elements for which a condition holds."""
    channels = shape[0] if shape else 1
    total = 0
    for start, stop in blocks(channels, math.prod(shape) // channels):
        block = rows(start, stop)
        xp = namespace(block)
        total += int(xp.sum(condition(block, xp), dtype=xp.int64))
    return total


def _numpy(array: Array) -> NDArray[Any]:
    return np.asarray(to_device(array, "cpu"))
