"""The plan of one weight: how it is pruned and quantized."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from opq.config import RoundingName
from opq.errors import PlanError
from opq.rate_distortion import scales

_LARGEST_NUMBER = 1e300
_ROUNDINGS = [name for name in get_args(RoundingName) if name != "auto"]


@dataclass(frozen=True)
class LayerPlan:
    """How one weight is pruned and quantized: code = sign(w) max(1, floor(|w|/step + rounding_offset)) if kept, 0 if pruned.

    With "compensated" rounding w is first moved; with "trellis" codes are those of `opq.quantization.trellis`.

    With scales (`opq.rate_distortion.scales`), step and threshold of each element are the plan's times its factor.

    Args:
        shape: The weight's shape; axis 0 is the channel axis.
        step: Distance of neighbouring codebook values, in weight units, > 0, representable in float32.
        threshold: Magnitudes up to it are pruned, in weight units, >= 0. With a trellis it has no effect, and plans have 0.
        rounding_offset: 0..1: 1/2, or 1 - threshold/step with a dead zone. With a trellis it has no effect.
        sparsity: Predicted fraction of zeros, 0..1.
        bits: Predicted bits per weight of the encoded codes.
        num_kept: Number of kept weights, which are the largest ones; it replaces `threshold`. None: `threshold` decides.
        max_codes: Largest code per channel, >= 1; None for no clipping.
        rounding: "deadzone": each weight is rounded alone. "compensated": `num_kept` and `max_codes` must be None. "trellis":
            so must they, and the weight must have two dimensions.
        rows: Scale of each row (axis 0), -127..127; None if all are 0. `num_kept` and `max_codes` must be None with scales.
        columns: Scale of each column (position in a row), likewise.

    Raises:
        PlanError: A field has the wrong type or is out of range.
    """

    shape: tuple[int, ...]
    step: float
    threshold: float
    rounding_offset: float
    sparsity: float
    bits: float
    num_kept: int | None = None
    max_codes: tuple[int, ...] | None = field(default=None, repr=False)
    rounding: str = "deadzone"
    rows: tuple[int, ...] | None = field(default=None, repr=False)
    columns: tuple[int, ...] | None = field(default=None, repr=False)

    @property
    def count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def is_trellis(self) -> bool:
        """Whether codes follow the trellis of `opq.quantization.trellis`."""
        return self.rounding == "trellis"

    @property
    def without_trellis(self) -> LayerPlan:
        """The plan without a trellis: each weight rounded alone to multiples of two steps, which take about as many bits."""
        if not self.is_trellis:
            return self
        return replace(self, rounding="deadzone", step=2.0 * self.step, threshold=self.step, rounding_offset=0.5)

    @property
    def scaled_axes(self) -> tuple[str, ...]:
        """Which of "rows" and "columns" have scales."""
        return tuple(key for key in ("rows", "columns") if getattr(self, key) is not None)

    @property
    def steps(self) -> float | NDArray[np.float32]:
        """The step of each element in weight units: `step`, or float32 numbers shaped to broadcast with the weight."""
        return scales.steps_like(self.step, self.rows, self.columns, self.shape)

    def __post_init__(self) -> None:
        """Check every field."""
        shape, max_codes = self.shape, self.max_codes
        if not isinstance(shape, tuple) or not all(is_count(size) for size in shape):
            raise PlanError(f"shape must hold positive integers, got {shape!r}")
        for key in ("step", "threshold", "rounding_offset", "sparsity", "bits"):
            value = getattr(self, key)
            if not is_number(value) or value < 0.0:
                raise PlanError(f"{key} must be a finite number >= 0, got {value!r}")
            object.__setattr__(self, key, float(value))  # JSON has no difference between 1 and 1.0
        if not 0.0 < self.step < 2.0**128 or float(np.float32(self.step)) != self.step:
            raise PlanError(f"step must be positive and a float32 number, got {self.step!r}")
        for key in ("rounding_offset", "sparsity"):
            if getattr(self, key) > 1.0:
                raise PlanError(f"{key} must lie in [0, 1], got {getattr(self, key)!r}")
        if self.num_kept is not None and not (type(self.num_kept) is int and 0 <= self.num_kept <= self.count):
            raise PlanError(f"num_kept must lie in [0, {self.count}], got {self.num_kept!r}")
        channels = shape[0] if shape else 1
        if max_codes is not None and not (
            isinstance(max_codes, tuple) and len(max_codes) == channels and all(is_count(code) for code in max_codes)
        ):
            raise PlanError(f"max_codes must be {channels} integers >= 1, one per channel")
        if self.rounding not in _ROUNDINGS:
            raise PlanError(f"rounding must be one of {', '.join(map(repr, _ROUNDINGS))}, got {self.rounding!r}")
        if self.rounding != "deadzone" and (self.num_kept is not None or max_codes is not None):
            raise PlanError(f"num_kept and max_codes must be null with {self.rounding} rounding")
        if self.is_trellis and len(shape) != 2:
            raise PlanError(f"rounding must be 'compensated' or 'deadzone' for the shape {shape}, got 'trellis'")
        for key in self.scaled_axes:
            values = getattr(self, key)
            if not isinstance(values, tuple) or set(map(type, values)) != {int}:
                raise PlanError(f"{key} must be integers, got {values!r:.80}")
        if problem := scales.misfit(self.rows, self.columns, shape):
            raise PlanError(problem)
        for key in self.scaled_axes:
            if not any(getattr(self, key)):
                object.__setattr__(self, key, None)
        if self.scaled_axes and (self.num_kept is not None or max_codes is not None):
            raise PlanError("rows and columns must be null with num_kept and max_codes")
        if problem := scales.out_of_range(self.step, self.rows, self.columns):
            raise PlanError(problem)


def is_number(value: object) -> bool:
    """Whether a value from JSON is a number that is not too large."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST_NUMBER


def is_count(value: object) -> bool:
    """Whether a value from JSON is a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
