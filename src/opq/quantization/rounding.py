"""Rounding methods. A new method is a class in this module, an entry in ROUNDINGS, and a name in opq.config.

All functions use elementwise IEEE operations in float32 (float64 for float64 weights), so NumPy, PyTorch and all devices give
the same codes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final

import numpy as np

from opq.errors import WeightError
from opq.quantization.arrays import Array, array_like, namespace
from opq.quantization.error_feedback import compensated_codes, squared_error_factor
from opq.quantization.trellis import SMALLEST_LIMIT, trellis_codes
from opq.rate_distortion import deadzone, uniform
from opq.rate_distortion.family import Family
from opq.rate_distortion.layer_plan import LayerPlan


class Rounding(ABC):
    """A rounding method.

    Attributes:
        family: The quantizers from which joint mode chooses with this method.
        is_elementwise: Whether each weight is rounded alone. Only then can masks be recomputed while a network trains.
    """

    family: ClassVar[Family]
    is_elementwise: ClassVar[bool]

    @abstractmethod
    def codes(self, work: Array, plan: LayerPlan, max_codes: Array, xp: Any) -> Array:
        """Round weights to codes.

        Args:
            work: The weights in float32 or float64, with the plan's shape.
            plan: Their plan.
            max_codes: The largest codes, shaped to broadcast with `work`.
            xp: The array API functions for `work`.

        Returns:
            Signed codes in the dtype and shape of `work`.
        """

    @abstractmethod
    def squared_error_factor(self, shape: tuple[int, ...]) -> float:
        """Expected squared error of a weight of this shape over that of rounding each element alone."""


class DeadzoneRounding(Rounding):
    """Each weight is rounded alone: code = sign(w) max(1, floor(|w| / step + rounding_offset)) if kept, 0 if pruned."""

    family: ClassVar[Family] = deadzone
    is_elementwise: ClassVar[bool] = True

    def codes(self, work: Array, plan: LayerPlan, max_codes: Array, xp: Any) -> Array:
        """As Rounding.codes."""
        levels = magnitude_levels(work, array_like(plan.steps, work, xp), array_like(plan.rounding_offset, work, xp))
        return signed_levels(work, levels, max_codes, magnitude_mask(work, plan, xp) & (work != 0))

    def squared_error_factor(self, shape: tuple[int, ...]) -> float:
        """1.0 for every shape."""
        return 1.0


class CompensatedRounding(Rounding):
    """Errors within an output row compensate each other, as in GPTQ, under a fixed prior; see opq.quantization.error_feedback.

    Weights with fewer than two dimensions are rounded as in DeadzoneRounding.
    """

    family: ClassVar[Family] = uniform
    is_elementwise: ClassVar[bool] = False

    def codes(self, work: Array, plan: LayerPlan, max_codes: Array, xp: Any) -> Array:
        """As Rounding.codes; weights that are zero stay zero."""
        if len(plan.shape) < 2 or plan.count == 0:
            return DeadzoneRounding().codes(work, plan, max_codes, xp)
        threshold = array_like(plan.threshold / plan.step, work, xp)
        offset = array_like(plan.rounding_offset, work, xp)
        return compensated_codes(work / array_like(plan.steps, work, xp), offset, threshold, max_codes, xp)

    def squared_error_factor(self, shape: tuple[int, ...]) -> float:
        """As Rounding.squared_error_factor."""
        return squared_error_factor(shape)


class TrellisRounding(Rounding):
    """The codes of each row follow a trellis, with the least squared error; see opq.quantization.trellis."""

    family: ClassVar[Family] = uniform
    is_elementwise: ClassVar[bool] = False

    def codes(self, work: Array, plan: LayerPlan, max_codes: Array, xp: Any) -> Array:
        """As Rounding.codes; weights that are zero stay zero.

        Raises:
            WeightError: The dtype cannot hold SMALLEST_LIMIT steps.
        """
        if float(xp.min(max_codes)) < SMALLEST_LIMIT:
            problem = f"step (={np.max(plan.steps):g}) is too large for a trellis in its dtype; choose another rounding"
            raise WeightError("weight", plan.shape, problem)
        return trellis_codes(work / array_like(plan.steps, work, xp), max_codes, xp)

    def squared_error_factor(self, shape: tuple[int, ...]) -> float:
        """1.0: a plan's step is chosen so that the squared error is that of uniform rounding."""
        return 1.0


ROUNDINGS: Final[dict[str, Rounding]] = {
    "compensated": CompensatedRounding(),
    "deadzone": DeadzoneRounding(),
    "trellis": TrellisRounding(),
}
"""{name, as in LayerPlan.rounding: method}"""


def magnitude_mask(work: Array, plan: LayerPlan, xp: Any) -> Array:
    """Which weights are kept when each is rounded alone.

    Args:
        work: Weights in float32 or float64.
        plan: Their plan. With `num_kept` that many of the largest magnitudes are kept, and of equal ones the first in row-major
            order. Otherwise magnitudes above `threshold` are kept; with scales, magnitudes over (step of the element / step).
        xp: The array API functions for `work`.

    Returns:
        bool, shaped as `work`, True if kept.
    """
    magnitude = xp.abs(work)
    if plan.scaled_axes:
        magnitude = magnitude / array_like(plan.steps / np.float32(plan.step), work, xp)
    if plan.num_kept is None:
        return magnitude > array_like(plan.threshold, magnitude, xp)
    if plan.num_kept == 0:
        return xp.zeros_like(magnitude, dtype=xp.bool)
    flat = xp.reshape(magnitude, (-1,))
    smallest_kept = xp.sort(flat)[-plan.num_kept]
    above, ties = flat > smallest_kept, flat == smallest_kept
    num_ties = plan.num_kept - xp.sum(above, dtype=xp.int64)
    fits = xp.cumulative_sum(xp.astype(ties, xp.int64)) <= num_ties
    return xp.reshape(above | (ties & fits), magnitude.shape)


def magnitude_levels(work: Array, step: Array, rounding_offset: Array) -> Array:
    """floor(|w| / step + rounding_offset); step and offset broadcast with `work` and have its dtype."""
    xp = namespace(work)
    return xp.floor(xp.abs(work) / step + rounding_offset)


def signed_levels(work: Array, levels: Array, max_codes: Array, mask: Array) -> Array:
    """Clip levels and give them signs.

    Args:
        work: Weights, float32 or float64.
        levels: Unsigned levels of the weights, as floats.
        max_codes: Largest code, shaped to broadcast with `work`.
        mask: True if kept.

    Returns:
        `levels` clipped to 1..max_codes, with the sign of `work` (positive for zero), if kept; 0 if pruned.
    """
    xp = namespace(work)
    clipped = xp.maximum(xp.minimum(levels, max_codes), xp.ones_like(levels))
    return xp.where(mask, xp.where(work < 0, -clipped, clipped), xp.zeros_like(clipped))
