"""What becomes of an auxiliary tensor: stored bit for bit, as float16, or on a grid of 8 bits, each with its error.

exact      nothing is lost
half       every value rounded to float16: a relative error of at most 2^-11
linear8    codes 0 to 255 stand for evenly spaced values from the lowest to the highest: an error of at most 1/500 of the span;
           not for tensors that one far value would make coarse for all others
relative8  for tensors without negative values, such as variances: code 0 stands for zero, 1 to 255 for values whose float32
           words are evenly spaced from the lowest to the highest, and so nearly their logarithms; no value becomes zero that
           was not

docs/format.md is the normative text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.codec.header import EIGHT_BITS, Entry

STORAGES = ("exact", "float16", "uint8")
"""What a user may ask for."""

LARGEST_RELATIVE_ERROR = 2.0**-6
"""Of relative8; a tensor of too wide a range is stored otherwise."""

LARGEST_LINEAR_ERROR = 2.0**-4
"""Of linear8, over the median magnitude of what is not zero; a tensor with values far from all others is stored otherwise."""

FLOAT16_ERROR = 2.0**-11
_FEWEST = 16  # with fewer elements the grid's bounds outweigh what it saves
_WIDENING = 1.01
_SMALLEST, _LARGEST = 2.0**-126, dtypes.LARGEST["float32"]

Bounds = tuple[float, float]


def store(array: NDArray[np.generic], asked: str) -> tuple[str, Bounds | None, NDArray[np.generic]]:
    """The storage of `array`, its grid's bounds, and the array to store, of float16 or uint8 where that is not exact.

    Asked for "uint8", a float32 or float64 tensor of one dimension and at least 16 elements, all finite, is put on a grid:
    relative8 where no value is negative and that errs by at most 2^-6, linear8 where one is and that errs by at most 2^-4 of
    the median magnitude (a channel that died can have a scale two hundred times the others'). All others go as for "float16": as
    float16 where that keeps every value to 2^-11, and exactly where it does not, or where all values are the same.
    """
    if asked == "exact" or array.dtype not in (np.float32, np.float64) or _is_constant(array):
        return "exact", None, array
    if asked == "uint8" and (bounds := _bounds(array)) is not None:
        values = np.asarray(array, dtype=np.float64)
        if bounds[0] > 0.0 and (values >= 0.0).all():
            return "relative8", bounds, _to_relative(values, *bounds)
        return "linear8", bounds, _to_linear(values, *bounds)
    if fits_float16(array):
        return "float16", None, array.astype(np.float16)
    return "exact", None, array


def asked_storage(entries: Iterable[Entry]) -> str:
    """What must have been asked for, for auxiliary tensors to be stored as these are."""
    storages = {entry.storage for entry in entries if not entry.is_weight}
    if storages & set(EIGHT_BITS):
        return "uint8"
    return "float16" if "float16" in storages else "exact"


def restore(stored: NDArray[np.generic], entry: Entry) -> NDArray[np.generic]:
    """The auxiliary tensor that was stored so, in its own dtype."""
    if entry.bounds is not None:
        from_grid = _from_linear if entry.storage == "linear8" else _from_relative
        return from_grid(stored, *entry.bounds).astype(dtypes.NUMPY[entry.dtype])
    with np.errstate(invalid="ignore"):  # signalling NaNs, which no writer stores as half, are NaNs
        return stored.astype(dtypes.NUMPY[entry.dtype])


def stored_dtype(storage: str, dtype: str) -> np.dtype[np.generic]:
    """The dtype in which a section holds a tensor of `dtype`."""
    if storage in EIGHT_BITS:
        return np.dtype(np.uint8)
    return np.dtype(np.float16) if storage == "float16" else dtypes.NUMPY[dtype]


def fits_float16(array: NDArray[np.generic]) -> bool:
    """Whether float16 holds every value of a float32 or float64 `array` with a relative error of at most 2^-11."""
    magnitudes = np.abs(array[array != 0])
    tiny, largest = 2.0**-14, 65504.0
    return bool(((magnitudes >= tiny) & (magnitudes <= largest)).all())


def largest_error(entry: Entry) -> tuple[float, float]:
    """What a tensor stored so errs by at most: absolutely, and relative to each value; the one that holds, the other 0."""
    if entry.storage == "float16":
        return 0.0, FLOAT16_ERROR
    if entry.bounds is None:
        return 0.0, 0.0
    if entry.storage == "relative8":
        return 0.0, _relative_error(*entry.bounds)
    lowest, highest = entry.bounds
    return (highest - lowest) / 510.0 + 2.0**-24 * max(abs(lowest), abs(highest)), 0.0


def _is_constant(array: NDArray[np.generic]) -> bool:
    """Whether a tensor of more than a few elements has one value, and so takes next to nothing as it is."""
    with np.errstate(invalid="ignore"):
        return array.size >= _FEWEST and bool((array == array.flat[0]).all())


def _bounds(array: NDArray[np.generic]) -> Bounds | None:
    """The ends of the grid that `array` gets, float32 numbers; None where it gets none."""
    if array.ndim > 1 or array.size < _FEWEST:
        return None
    values = np.asarray(array, dtype=np.float64)
    if not (np.abs(values) <= _LARGEST).all():  # NaN among them
        return None
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
    """float32 numbers that hold the two between them, in as few bytes as widen the span by a hundredth at most."""
    exact = _round_outward(lowest, 0, -1.0), _round_outward(highest, 0, 1.0)
    for zeros in (16, 8):
        low, high = _round_outward(exact[0], zeros, -1.0), _round_outward(exact[1], zeros, 1.0)
        if math.isfinite(high - low) and span(low, high) <= _WIDENING * span(*exact):
            return low, high
    return exact


def _round_outward(value: float, zeros: int, direction: float) -> float:
    """The nearest float32 number in a direction from `value` whose lowest bits are as many zeros."""
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
    # Half a step of the grid, and two units in the last place for what is rounded on the way.
    return math.expm1(((_word(highest) - _word(lowest)) / 508.0 + 2.0) * 2.0**-23)


def _word(value: float) -> int:
    return int(np.float32(value).view(np.int32))
