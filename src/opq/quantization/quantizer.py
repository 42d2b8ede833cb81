"""Quantize weights under a plan, and dequantize them.

The code uses the Python array API standard, so NumPy arrays and torch tensors share it. Every operation is elementwise IEEE
arithmetic in float32 (float64 for float64 weights), so results are equal in every library and on every device.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import device
from numpy.typing import NDArray

from opq import dtypes
from opq.errors import PlanError, WeightError
from opq.quantization.arrays import Array, array_like, namespace, working_copy
from opq.quantization.rounding import ROUNDINGS, magnitude_levels, magnitude_mask
from opq.rate_distortion.layer_plan import LayerPlan

LARGEST_CODE = 2**24 - 1
"""The largest magnitude of a code. Every integer up to it is exact in float32."""


def mask(weight: Array, plan: LayerPlan) -> Array:
    """Which weights are kept.

    Args:
        weight: Array of the plan's shape.
        plan: If it has `num_kept`, exactly that many weights are kept: the largest magnitudes, and of equal ones the first.
            With compensated rounding or a trellis, the weights whose codes are not 0 are kept. Otherwise, magnitudes above
            `threshold` are kept.

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
    can hold. `plan.rounding` names the rounding method; see opq.quantization.rounding.

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
    max_codes = largest_codes(weight, plan.steps, plan.max_codes)
    levels = magnitude_levels(work, array_like(plan.steps, work, xp), array_like(plan.rounding_offset, work, xp))
    unclipped = levels if plan.max_codes is None else xp.minimum(levels, max_codes)
    if math.prod(plan.shape) and (largest := float(xp.max(unclipped))) > LARGEST_CODE:
        raise WeightError(
            "weight",
            plan.shape,
            f"step {plan.step:g} is too small for its largest magnitude: the code must be at most {LARGEST_CODE}, got "
            f"{largest:.8g}; request a smaller file, or exclude this tensor",
        )
    return xp.astype(ROUNDINGS[plan.rounding].codes(work, plan, max_codes, xp), xp.int32)


def largest_codes(weight: Array, steps: float | NDArray[np.float32], limits: tuple[int, ...] | None = None) -> Array:
    """The largest codes: the plan's limit per channel, and what the weight's dtype can hold.

    Args:
        weight: The weight; axis 0 is the channel axis.
        steps: Its steps, as LayerPlan.steps.
        limits: Largest code per channel, >= 1; None for no limits.

    Returns:
        float32 (float64 for float64 weights), shaped to broadcast with `weight`.

    Raises:
        WeightError: The dtype cannot hold even one step.
    """
    xp = namespace(weight)
    work = working_copy(weight, xp)
    dtype = dtypes.name_of(weight.dtype)
    largest = dtypes.LARGEST[dtype] / np.asarray(steps, dtype=np.float64)
    if (largest < 1.0).any():
        problem = f"step (={np.max(steps):g}) must be at most {dtypes.LARGEST[dtype]:g}, the largest {dtype}"
        raise WeightError("weight", weight.shape, f"{problem}; choose a smaller step, or exclude this tensor")
    max_code = array_like(np.floor(np.minimum(largest, LARGEST_CODE)), work, xp)
    if limits is None:
        return max_code
    per_channel = xp.asarray(limits, dtype=work.dtype, device=device(work))
    per_channel = xp.reshape(per_channel, (-1,) + (1,) * (max(work.ndim, 1) - 1)) if work.ndim else per_channel[0]
    return xp.minimum(per_channel, max_code)


def dequantize(codes: Array, step: float | NDArray[np.float32] | Array, dtype: Any) -> Array:
    """Values step * code.

    The product is rounded to float32 (float64 if `dtype` is float64), then to `dtype`, both to nearest even.

    Args:
        codes: Integer array.
        step: In weight units, a float32 number; or such numbers shaped to broadcast with `codes`, as LayerPlan.steps.
        dtype: Dtype of the result, in the library of `codes`.

    Returns:
        Array of `dtype`, shaped as `codes`.
    """
    xp = namespace(codes)
    work = xp.float64 if dtype == xp.float64 else xp.float32
    levels = xp.astype(codes, work)
    return xp.astype(levels * array_like(step, levels, xp), dtype)


def fake_quantize(weight: Array, plan: LayerPlan) -> Array:
    """Quantize and dequantize: the values that a file restores, in the dtype of the weight.

    Args:
        weight: float16, bfloat16, float32 or float64 array of the plan's shape.
        plan: The weight's plan.

    Raises:
        PlanError, WeightError: See `quantize`.
    """
    return dequantize(quantize(weight, plan), plan.steps, weight.dtype)
