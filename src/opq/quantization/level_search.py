"""Weights that already have few distinct values, as codes of a uniform grid or into a table of levels, bit for bit."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.quantization.codebook import LARGEST_TABLE, LevelTable, UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor
from opq.quantization.float_order import from_ordinals, to_ordinals
from opq.quantization.quantizer import LARGEST_CODE, dequantize

_LOOKED_AT = 2**16
_TOLERANCE = 0.05  # of a step: what rounding moves a value of a grid by, and more
_ULPS = np.arange(-3, 4)


def find_levels(weight: NDArray[np.generic]) -> list[CompressedTensor]:
    """The ways in which the values of `weight` are few: a grid, a table of levels, both where each may be the better, or none.

    weight  float16, bfloat16, float32 or float64, of any shape with at least one element
    Each comes back as `weight`, bit for bit, negative zeros included. There is none where a value is NaN or infinite, or where
    the distinct values are more than half of all, or more than LARGEST_TABLE.
    """
    ordinals = to_ordinals(weight)
    flat = ordinals.reshape(-1)
    most = min(LARGEST_TABLE, max(flat.size // 2, 1))
    some = flat[:: -(-flat.size // _LOOKED_AT)]
    if len(np.unique(some)) > min(most, 3 * len(some) // 4):  # of LARGEST_TABLE levels, 63% would show up
        return []
    distinct = np.unique(flat)
    if len(distinct) > most + (0 in distinct) or not np.isfinite(weight).all():
        return []
    kind = dtypes.name_of(weight.dtype)
    places = distinct.searchsorted(ordinals)
    found = []
    if (grid := _find_grid(from_ordinals(distinct, weight.dtype), -1 in distinct)) is not None:
        step, multiples = grid
        found.append(CompressedTensor(multiples[places], UniformCodebook(step), kind))
        if 2 * len(distinct) > int(multiples[-1]) - int(multiples[0]):  # hardly a gap that a table would close
            return found
    negatives = int((distinct < 0).sum())
    levels = distinct[distinct != 0]
    if len(levels):
        ranks = np.arange(len(distinct), dtype=np.int32) - np.int32(negatives)
        if len(levels) == len(distinct):  # no zero: code 0 stays unused
            ranks[negatives:] += 1
        found.append(CompressedTensor(ranks[places], LevelTable(from_ordinals(levels, weight.dtype)), kind))
    return found


def _find_grid(values: NDArray[np.generic], has_negative_zero: bool) -> tuple[float, NDArray[np.int32]] | None:
    """The step whose multiples these ascending values are, bit for bit, and which multiples; None where there is no such."""
    magnitudes = np.unique(np.abs(values.astype(np.float64)))
    magnitudes = magnitudes[magnitudes > 0.0]
    if has_negative_zero:
        return None
    if not len(magnitudes):  # all zero: any step serves
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
    # The largest multiple tells the step to within a few units in its last place.
    for candidate in (middle.view(np.int32) + _ULPS[np.argsort(np.abs(_ULPS))]).astype(np.int32).view(np.float32):
        if 0.0 < candidate < math.inf:
            with np.errstate(over="ignore"):
                again = dequantize(codes, float(candidate), values.dtype)
            if again.tobytes() == values.tobytes():
                return float(candidate), codes
    return None


def _common_divisor(magnitudes: NDArray[np.float64]) -> float | None:
    """Of which all these are multiples, nearly; Euclid's way, with the smallest remainder of all as the next divisor."""
    divisor = float(magnitudes[0])
    while magnitudes[-1] <= divisor * LARGEST_CODE:
        remainders = np.abs(magnitudes - np.rint(magnitudes / divisor) * divisor)
        remainders = remainders[remainders > _TOLERANCE * divisor]
        if not len(remainders):
            return divisor
        divisor = float(remainders.min())
    return None
