"""Find codes and a codebook, without loss, for weights that already have few distinct values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.quantization.codebook import LARGEST_TABLE, LevelTable, UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor
from opq.quantization.float_order import from_ordinals, to_ordinals
from opq.quantization.quantizer import LARGEST_CODE, dequantize

_SAMPLE = 2**16
"""Elements of the sample that shows whether a weight has few distinct values."""

_FIRST_SAMPLE = 2**14
"""Elements of the sample of `may_have_levels`."""

_DISTINCT = 0.94
"""The largest share of distinct values in it; a sample of LARGEST_TABLE equally likely levels has 0.88."""

_GAIN = 0.95
"""The largest ratio of the entropy of values and that of their bytes at which codes may take fewer bytes."""

_TOLERANCE = 0.05
"""Largest deviation from a multiple of the step, in steps. The deviations that rounding causes are smaller."""

_ULPS = np.arange(-3, 4)


def may_have_levels(weight: NDArray[np.generic]) -> bool:
    """Whether a sample of a weight leaves it open that codes take fewer bytes than byte planes do. It takes little time.

    Args:
        weight: As in `find_levels`.
    """
    sample = np.ascontiguousarray(weight.reshape(-1)[:: -(-weight.size // _FIRST_SAMPLE)])
    if len(sample) < _FIRST_SAMPLE // 4:
        return True
    words: NDArray[np.unsignedinteger[Any]] = sample.view(f"u{sample.itemsize}")
    counts = np.unique(words, return_counts=True)[1]
    if len(counts) > _DISTINCT * len(words):
        return False
    rotated = (words << 1) | (words >> (8 * sample.itemsize - 1))  # so that the highest byte is the exponent
    planes = rotated.view(np.uint8).reshape(len(sample), -1).T
    return _entropy(counts) <= _GAIN * sum(_entropy(np.bincount(plane)) for plane in planes)


def _entropy(counts: NDArray[np.int64]) -> float:
    """Bits of a symbol, from the counts of a sample, with the correction of Miller and Madow (1955) for what it lacks."""
    used = counts[counts > 0]
    total = float(used.sum())
    return float(used @ (math.log2(total) - np.log2(used)) + (len(used) - 1) / math.log(4.0)) / total


def find_levels(weight: NDArray[np.generic]) -> list[CompressedTensor]:
    """Represent a weight as codes with a step, or with a table of levels.

    Args:
        weight: float16, bfloat16, float32 or float64, any shape with at least one element.

    Returns:
        The representations that may be the smallest: one with a UniformCodebook, one with a LevelTable, both, or none. Each
        dequantizes to `weight` bit for bit, negative zeros included. There is none if a value is NaN or infinite, or if the
        distinct values are more than half of the elements or more than LARGEST_TABLE.
    """
    ordinals = to_ordinals(weight)
    flat = ordinals.reshape(-1)
    max_levels = min(LARGEST_TABLE, max(flat.size // 2, 1))
    sample = flat[:: -(-flat.size // _SAMPLE)]
    if len(np.unique(sample)) > min(
        max_levels, 3 * len(sample) // 4
    ):  # a sample shows 63% of LARGEST_TABLE equally likely levels
        return []
    distinct = np.unique(flat)
    if len(distinct) > max_levels + (0 in distinct) or not np.isfinite(weight).all():
        return []
    dtype = dtypes.name_of(weight.dtype)
    indices = distinct.searchsorted(ordinals)
    found = []
    if (grid := _find_grid(from_ordinals(distinct, weight.dtype), -1 in distinct)) is not None:
        step, multiples = grid
        found.append(CompressedTensor(multiples[indices], UniformCodebook(step), dtype))
        if 2 * len(distinct) > int(multiples[-1]) - int(multiples[0]):  # most multiples occur, so a table cannot be smaller
            return found
    negatives = int((distinct < 0).sum())
    levels = distinct[distinct != 0]
    if len(levels):
        ranks = np.arange(len(distinct), dtype=np.int32) - np.int32(negatives)
        if len(levels) == len(distinct):  # no zero: code 0 stays unused
            ranks[negatives:] += 1
        found.append(CompressedTensor(ranks[indices], LevelTable(from_ordinals(levels, weight.dtype)), dtype))
    return found


def _find_grid(values: NDArray[np.generic], has_negative_zero: bool) -> tuple[float, NDArray[np.int32]] | None:
    """A step and the multiples of it that equal these ascending values bit for bit; None if there is no such step."""
    magnitudes = np.unique(np.abs(values.astype(np.float64)))
    magnitudes = magnitudes[magnitudes > 0.0]
    if has_negative_zero:
        return None
    if not len(magnitudes):  # all values are zero, so any step is correct
        return 1.0, np.zeros(len(values), dtype=np.int32)
    step = _common_divisor(magnitudes)
    if step is None:
        return None
    multiples = np.rint(values.astype(np.float64) / step)
    largest = float(magnitudes[-1]) / float(np.abs(multiples).max())
    with np.errstate(over="ignore"):
        middle = np.float32(largest)
    if not np.isfinite(middle) or middle <= 0.0:
        return None
    codes = multiples.astype(np.int32)
    # The largest multiple determines the step to within a few units in the last place.
    for candidate in (middle.view(np.int32) + _ULPS[np.argsort(np.abs(_ULPS))]).astype(np.int32).view(np.float32):
        if 0.0 < candidate < math.inf:
            with np.errstate(over="ignore"):
                dequantized = dequantize(codes, float(candidate), values.dtype)
            if dequantized.tobytes() == values.tobytes():
                return float(candidate), codes
    return None


def _common_divisor(magnitudes: NDArray[np.float64]) -> float | None:
    """The approximate common divisor, by Euclid's algorithm: the smallest of all remainders is the next divisor."""
    divisor = float(magnitudes[0])
    while magnitudes[-1] <= divisor * LARGEST_CODE:
        remainders = np.abs(magnitudes - np.rint(magnitudes / divisor) * divisor)
        remainders = remainders[remainders > _TOLERANCE * divisor]
        if not len(remainders):
            return divisor
        divisor = float(remainders.min())
    return None
