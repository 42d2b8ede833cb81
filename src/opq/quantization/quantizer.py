"""The one place that rounds.

Written against the Python array API standard, so that NumPy arrays and torch tensors take the same road: every operation is
elementwise IEEE arithmetic in float32 (float64 for float64 weights), whose results no library and no device may choose.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from opq import dtypes
from opq.errors import PlanError, WeightError
from opq.quantization.error_feedback import compensated_codes
from opq.rate_distortion.plan import LayerPlan

Array = Any
"""An array of any library that array-api-compat knows, NumPy and PyTorch among them."""

LARGEST_CODE = 2**24 - 1
"""Largest magnitude of a code: every integer up to it is exact in float32."""


def mask(weight: Array, plan: LayerPlan) -> Array:
    """True where `weight` is kept; bool, shaped as `weight`.

    With `plan.kept` the mask keeps exactly so many weights, the largest magnitudes, the first ones of equal magnitudes;
    with `plan.shaped` it keeps what does not round to 0; otherwise it keeps the magnitudes above `plan.threshold`.
    """
    xp = namespace(weight)
    if _is_shaped(plan):
        return quantize(weight, plan) != 0
    magnitude = xp.abs(_working(weight, xp))
    if plan.num_kept is None:
        return magnitude > _scalar(plan.threshold, magnitude, xp)
    if plan.num_kept == 0:
        return xp.zeros_like(magnitude, dtype=xp.bool)
    flat = xp.reshape(magnitude, (-1,))
    smallest_kept = xp.sort(flat)[-plan.num_kept]
    above, ties = flat > smallest_kept, flat == smallest_kept
    # Of equal magnitudes as many as still fit, in the order they stand.
    room = plan.num_kept - xp.sum(above, dtype=xp.int64)
    fits = xp.cumulative_sum(xp.astype(ties, xp.int64)) <= room
    return xp.reshape(above | (ties & fits), magnitude.shape)


def quantize(weight: Array, plan: LayerPlan) -> Array:
    """Codes of `weight` under `plan`: int32, shaped as `weight`, 0 where pruned.

    code = sign(w) max(1, floor(|w| / step + offset)) where kept, cut at the channel's limit if the plan has limits, and at the
    largest code whose value the weight's dtype can hold. With `plan.shaped` weights of two dimensions or more are first moved
    by what makes up for the errors of those before them; those that are zero stay zero.
    Raises PlanError when the plan was made for another shape, WeightError when a code would exceed LARGEST_CODE.
    """
    xp = namespace(weight)
    if tuple(weight.shape) != plan.shape:
        raise PlanError(f"expected a weight of shape {plan.shape}, got {tuple(weight.shape)}")
    work = _working(weight, xp)
    most = largest_codes(weight, plan)
    levels = uncut_levels(work, _scalar(plan.step, work, xp), _scalar(plan.rounding_offset, work, xp))
    uncut = levels if plan.max_codes is None else xp.minimum(levels, most)
    if math.prod(plan.shape) and (largest := float(xp.max(uncut))) > LARGEST_CODE:
        raise WeightError(
            "weight",
            plan.shape,
            f"step {plan.step:g} is too fine for its largest magnitude: it would take the code {largest:.0f}, "
            f"at most {LARGEST_CODE} is possible; ask for a smaller file, or exclude this tensor",
        )
    if _is_shaped(plan):
        border = _scalar(plan.threshold / plan.step, work, xp)
        codes = compensated_codes(
            work / _scalar(plan.step, work, xp), _scalar(plan.rounding_offset, work, xp), border, most, xp
        )
    else:
        codes = signed_levels(work, levels, most, mask(weight, plan) & (work != 0))
    return xp.astype(codes, xp.int32)


def largest_codes(weight: Array, plan: LayerPlan) -> Array:
    """The largest code that each channel of `weight` may take, shaped to broadcast with it; float32 (float64 for float64).

    It is the channel's limit if the plan has limits, and what the weight's dtype can hold: rounding up must not lead out of a
    narrow one. Raises WeightError where the dtype cannot even hold one step.
    """
    xp = namespace(weight)
    work = _working(weight, xp)
    fitting = dtypes.LARGEST[dtypes.name_of(weight.dtype)] / plan.step
    if fitting < 1.0:
        raise WeightError(
            "weight", plan.shape, f"step {plan.step:g} is more than its dtype can hold; fix a smaller one, or exclude it"
        )
    most = _scalar(min(math.floor(min(fitting, LARGEST_CODE)), LARGEST_CODE), work, xp)
    if plan.max_codes is None:
        return most
    limits = xp.asarray(plan.max_codes, dtype=work.dtype, device=device(work))
    limits = xp.reshape(limits, (-1,) + (1,) * (max(work.ndim, 1) - 1)) if work.ndim else limits[0]
    return xp.minimum(limits, most)


def uncut_levels(work: Array, step: Array, offset: Array) -> Array:
    """floor(|w| / step + offset) of weights in float32 or float64; `step` and `offset` are arrays of no dimension, alike."""
    xp = namespace(work)
    return xp.floor(xp.abs(work) / step + offset)


def signed_levels(work: Array, levels: Array, most: Array, kept: Array) -> Array:
    """Codes as floats: `levels` cut to 1..most, with the sign of `work`, where `kept`; 0 elsewhere. Zero counts as positive."""
    xp = namespace(work)
    cut = xp.maximum(xp.minimum(levels, most), xp.ones_like(levels))
    return xp.where(kept, xp.where(work < 0, -cut, cut), xp.zeros_like(cut))


def dequantize(codes: Array, step: float | Array, dtype: Any) -> Array:
    """Values step * code in `dtype`, shaped as `codes`.

    The product is rounded to float32 (float64 when `dtype` is float64), then to `dtype`, both to nearest even.
    """
    xp = namespace(codes)
    work = xp.float64 if dtype == xp.float64 else xp.float32
    levels = xp.astype(codes, work)
    return xp.astype(levels * _scalar(step, levels, xp), dtype)


def fake_quantize(weight: Array, plan: LayerPlan) -> Array:
    """`weight` as it comes back from a file: quantized and dequantized, in its own dtype."""
    return dequantize(quantize(weight, plan), plan.step, weight.dtype)


def namespace(array: Array) -> Any:
    """The array API functions for `array`."""
    # NumPy's own, not array_api_compat's: importing those loads all of NumPy, its Fortran compiler included, for 0.1 s.
    return np if isinstance(array, np.ndarray) else array_namespace(array)


def _is_shaped(plan: LayerPlan) -> bool:
    return plan.shaped and len(plan.shape) > 1 and plan.count > 0


def _working(weight: Array, xp: Any) -> Array:
    return weight if weight.dtype == xp.float64 else xp.astype(weight, xp.float32, copy=False)


def _scalar(value: float | Array, like: Array, xp: Any) -> Array:
    # An array on the same device, not a Python number: some libraries turn a division by a number into a multiplication by
    # its reciprocal, which rounds differently.
    return xp.asarray(value, dtype=like.dtype, device=device(like))
