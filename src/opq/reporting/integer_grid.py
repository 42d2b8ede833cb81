"""Weights as integers of few bits with a step, or one for each index of an axis; codes beyond the integers are kept apart.

With one step for a weight, a few of its codes are too large for 8 bits: of MiniLM at 4 bits per weight 3 in 10,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opq.quantization.codebook import ScaledCodebook, UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor
from opq.rate_distortion import scales

BITS: Mapping[str, tuple[int, ...]] = {"int8": (8,), "int4": (4,), "auto": (4, 8)}
"""{choice: widths of integers, of which the first that holds all codes is taken, else the last}"""

_MOST_OUTLIERS = 1 / 32
"""The largest share of codes beyond the integers. Weights with more stay in floating point; most of them are small."""


@dataclass(frozen=True)
class Grid:
    """A weight as integers.

    Args:
        codes: Integers, shaped as in the model; 0 for outliers.
        steps: float32: one number without dimensions, or one for each index of an axis.
        axis: This axis.
        bits: 4 or 8; codes are at least -2^(bits - 1) and below 2^(bits - 1).
        dtype: Name of the weight's dtype.
        places: int32, the places of outliers in row-major order.
        outliers: float32, their values.
    """

    codes: NDArray[np.int8]
    steps: NDArray[np.float32]
    axis: int
    bits: int
    dtype: str
    places: NDArray[np.int32]
    outliers: NDArray[np.float32]


def grid_of(weight: CompressedTensor, shape: tuple[int, ...], transposed: bool, choice: str) -> Grid | str:
    """The grid of a weight, or why it has none.

    Args:
        weight: The weight, as in the .opq file.
        shape: Its shape in the model.
        transposed: Whether its axes are reversed there.
        choice: A key of BITS.
    """
    book = weight.codebook
    if weight.dtype == "float64":
        return "float64"
    axis: int | None = 0
    steps: NDArray[np.float32]
    if isinstance(book, UniformCodebook):
        steps = np.asarray(book.step, np.float32)
    elif not isinstance(book, ScaledCodebook):
        return "a table of levels"
    else:
        axis, steps = _axis(book, weight.shape, shape, transposed), scales.steps(book.step, book.rows, book.columns).reshape(-1)
    if axis is None:
        return "steps that lie along no single axis of the model"
    counts = {bits: np.count_nonzero(_is_outlier(weight.codes, bits)) for bits in BITS[choice]}
    bits, count = next(((bits, 0) for bits, count in counts.items() if not count), list(counts.items())[-1])
    if count > _MOST_OUTLIERS * weight.codes.size:
        return f"more than {_MOST_OUTLIERS:.0%} of the codes need more than {bits} bits"
    codes = weight.codes.T if transposed else weight.codes.reshape(shape)
    values = weight.values().T if transposed else weight.values().reshape(shape)
    outside = _is_outlier(codes, bits)
    integers = np.where(outside, 0, codes).astype(np.int8)
    places = np.flatnonzero(outside).astype(np.int32)
    return Grid(integers, steps, axis, bits, weight.dtype, places, values[outside].astype(np.float32))


def _is_outlier(codes: NDArray[np.int32], bits: int) -> NDArray[np.bool_]:
    """Which codes are beyond integers of so many bits."""
    half = 1 << (bits - 1)
    return np.asarray((codes < -half) | (codes >= half))


def _axis(book: ScaledCodebook, stored: tuple[int, ...], shape: tuple[int, ...], transposed: bool) -> int | None:
    """The axis of the model that has scales; None if that is not one axis."""
    if len(book.axes) > 1 or (stored != shape and not transposed):
        return None
    if book.rows is not None:
        return 1 if transposed else 0
    return (0 if transposed else 1) if len(shape) == 2 else None
