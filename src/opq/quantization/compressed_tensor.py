"""CompressedTensor: a quantized weight, as it is written to a file and read from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.errors import WeightError
from opq.quantization.arrays import Array
from opq.quantization.codebook import Codebook, LevelTable, ScaledCodebook, UniformCodebook, codebook_of
from opq.quantization.quantizer import quantize
from opq.rate_distortion.layer_plan import LayerPlan

CodeReader = Callable[[int, int], NDArray[np.int32]]
"""codes(start, stop) returns the codes from one position in row-major order to another, in one dimension; thread-safe."""


class QuantizedWeight(Protocol):
    """A weight that can be encoded. Its codes may be computed when they are read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""

    @property
    def dtype(self) -> str:
        """Name of the weight's dtype."""

    @property
    def codebook(self) -> Codebook:
        """The values of the codes."""

    @property
    def trellis(self) -> bool:
        """Whether the codes follow the trellis of `opq.quantization.trellis`."""

    def read_codes(self) -> CodeReader:
        """A reader of the codes. It may hold the weight in memory until it is freed."""


@dataclass(frozen=True, eq=False)
class CompressedTensor:
    """A quantized weight in memory.

    Args:
        codes: int32, shaped as the weight; 0 if pruned.
        codebook: The values of the codes: a UniformCodebook, a ScaledCodebook or a LevelTable.
        dtype: Name of the weight's dtype: "float32", "float64", "float16" or "bfloat16".
        trellis: Whether the codes follow the trellis of `opq.quantization.trellis`, as encoding checks. A file does not say so
            of a weight whose codes are all 0.

    Raises:
        WeightError: The codes are not int32, the dtype is another one, the codebook does not fit to them, or a weight with a
            trellis has a table of levels.
    """

    codes: NDArray[np.int32]
    codebook: Codebook
    dtype: str
    trellis: bool = False

    def __post_init__(self) -> None:
        """Check codes, codebook and dtype."""
        if self.dtype not in dtypes.COMPRESSIBLE:
            kinds = ", ".join(sorted(dtypes.COMPRESSIBLE))
            raise WeightError("weight", self.shape, f"dtype must be one of {kinds}, got {self.dtype!r}")
        if self.codes.dtype != np.int32:
            raise WeightError("weight", self.shape, f"codes must be int32, got {self.codes.dtype}")
        if self.trellis and isinstance(self.codebook, LevelTable):
            raise WeightError("weight", self.shape, "codes of a table of levels cannot follow the trellis")
        self.codebook.check(self.codes, self.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.codes.shape

    def __repr__(self) -> str:
        """All but the codes, which are too much to print."""
        trellis = ", trellis=True" if self.trellis else ""
        return f"CompressedTensor(shape={self.shape}, codebook={self.codebook!r}, dtype={self.dtype!r}{trellis})"

    def values(self) -> NDArray[np.generic]:
        """The dequantized weight in its own dtype; with a step it is bit-equal to `fake_quantize` of the original."""
        return self.codebook.values(self.codes, self.dtype)

    def channels(self, start: int, stop: int) -> CompressedTensor:
        """The weight's rows from `start` to `stop`; it has at least one dimension."""
        return CompressedTensor(self.codes[start:stop], self.codebook.channels(start, stop), self.dtype, self.trellis)

    @property
    def without_trellis(self) -> CompressedTensor:
        """The weight without a trellis: each value at the nearest multiple of two steps, the even one of two as near."""
        if not self.trellis or not isinstance(self.codebook, UniformCodebook | ScaledCodebook):
            return self
        codes = np.rint(0.5 * self.codes).astype(np.int32)
        return CompressedTensor(codes, replace(self.codebook, step=2.0 * self.codebook.step), self.dtype)

    def read_codes(self) -> CodeReader:
        """A reader of the codes."""
        flat = np.require(self.codes, np.int32, ["C", "A"]).reshape(-1)
        return lambda start, stop: flat[start:stop]

    @property
    def num_kept(self) -> int:
        """Number of weights that are not zero."""
        return int(np.count_nonzero(self.codes))

    @property
    def indices(self) -> NDArray[np.int32]:
        """What is coded, int32: with a trellis the codes k of its quantizers, otherwise the codes."""
        return np.sign(self.codes) * ((np.abs(self.codes) + 1) // 2) if self.trellis else self.codes

    @property
    def nominal_bits(self) -> float:
        """Total bits of the nonzero indices if each is stored with a fixed width in whole bits."""
        return self.codebook.nominal_bits(self.indices) if self.num_kept else 0.0


def compress_tensor(weight: Array, plan: LayerPlan) -> CompressedTensor:
    """Quantize a weight.

    Args:
        weight: NumPy array of float16, bfloat16, float32 or float64, with the plan's shape.
        plan: The weight's plan.

    Raises:
        PlanError, WeightError: See `quantize`.
    """
    codes = np.asarray(quantize(weight, plan))
    return CompressedTensor(codes, codebook_of(plan.step, plan.rows, plan.columns), weight.dtype.name, plan.is_trellis)
