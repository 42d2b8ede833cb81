"""A weight as codes and what they stand for: what goes into a file, and all that comes out of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.errors import WeightError
from opq.quantization.float_order import to_ordinals
from opq.quantization.quantizer import Array, dequantize, quantize
from opq.rate_distortion.plan import LayerPlan

LARGEST_TABLE = 2**16
"""Levels a table may have."""


@dataclass(frozen=True, eq=False)
class CompressedTensor:
    """A quantized weight: its codes, and either the step of a uniform codebook or the levels of any other.

    codes   int32, shaped as the weight: 0 where pruned
    step    a code k stands for step * k: distance of neighbouring codebook values, in weight units, > 0, representable in
            float32; None where there are levels
    dtype   name of the weight's dtype ("float32", "bfloat16", ...)
    levels  a code k > 0 stands for the k-th positive level, a code k < 0 for the k-th negative one, both counted from zero,
            and 0 for zero, which is no level. One dimension, in the weight's dtype, ascending, finite, each level once;
            -0.0 is a level, the first negative one. None where there is a step
    Raises WeightError unless the levels are such, and codes within them.
    """

    codes: NDArray[np.int32]
    step: float | None
    dtype: str
    levels: NDArray[np.generic] | None = None

    def __post_init__(self) -> None:
        """Raise WeightError when step, levels and codes do not go together."""
        if (self.step is None) == (self.levels is None):
            raise WeightError("weight", self.shape, "expected a step or levels, one of them")
        if self.dtype not in dtypes.COMPRESSIBLE:
            kinds = ", ".join(sorted(dtypes.COMPRESSIBLE))
            raise WeightError("weight", self.shape, f"dtype must be one of {kinds}, got {self.dtype!r}")
        if self.codes.dtype != np.int32:
            raise WeightError("weight", self.shape, f"codes must be int32, got {self.codes.dtype}")
        if self.levels is not None:
            self._check_levels(self.levels)

    def _check_levels(self, levels: NDArray[np.generic]) -> None:
        if levels.ndim != 1 or levels.dtype != dtypes.NUMPY[self.dtype] or not 1 <= len(levels) <= LARGEST_TABLE:
            raise WeightError(
                "weight", self.shape, f"levels must be 1 to {LARGEST_TABLE:,} values of {self.dtype} in one dimension"
            )
        ordinals = to_ordinals(levels)
        if not np.isfinite(levels).all() or 0 in ordinals or (ordinals[1:] <= ordinals[:-1]).any():
            raise WeightError("weight", self.shape, "levels must be finite, ascending, each there once, and 0.0 is none")
        negatives = self._negatives
        if self.codes.size and not -negatives <= self.codes.min() <= self.codes.max() <= len(levels) - negatives:
            raise WeightError("weight", self.shape, f"codes must lie in {-negatives} to {len(levels) - negatives}")

    @property
    def _negatives(self) -> int:
        """How many levels are negative."""
        return 0 if self.levels is None else int(np.signbit(self.levels).sum())

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.codes.shape

    def values(self) -> NDArray[np.generic]:
        """The weight itself, in its own dtype; with a step bit-equal to `fake_quantize` of the original."""
        if self.levels is not None:
            negatives = self._negatives
            table = np.insert(self.levels, negatives, 0)
            return table[self.codes + negatives]
        with np.errstate(over="ignore"):  # a file may hold a step that leads to infinity; `verify` refuses it
            return np.asarray(dequantize(self.codes, self.step or math.nan, dtypes.NUMPY[self.dtype]))

    @property
    def num_kept(self) -> int:
        """Number of weights that are not zero."""
        return int(np.count_nonzero(self.codes))

    @property
    def code_bits(self) -> float:
        """Nominal bits of all kept codes together, each in whole bits, as codes of a fixed width are stored.

        With a step, each pays ceil(log2(2 m)), m the largest code of its channel; with levels, ceil(log2(number of levels)).
        """
        if self.num_kept == 0:
            return 0.0
        if self.levels is not None:
            return float(self.num_kept * max((len(self.levels) - 1).bit_length(), 1))
        rows = np.abs(self.codes).reshape(self.codes.shape[0] if self.codes.ndim else 1, -1)
        largest = np.maximum(rows.max(axis=1), 1)
        return float(np.count_nonzero(rows, axis=1) @ np.ceil(np.log2(2.0 * largest)))


def compress_tensor(weight: Array, plan: LayerPlan) -> CompressedTensor:
    """`weight`, a NumPy array, quantized under `plan`."""
    return CompressedTensor(np.asarray(quantize(weight, plan)), plan.step, weight.dtype.name)
