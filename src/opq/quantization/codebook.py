"""Codebooks: what the integer codes of a weight stand for. A new kind of codebook is a class here and an entry in the codec.

Code 0 always stands for zero, that is, for a pruned weight.
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
"""Levels a table may have."""

_BLOCK = 2**20


class Codebook(ABC):
    """What the codes of one weight stand for."""

    @abstractmethod
    def values(self, codes: NDArray[np.int32], dtype: str) -> NDArray[np.generic]:
        """The weights in the named dtype, shaped as `codes`."""

    @abstractmethod
    def nominal_bits(self, codes: NDArray[np.int32]) -> float:
        """Bits of all nonzero codes together if each is stored with a fixed width, in whole bits."""

    @abstractmethod
    def check(self, codes: NDArray[np.int32], dtype: str) -> None:
        """Raise WeightError when codes or dtype do not go with this codebook."""


@dataclass(frozen=True)
class UniformCodebook(Codebook):
    """Multiples of a step: code k stands for step * k, one step for all channels.

    Args:
        step: Distance of neighbouring values in weight units, > 0, representable in float32.

    Raises:
        WeightError: The step is anything else.
    """

    step: float

    def __post_init__(self) -> None:
        """Check the step."""
        with np.errstate(over="ignore"):
            if not 0.0 < self.step < math.inf or float(np.float32(self.step)) != self.step:
                raise WeightError("weight", (), f"step must be positive and a float32 number, got {self.step!r}")

    def values(self, codes: NDArray[np.int32], dtype: str) -> NDArray[np.generic]:
        """Step * codes; see `opq.functional.dequantize` for how the product is rounded."""
        with np.errstate(over="ignore"):  # a file may hold a step that leads to infinity; `verify` refuses it
            return np.asarray(dequantize(codes, self.step, dtypes.NUMPY[dtype]))

    def nominal_bits(self, codes: NDArray[np.int32]) -> float:
        """Sum of ceil(log2(2 m)) over nonzero codes, m the largest magnitude in the code's channel (axis 0)."""
        rows = np.abs(codes).reshape(codes.shape[0] if codes.ndim else 1, -1)
        largest = np.maximum(rows.max(axis=1), 1)
        return float(np.count_nonzero(rows, axis=1) @ np.ceil(np.log2(2.0 * largest)))

    def check(self, codes: NDArray[np.int32], dtype: str) -> None:
        """Any codes go with a step."""

    def represents(self, codes: NDArray[np.int32], dtype: str) -> bool:
        """Whether every value is finite in `dtype` and has the sign of its code; wide codes may share a value."""
        flat = codes.reshape(-1)
        for start in range(0, len(flat), _BLOCK):
            block = flat[start : start + _BLOCK]
            values = self.values(block, dtype).astype(np.float64)
            if not np.isfinite(values).all() or (np.sign(np.rint(values / self.step)) != np.sign(block)).any():
                return False
        return True


@dataclass(frozen=True, eq=False)
class LevelTable(Codebook):
    """A sorted table of distinct values, for weights that were clustered or quantized elsewhere.

    Code k > 0 stands for the k-th positive level and code k < 0 for the k-th negative one, both counted from zero.

    Args:
        levels: (n,), 1 <= n <= LARGEST_TABLE, in the weight's dtype: ascending, finite, each once, without 0.0. -0.0 is a
            level, the first negative one.

    Raises:
        WeightError: The levels are anything else.
    """

    levels: NDArray[np.generic]

    def __post_init__(self) -> None:
        """Check the levels."""
        levels = self.levels
        if levels.ndim != 1 or levels.dtype.name not in dtypes.COMPRESSIBLE or not 1 <= len(levels) <= LARGEST_TABLE:
            raise WeightError("weight", (), f"levels must be 1 to {LARGEST_TABLE:,} floats in one dimension")
        ordinals = to_ordinals(levels)
        if not np.isfinite(levels).all() or 0 in ordinals or (ordinals[1:] <= ordinals[:-1]).any():
            raise WeightError("weight", (), "levels must be finite, ascending, each there once, and without 0.0")

    @property
    def negatives(self) -> int:
        """How many levels are negative."""
        return int(np.signbit(self.levels).sum())

    def values(self, codes: NDArray[np.int32], dtype: str) -> NDArray[np.generic]:
        """The levels that codes stand for, bit for bit."""
        table = np.insert(self.levels, self.negatives, 0)
        return table[codes + self.negatives]

    def nominal_bits(self, codes: NDArray[np.int32]) -> float:
        """ceil(log2(number of levels)) per nonzero code."""
        return float(np.count_nonzero(codes) * max((len(self.levels) - 1).bit_length(), 1))

    def check(self, codes: NDArray[np.int32], dtype: str) -> None:
        """Raise WeightError when a code is beyond the table, or the table is of another dtype."""
        if self.levels.dtype != dtypes.NUMPY[dtype]:
            raise WeightError("weight", codes.shape, f"levels must be {dtype}, got {self.levels.dtype}")
        lowest, highest = -self.negatives, len(self.levels) - self.negatives
        if codes.size and not lowest <= codes.min() <= codes.max() <= highest:
            raise WeightError("weight", codes.shape, f"codes must lie in {lowest} to {highest}")
