"""Codebooks map the integer codes of a weight to values. A new kind is a class here and a case in opq.codec.weight_section.

Code 0 always means zero, that is, a pruned weight.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.errors import WeightError
from opq.quantization.float_order import to_ordinals
from opq.quantization.quantizer import dequantize

LARGEST_TABLE = 2**16
"""The largest number of levels in a table."""

_BLOCK = 2**20


class Codebook(ABC):
    """The values of the codes of one weight."""

    @abstractmethod
    def values(self, codes: NDArray[np.int32], dtype: str) -> NDArray[np.generic]:
        """The values of codes.

        Args:
            codes: int32, any shape.
            dtype: Name of the weight's dtype.

        Returns:
            Values in that dtype, shaped as `codes`.
        """

    @abstractmethod
    def nominal_bits(self, codes: NDArray[np.int32]) -> float:
        """Total bits of the nonzero codes if each is stored with a fixed width in whole bits."""

    @abstractmethod
    def check(self, codes: NDArray[np.int32], dtype: str) -> None:
        """Raise WeightError if this codebook has no value for a code, or its values have another dtype."""


@dataclass(frozen=True)
class UniformCodebook(Codebook):
    """Multiples of a step: the value of code k is step * k, with one step for all channels.

    Args:
        step: Distance of neighbouring values in weight units, > 0, representable in float32.

    Raises:
        WeightError: The step is not such a number.
    """

    step: float

    def __post_init__(self) -> None:
        """Check the step."""
        with np.errstate(over="ignore"):
            if not 0.0 < self.step < math.inf or float(np.float32(self.step)) != self.step:
                raise WeightError("weight", (), f"step must be positive and a float32 number, got {self.step!r}")

    def values(self, codes: NDArray[np.int32], dtype: str) -> NDArray[np.generic]:
        """Step * codes; `opq.functional.dequantize` documents how the product is rounded."""
        with np.errstate(over="ignore"):  # the values of an untrusted file may overflow; `verify` refuses them
            return np.asarray(dequantize(codes, self.step, dtypes.NUMPY[dtype]))

    def nominal_bits(self, codes: NDArray[np.int32]) -> float:
        """Sum of ceil(log2(2 m)) over nonzero codes, where m is the largest magnitude in the channel (axis 0) of the code."""
        rows = np.abs(codes).reshape(codes.shape[0] if codes.ndim else 1, -1)
        largest = np.maximum(rows.max(axis=1), 1)
        return float(np.count_nonzero(rows, axis=1) @ np.ceil(np.log2(2.0 * largest)))

    def check(self, codes: NDArray[np.int32], dtype: str) -> None:
        """A step has a value for every code and in every dtype."""

    def represents(self, codes: NDArray[np.int32], dtype: str) -> bool:
        """Whether every value is finite in `dtype` and has the sign of its code. Large codes may share a value."""
        flat = codes.reshape(-1)
        for start in range(0, len(flat), _BLOCK):
            block = flat[start : start + _BLOCK]
            values = self.values(block, dtype).astype(np.float64)
            if not np.isfinite(values).all() or (np.sign(np.rint(values / self.step)) != np.sign(block)).any():
                return False
        return True


@dataclass(frozen=True, eq=False)
class LevelTable(Codebook):
    """A sorted table of distinct values, for weights that another tool clustered or quantized.

    The value of code k > 0 is the k-th positive level, and that of code k < 0 the |k|-th negative one, both in order of
    magnitude.

    Args:
        levels: (n,), 1 <= n <= LARGEST_TABLE, in the weight's dtype: strictly ascending, finite, without 0.0. -0.0 may be a
            level; its code is -1.

    Raises:
        WeightError: The levels are not such an array.
    """

    levels: NDArray[np.generic]

    def __post_init__(self) -> None:
        """Check the levels."""
        levels = self.levels
        if levels.ndim != 1 or levels.dtype.name not in dtypes.COMPRESSIBLE or not 1 <= len(levels) <= LARGEST_TABLE:
            got = f"got {levels.dtype} of shape {levels.shape}"
            raise WeightError("weight", (), f"levels must be 1 to {LARGEST_TABLE:,} floats in one dimension, {got}")
        ordinals = to_ordinals(levels)
        if not np.isfinite(levels).all() or 0 in ordinals or (ordinals[1:] <= ordinals[:-1]).any():
            raise WeightError("weight", (), "levels must be finite, strictly ascending, and without 0.0")

    def __repr__(self) -> str:
        """The number of levels."""
        return f"LevelTable({len(self.levels)} levels)"

    @property
    def negatives(self) -> int:
        """Number of negative levels, -0.0 included."""
        return int(np.signbit(self.levels).sum())

    def values(self, codes: NDArray[np.int32], dtype: str) -> NDArray[np.generic]:
        """The levels of codes, bit for bit."""
        table = np.insert(self.levels, self.negatives, 0)
        return np.asarray(table[codes + self.negatives, ...])  # without the dots, a scalar for a weight without dimensions

    def nominal_bits(self, codes: NDArray[np.int32]) -> float:
        """ceil(log2(number of levels)) per nonzero code."""
        return float(np.count_nonzero(codes) * max((len(self.levels) - 1).bit_length(), 1))

    def check(self, codes: NDArray[np.int32], dtype: str) -> None:
        """Raise WeightError if a code is outside of the table, or the table has another dtype."""
        if self.levels.dtype != dtypes.NUMPY[dtype]:
            raise WeightError("weight", codes.shape, f"levels must be {dtype}, got {self.levels.dtype}")
        lowest, highest = -self.negatives, len(self.levels) - self.negatives
        if codes.size and not lowest <= codes.min() <= codes.max() <= highest:
            got = f"got {codes.min()} to {codes.max()}"
            raise WeightError("weight", codes.shape, f"codes must lie in [{lowest}, {highest}], {got}")
