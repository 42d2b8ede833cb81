"""Codebooks map the integer codes of a weight to values. A new kind is a class here and a case in opq.codec.weight_section.

Code 0 always means zero, that is, a pruned weight.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.errors import WeightError
from opq.quantization.float_order import to_ordinals
from opq.quantization.quantizer import dequantize
from opq.rate_distortion import scales
from opq.rate_distortion.scales import Scales

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
    def represents(self, codes: NDArray[np.int32], dtype: str) -> bool:
        """Whether every value is finite in `dtype`, and has the sign of its code. Large codes may share a value."""

    @abstractmethod
    def check(self, codes: NDArray[np.int32], dtype: str) -> None:
        """Raise WeightError if this codebook does not fit these codes, or its values have another dtype."""

    def channels(self, start: int, stop: int) -> Codebook:
        """The codebook of weight[start:stop]."""
        return self


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
        return _bits_of_multiples(codes)

    def check(self, codes: NDArray[np.int32], dtype: str) -> None:
        """A step has a value for every code and in every dtype."""

    def represents(self, codes: NDArray[np.int32], dtype: str) -> bool:
        """As Codebook.represents."""
        flat = codes.reshape(-1)
        blocks = (flat[start : start + _BLOCK] for start in range(0, len(flat), _BLOCK))
        return all(_have_signs(self.values(block, dtype), self.step, block) for block in blocks)


@dataclass(frozen=True, eq=False)
class ScaledCodebook(Codebook):
    """Multiples of a step that each row and each column scales: the value of code k at row i and column j is step_ij * k.

    A weight of shape (o, *rest) has o rows and prod(rest) columns; `opq.rate_distortion.scales` documents step_ij. Axes whose
    scales are all 0 must be None; `codebook_of` makes the codebook for any scales.

    Args:
        step: The step where scales are 0, in weight units, a normal float32 number of at most 2^127.
        rows: (o,) int8, the scale of each row, -127..127 and not all 0; None if rows have none.
        columns: (prod(rest),) likewise. Not both are None.

    Raises:
        WeightError: The scales are not such arrays, or a step_ij is not a normal float32 number.
    """

    step: float
    rows: NDArray[np.int8] | None
    columns: NDArray[np.int8] | None

    def __post_init__(self) -> None:
        """Check step and scales."""
        UniformCodebook(self.step)
        axes = [axis for axis in (self.rows, self.columns) if axis is not None]
        if not axes or not all(axis.dtype == np.int8 and axis.ndim == 1 and axis.any() for axis in axes):
            raise WeightError("weight", (), "rows or columns must be int8 scales in one dimension, not all 0")
        if problem := scales.out_of_range(self.step, self.rows, self.columns):
            raise WeightError("weight", (), problem)

    def __repr__(self) -> str:
        """The step and which axes have scales."""
        return f"ScaledCodebook({self.step!r} by {', '.join(self.axes)})"

    @property
    def axes(self) -> tuple[str, ...]:
        """Which of "rows" and "columns" have scales."""
        return tuple(key for key in ("rows", "columns") if getattr(self, key) is not None)

    def channels(self, start: int, stop: int) -> UniformCodebook | ScaledCodebook:
        """The codebook of weight[start:stop]."""
        return codebook_of(self.step, None if self.rows is None else self.rows[start:stop], self.columns)

    def values(self, codes: NDArray[np.int32], dtype: str) -> NDArray[np.generic]:
        """step_ij * codes; `opq.functional.dequantize` documents how the product is rounded."""
        kind = dtypes.NUMPY[dtype]
        values = np.empty(codes.shape, dtype=kind)
        matrix = _as_matrix(values)
        with np.errstate(over="ignore"):  # the values of an untrusted file may overflow; `verify` refuses them
            for block, part, steps in self._blocks(codes):
                matrix[block] = dequantize(part, steps, kind)
        return values

    def nominal_bits(self, codes: NDArray[np.int32]) -> float:
        """As UniformCodebook.nominal_bits; scales are not counted."""
        return _bits_of_multiples(codes)

    def check(self, codes: NDArray[np.int32], dtype: str) -> None:
        """Raise WeightError if the weight has other numbers of rows or columns."""
        if problem := scales.misfit(self.rows, self.columns, codes.shape):
            raise WeightError("weight", codes.shape, problem)

    def represents(self, codes: NDArray[np.int32], dtype: str) -> bool:
        """As Codebook.represents."""
        values = _as_matrix(self.values(codes, dtype))
        return all(_have_signs(values[block], steps, part) for block, part, steps in self._blocks(codes))

    def _blocks(self, codes: NDArray[np.int32]) -> Iterator[tuple[tuple[slice, slice], NDArray[np.int32], NDArray[np.float32]]]:
        """Blocks of the matrix that bound the memory: place, codes, and steps shaped to broadcast with the codes."""
        matrix = _as_matrix(codes)
        height, width = max(_BLOCK // matrix.shape[1], 1), min(_BLOCK, matrix.shape[1])
        for top in range(0, matrix.shape[0], height):
            for left in range(0, matrix.shape[1], width):
                block = slice(top, top + height), slice(left, left + width)
                rows, columns = (
                    None if axis is None else axis[at] for axis, at in zip((self.rows, self.columns), block, strict=True)
                )
                yield block, matrix[block], scales.steps(self.step, rows, columns)


def codebook_of(step: float, rows: Scales | None, columns: Scales | None) -> UniformCodebook | ScaledCodebook:
    """The codebook of a step and scales; an axis whose scales are all 0 has none.

    Args:
        step: As in ScaledCodebook.
        rows: Scale of each row; None for none.
        columns: Scale of each column; None for none.

    Raises:
        WeightError: See ScaledCodebook.
    """
    rows, columns = (None if axis is None or not np.any(axis) else np.asarray(axis, dtype=np.int8) for axis in (rows, columns))
    return UniformCodebook(step) if rows is None and columns is None else ScaledCodebook(step, rows, columns)


def _as_matrix(array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape(len(array), math.prod(array.shape[1:]))


def _bits_of_multiples(codes: NDArray[np.int32]) -> float:
    rows = np.abs(codes).reshape(codes.shape[0] if codes.ndim else 1, -1)
    largest = np.maximum(rows.max(axis=1), 1)
    return float(np.count_nonzero(rows, axis=1) @ np.ceil(np.log2(2.0 * largest)))


def _have_signs(values: NDArray[np.generic], steps: float | NDArray[np.float32], codes: NDArray[np.int32]) -> bool:
    """Whether values are finite, and nearest to a multiple of their step with the sign of their code."""
    wide = values.astype(np.float64)
    return bool(np.isfinite(wide).all() and (np.sign(np.rint(wide / steps)) == np.sign(codes)).all())


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

    def represents(self, codes: NDArray[np.int32], dtype: str) -> bool:
        """True: all levels are finite, and codes have the signs of their levels."""
        return True

    def check(self, codes: NDArray[np.int32], dtype: str) -> None:
        """Raise WeightError if a code is outside of the table, or the table has another dtype."""
        if self.levels.dtype != dtypes.NUMPY[dtype]:
            raise WeightError("weight", codes.shape, f"levels must be {dtype}, got {self.levels.dtype}")
        lowest, highest = -self.negatives, len(self.levels) - self.negatives
        if codes.size and not lowest <= codes.min() <= codes.max() <= highest:
            got = f"got {codes.min()} to {codes.max()}"
            raise WeightError("weight", codes.shape, f"codes must lie in [{lowest}, {highest}], {got}")
