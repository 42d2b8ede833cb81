"""Weights to codes and back, under a plan.

Written against the Python array API standard, so that NumPy arrays and torch tensors take the same path. Every operation is
elementwise IEEE arithmetic in float32 (float64 for float64 weights), so that no library and no device can change a result.
"""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import device

from opq import dtypes
from opq.errors import PlanError, WeightError
from opq.quantization.arrays import Array, namespace, scalar_like, working_copy
from opq.quantization.rounding import ROUNDINGS, magnitude_levels, magnitude_mask
from opq.rate_distortion.plan import LayerPlan

LARGEST_CODE = 2**24 - 1
"""Largest magnitude of a code: every integer up to it is exact in float32."""


def mask(weight: Array, plan: LayerPlan) -> Array:
    """Which weights are kept.

    Args:
        weight: Array of the plan's shape.
        plan: With `num_kept` the mask keeps exactly that many weights, the largest magnitudes, and of equal ones the first.
            With compensated rounding it keeps what does not round to 0. Otherwise it keeps magnitudes above `threshold`.

    Returns:
        bool, shaped as `weight`, True if kept.
    """
    if not ROUNDINGS[plan.rounding].is_elementwise and len(plan.shape) > 1:
        return quantize(weight, plan) != 0
    xp = namespace(weight)
    return magnitude_mask(working_copy(weight, xp), plan, xp)


def quantize(weight: Array, plan: LayerPlan) -> Array:
    """Codes of a weight under a plan.

    Codes are clipped at the channel's `max_codes` if the plan has them, and at the largest code whose value the weight's dtype
    can hold. How they are rounded is `plan.rounding`'s to say; see opq.quantization.rounding.

    Args:
        weight: float16, bfloat16, float32 or float64 array of the plan's shape.
        plan: The weight's plan.

    Returns:
        int32, shaped as `weight`, 0 if pruned.

    Raises:
        PlanError: The plan was made for another shape.
        WeightError: A code would exceed LARGEST_CODE.
    """
    xp = namespace(weight)
    if tuple(weight.shape) != plan.shape:
        raise PlanError(f"expected a weight of shape {plan.shape}, got {tuple(weight.shape)}")
    work = working_copy(weight, xp)
    max_codes = largest_codes(weight, plan.step, plan.max_codes)
    levels = magnitude_levels(work, scalar_like(plan.step, work, xp), scalar_like(plan.rounding_offset, work, xp))
    unclipped = levels if plan.max_codes is None else xp.minimum(levels, max_codes)
    if math.prod(plan.shape) and (largest := float(xp.max(unclipped))) > LARGEST_CODE:
        raise WeightError(
            "weight",
            plan.shape,
            f"step {plan.step:g} is too small for its largest magnitude: the code would be {largest:.8g}, "
            f"at most {LARGEST_CODE} is possible; ask for a smaller file, or exclude this tensor",
        )
    return xp.astype(ROUNDINGS[plan.rounding].codes(work, plan, max_codes, xp), xp.int32)


def largest_codes(weight: Array, step: float, limits: tuple[int, ...] | None = None) -> Array:
    """The largest code per channel: its limit if there are limits, and what the weight's dtype can hold.

    Args:
        weight: The weight; axis 0 is the channel axis.
        step: Its step, in weight units.
        limits: Largest code per channel, >= 1, or None.

    Returns:
        float32 (float64 for float64 weights), shaped to broadcast with `weight`.

    Raises:
        WeightError: The dtype cannot hold even one step.
    """
    xp = namespace(weight)
    work = working_copy(weight, xp)
    fitting = dtypes.LARGEST[dtypes.name_of(weight.dtype)] / step
    if fitting < 1.0:
        raise WeightError(
            "weight", weight.shape, f"step {step:g} is more than its dtype can hold; fix a smaller one, or exclude it"
        )
    most = scalar_like(min(math.floor(min(fitting, LARGEST_CODE)), LARGEST_CODE), work, xp)
    if limits is None:
        return most
    per_channel = xp.asarray(limits, dtype=work.dtype, device=device(work))
    per_channel = xp.reshape(per_channel, (-1,) + (1,) * (max(work.ndim, 1) - 1)) if work.ndim else per_channel[0]
    return xp.minimum(per_channel, most)


def dequantize(codes: Array, step: float | Array, dtype: Any) -> Array:
    """Values step * code.

    The product is rounded to float32 (float64 if `dtype` is float64), then to `dtype`, both to nearest even.

    Args:
        codes: Integer array.
        step: In weight units, a float32 number.
        dtype: Of the result, in the library of `codes`.

    Returns:
        Array of `dtype`, shaped as `codes`.
    """
    xp = namespace(codes)
    work = xp.float64 if dtype == xp.float64 else xp.float32
    levels = xp.astype(codes, work)
    return xp.astype(levels * scalar_like(step, levels, xp), dtype)


def fake_quantize(weight: Array, plan: LayerPlan) -> Array:
    """`weight` as a file gives it back: quantized and dequantized, in its own dtype."""
    return dequantize(quantize(weight, plan), plan.step, weight.dtype)
