"""How an auxiliary tensor is stored, and with which error.

exact      bit for bit
float16    every value rounded to float16: an error of at most 2^-11 of each value, or 2^-25 if that is more
linear8    codes 0 to 255 are evenly spaced values from the lowest to the highest: an error of at most 1/500 of the span; not
           used if an outlier would make the grid too coarse for the other values
relative8  for tensors without negative values, such as variances: code 0 is zero, and codes 1 to 255 are values whose float32
           words are evenly spaced from the lowest to the highest, so that their logarithms nearly are; only zero becomes zero

docs/format.md is the normative text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.codec.entry import EIGHT_BITS, Entry

STORAGES = ("exact", "float16", "uint8")
"""The choices of CompressionConfig.auxiliary."""

LARGEST_RELATIVE_ERROR = 2.0**-6
"""Largest allowed relative error of relative8. A tensor whose range is too wide for it is not stored on a grid."""

LARGEST_LINEAR_ERROR = 2.0**-4
"""Largest allowed error of linear8 over the median magnitude of nonzero values. A tensor with outliers exceeds it."""

FLOAT16_ERROR = 2.0**-11
"""Largest relative error of float16 from 2^-14 on."""

SMALLEST_FLOAT16_ERROR = 2.0**-25
"""Largest error of float16 below 2^-14."""

_SMALLEST_ROOT_MEAN_SQUARE = 2.0**16 * SMALLEST_FLOAT16_ERROR

_FEWEST = 16
"""Elements of the smallest tensor on a grid. For a smaller one the bounds take more bytes than the grid saves."""

_WIDENING = 1.01
"""Largest factor by which rounding of the bounds may widen the span."""

_SMALLEST, _LARGEST = 2.0**-126, dtypes.LARGEST["float32"]

Bounds = tuple[float, float]


def store(array: NDArray[np.generic], requested: str) -> tuple[str, Bounds | None, NDArray[np.generic]]:
    """Choose how to store an auxiliary tensor.

    With "uint8", a float32 or float64 tensor of one dimension and at least 16 finite elements is stored on a grid: relative8 if
    no value is negative and the error is at most 2^-6 of each value; linear8 if one is negative and the error is at most 2^-4
    of the median magnitude (the scale of a dead channel can be two hundred times that of the others). Other tensors are stored
    as with "float16": as float16 if every value keeps a relative error of at most 2^-11, or, in a tensor with negative values,
    an error of at most 2^-16 of its root mean square; exactly if not, or if all values are equal.

    Args:
        array: The tensor.
        requested: "exact", "float16" or "uint8".

    Returns:
        The storage as in Entry.storage; the bounds of the grid, or None; and the array to encode: float16, uint8 for a grid, or
        `array` itself.
    """
    if requested == "exact" or array.dtype not in (np.float32, np.float64) or _is_constant(array):
        return "exact", None, array
    if requested == "uint8" and (bounds := _bounds(array)) is not None:
        values = np.asarray(array, dtype=np.float64)
        if bounds[0] > 0.0 and (values >= 0.0).all():
            return "relative8", bounds, _to_relative(values, *bounds)
        return "linear8", bounds, _to_linear(values, *bounds)
    if fits_float16(array):
        return "float16", None, array.astype(np.float16)
    return "exact", None, array


def requested_storage(entries: Iterable[Entry]) -> str:
    """The setting of CompressionConfig.auxiliary that results in these storages.

    Args:
        entries: All tensors of a file.

    Returns:
        "exact", "float16" or "uint8".
    """
    storages = {entry.storage for entry in entries if not entry.is_weight}
    if storages & set(EIGHT_BITS):
        return "uint8"
    return "float16" if "float16" in storages else "exact"


def restore(stored: NDArray[np.generic], entry: Entry) -> NDArray[np.generic]:
    """Inverse of `store`.

    Args:
        stored: The decoded array, in the dtype given by `stored_dtype`.
        entry: The tensor's entry.

    Returns:
        The tensor in its own dtype; `stored` itself if that is its dtype.
    """
    if entry.bounds is not None:
        from_grid = _from_linear if entry.storage == "linear8" else _from_relative
        return from_grid(stored, *entry.bounds).astype(dtypes.NUMPY[entry.dtype])
    with np.errstate(invalid="ignore"):  # an untrusted file may hold signalling NaNs as float16
        return stored.astype(dtypes.NUMPY[entry.dtype], copy=False)


def rounded(array: NDArray[np.generic], requested: str) -> NDArray[np.generic]:
    """The values that a file gives back for an auxiliary tensor: `store`, then `restore`."""
    storage, bounds, stored = store(array, requested)
    return restore(stored, Entry("", array.shape, dtypes.name_of(array.dtype), storage, 0, bounds=bounds))


def stored_dtype(storage: str, dtype: str) -> np.dtype[np.generic]:
    """The dtype in which a section holds a tensor with this storage and dtype name."""
    if storage in EIGHT_BITS:
        return np.dtype(np.uint8)
    return np.dtype(np.float16) if storage == "float16" else dtypes.NUMPY[dtype]


def fits_float16(array: NDArray[np.generic]) -> bool:
    """Whether float16 holds every value of a float32 or float64 `array` closely enough; see `store`."""
    magnitudes = np.abs(array[array != 0])
    if not (magnitudes <= 65504.0).all():  # also if one is NaN
        return False
    if (magnitudes >= 2.0**-14).all():
        return True
    values = array.astype(np.float64)
    return bool((values < 0.0).any() and np.sqrt(np.square(values).mean()) >= _SMALLEST_ROOT_MEAN_SQUARE)


def largest_error(entry: Entry) -> tuple[float, float]:
    """The largest error of a stored auxiliary tensor.

    Returns:
        (absolute error, error relative to each value). The error of a value is at most the larger of the two.
    """
    if entry.storage == "float16":
        return SMALLEST_FLOAT16_ERROR, FLOAT16_ERROR
    if entry.bounds is None:
        return 0.0, 0.0
    if entry.storage == "relative8":
        return 0.0, _relative_error(*entry.bounds)
    lowest, highest = entry.bounds
    return (highest - lowest) / 510.0 + 2.0**-24 * max(abs(lowest), abs(highest)), 0.0


def _is_constant(array: NDArray[np.generic]) -> bool:
    """Whether all elements are equal, so that byte planes store the tensor in almost no bytes."""
    with np.errstate(invalid="ignore"):
        return array.size >= _FEWEST and bool((array == array.flat[0]).all())


def _bounds(array: NDArray[np.generic]) -> Bounds | None:
    """The bounds of the grid for an array, float32 numbers; None if it must not be stored on a grid."""
    if array.ndim > 1 or array.size < _FEWEST:
        return None
    if not (np.abs(array) <= _LARGEST).all():  # also if one is NaN
        return None
    values = np.asarray(array, dtype=np.float64)
    if values.min() < 0.0:
        low, high = _outward(float(values.min()), float(values.max()), lambda low, high: high - low)
        typical = float(np.median(np.abs(values[values != 0.0])))
        return (low, high) if (high - low) / 510.0 <= LARGEST_LINEAR_ERROR * typical else None
    positive = values[values > 0.0]
    if positive.min() < _SMALLEST:
        return None
    bounds = _outward(float(positive.min()), float(positive.max()), lambda low, high: float(_word(high) - _word(low)))
    return bounds if _relative_error(*bounds) <= LARGEST_RELATIVE_ERROR else None


def _outward(lowest: float, highest: float, span: Callable[[float, float], float]) -> Bounds:
    """float32 bounds around the two, with as many zero low bytes as possible while the span grows by at most 1%."""
    exact = _round_outward(lowest, 0, -1.0), _round_outward(highest, 0, 1.0)
    for zeros in (16, 8):
        low, high = _round_outward(exact[0], zeros, -1.0), _round_outward(exact[1], zeros, 1.0)
        if math.isfinite(high - low) and span(low, high) <= _WIDENING * span(*exact):
            return low, high
    return exact


def _round_outward(value: float, zeros: int, direction: float) -> float:
    """The nearest float32 number whose lowest `zeros` bits are 0, at `value` or beyond it in `direction` (-1 or 1)."""
    near = np.float32(value)
    if (float(near) - value) * direction < 0.0:
        near = np.nextafter(near, np.float32(math.copysign(math.inf, direction)))
    low = (1 << zeros) - 1
    grows = low if math.copysign(direction, value) == direction else 0
    word = (abs(_word(abs(float(near)))) + grows) & ~low
    return math.copysign(float(np.int32(word).view(np.float32)), near)


def _to_linear(values: NDArray[np.float64], lowest: float, highest: float) -> NDArray[np.uint8]:
    span = highest - lowest
    return np.rint((values - lowest) / (span or 1.0) * 255.0).astype(np.uint8)


def _from_linear(codes: NDArray[np.generic], lowest: float, highest: float) -> NDArray[np.float64]:
    return np.asarray(lowest + (highest - lowest) * codes.astype(np.float64) / 255.0)


def _to_relative(values: NDArray[np.float64], lowest: float, highest: float) -> NDArray[np.uint8]:
    first, last = _word(lowest), _word(highest)
    words = values.astype(np.float32).view(np.int32).astype(np.int64)
    nearest = (2 * 254 * (words - first) + (last - first)) // (2 * max(last - first, 1))
    return np.where(values > 0.0, 1 + nearest.clip(0, 254), 0).astype(np.uint8)


def _from_relative(codes: NDArray[np.generic], lowest: float, highest: float) -> NDArray[np.float32]:
    first, last = _word(lowest), _word(highest)
    words = first + ((codes.astype(np.int64) - 1) * (last - first) + 127) // 254
    return np.where(codes == 0, 0, words).astype(np.int32).view(np.float32)


def _relative_error(lowest: float, highest: float) -> float:
    # Half a step of the grid, and two units in the last place for rounding errors.
    return math.expm1(((_word(highest) - _word(lowest)) / 508.0 + 2.0) * 2.0**-23)


def _word(value: float) -> int:
    return int(np.float32(value).view(np.int32))
