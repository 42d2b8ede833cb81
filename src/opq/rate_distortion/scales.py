"""Scales: integers in eighths of an octave that give the rows and columns of a weight steps of their own.

A weight of shape (o, *rest) is seen as a matrix of o rows and n = prod(rest) columns. With the scale r_i of row i, the scale
c_j of column j (0 for an axis without scales) and e = r_i + c_j, element ij has the step

    step_ij = fl32(step * M[e mod 8]) * 2^floor(e / 8),        M[k] the float32 number nearest to 2^(k/8),

where fl32 rounds to float32. The second product is exact, because all steps are normal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from opq.rate_distortion.laplace import Floats

LARGEST_SCALE = 127
"""The largest magnitude of a scale: 15.9 octaves."""

SMALLEST_STEP, LARGEST_STEP = 2.0**-126, 2.0**127
"""The smallest normal float32 number, and the largest step whose products with all M[k] are finite float32 numbers."""

Scales = Sequence[int] | NDArray[np.int8]
"""Scales of all rows or of all columns."""

_MULTIPLIERS = np.array([8388608, 9147842, 9975792, 10878679, 11863283, 12937002, 14107901, 15384775]) / np.float64(2**23)


def steps(step: float, rows: Scales | None, columns: Scales | None) -> NDArray[np.float32]:
    """The step of each element.

    Args:
        step: The step without scales, in weight units, a float32 number.
        rows: Scale of each row, within +-LARGEST_SCALE; None for none.
        columns: Scale of each column, likewise.

    Returns:
        float32 (rows, columns) in weight units; an axis without scales has length 1.
    """
    exponents = _exponents(rows)[:, None] + _exponents(columns)
    lowest = int(exponents.min())
    table = _steps_at(step, np.arange(lowest, int(exponents.max()) + 1))
    return np.asarray(table[exponents - lowest])


def steps_like(step: float, rows: Scales | None, columns: Scales | None, shape: tuple[int, ...]) -> float | NDArray[np.float32]:
    """As `steps`, shaped to broadcast with a weight of this shape; without scales, the step itself."""
    if rows is None and columns is None:
        return step
    kernel = shape[1:] if columns is not None else (1,) * len(shape[1:])
    return steps(step, rows, columns).reshape(-1 if rows is not None else 1, *kernel)


def misfit(rows: Scales | None, columns: Scales | None, shape: tuple[int, ...]) -> str | None:
    """Why these are no scales of a weight of this shape; None if their numbers are right, whatever their values."""
    for key, scales, size in (("rows", rows, math.prod(shape[:1])), ("columns", columns, math.prod(shape[1:]))):
        if scales is not None and (not shape or len(scales) != size):
            return f"{key} must be {size:,} integers, got {len(scales):,}" if shape else f"{key} need at least one dimension"
    return None


def out_of_range(step: float, rows: Scales | None, columns: Scales | None) -> str | None:
    """Why these scales cannot be used with this step; None if they can.

    Args:
        step: The step without scales, a float32 number.
        rows: Scale of each row; None for none.
        columns: Scale of each column; None for none.
    """
    if rows is None and columns is None:
        return None
    ends = [0, 0]
    for key, scales in (("rows", rows), ("columns", columns)):
        if scales is not None:
            low, high = int(np.min(scales)), int(np.max(scales))
            if low < -LARGEST_SCALE or high > LARGEST_SCALE:
                return f"{key} must lie in [-{LARGEST_SCALE}, {LARGEST_SCALE}], got {low} to {high}"
            ends = [ends[0] + low, ends[1] + high]
    lowest, highest = (float(end) for end in _steps_at(step, np.array(ends)))
    if not (SMALLEST_STEP <= step <= LARGEST_STEP and lowest >= SMALLEST_STEP and math.isfinite(highest)):
        return f"step (={step:g}) and the steps of all rows and columns must be normal float32, got {lowest:g} to {highest:g}"
    return None


def measured_rows(channel_scales: Floats, power: float = 1.0) -> NDArray[np.int8]:
    """The scales at which steps are proportional to a power of the mean magnitudes of rows.

    Args:
        channel_scales: (rows,) mean magnitude of each row, >= 0.
        power: With 1, all rows have about the same mean magnitude in steps.

    Returns:
        (rows,) round(8 power log2(mean magnitude / geometric mean over the rows that are not zero)), clipped to
        +-LARGEST_SCALE; 0 for rows that are zero.
    """
    alive = channel_scales > 0.0
    logarithms = np.log2(np.where(alive, channel_scales, 1.0))
    mean = logarithms[alive].mean() if alive.any() else 0.0
    scales = np.rint(8.0 * power * (logarithms - mean)).clip(-LARGEST_SCALE, LARGEST_SCALE)
    return np.where(alive, scales, 0.0).astype(np.int8)


def _exponents(scales: Scales | None) -> NDArray[np.int16]:
    return np.zeros(1, dtype=np.int16) if scales is None else np.asarray(scales, dtype=np.int16)


def _steps_at(step: float, exponents: NDArray[np.integer]) -> NDArray[np.float32]:
    """The steps at sums of scales."""
    with np.errstate(over="ignore", under="ignore"):  # `out_of_range` refuses what is not normal
        product = (step * _MULTIPLIERS).astype(np.float32)  # exact in float64, then rounded once
        return np.asarray(np.ldexp(product[exponents % 8], exponents // 8))
