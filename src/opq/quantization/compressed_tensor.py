"""A quantized weight: what goes into a file, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.errors import WeightError
from opq.quantization.arrays import Array
from opq.quantization.codebook import Codebook, UniformCodebook
from opq.quantization.quantizer import quantize
from opq.rate_distortion.plan import LayerPlan

CodeReader = Callable[[int, int], NDArray[np.int32]]
"""Gives the codes of a weight from one position in row-major order to another, in one dimension; safe to call from threads."""


class QuantizedWeight(Protocol):
    """What an encoder needs to know of a weight. The codes may be computed when they are read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""

    @property
    def dtype(self) -> str:
        """Name of the weight's dtype."""

    @property
    def codebook(self) -> Codebook:
        """What the codes stand for."""

    def read_codes(self) -> CodeReader:
        """A reader of the codes; what it holds is freed with it."""


@dataclass(frozen=True, eq=False)
class CompressedTensor:
    """A quantized weight in memory.

    Args:
        codes: int32, shaped as the weight; 0 if pruned.
        codebook: What codes stand for: a UniformCodebook or a LevelTable.
        dtype: Name of the weight's dtype: "float32", "float64", "float16" or "bfloat16".

    Raises:
        WeightError: The three do not go together.
    """

    codes: NDArray[np.int32]
    codebook: Codebook
    dtype: str

    def __post_init__(self) -> None:
        """Check that codes, codebook and dtype go together."""
        if self.dtype not in dtypes.COMPRESSIBLE:
            kinds = ", ".join(sorted(dtypes.COMPRESSIBLE))
            raise WeightError("weight", self.shape, f"dtype must be one of {kinds}, got {self.dtype!r}")
        if self.codes.dtype != np.int32:
            raise WeightError("weight", self.shape, f"codes must be int32, got {self.codes.dtype}")
        self.codebook.check(self.codes, self.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.codes.shape

    def values(self) -> NDArray[np.generic]:
        """The weight in its own dtype; with a step bit-equal to `fake_quantize` of the original."""
        return self.codebook.values(self.codes, self.dtype)

    def read_codes(self) -> CodeReader:
        """A reader of slices of the codes."""
        flat = np.require(self.codes, np.int32, ["C", "A"]).reshape(-1)
        return lambda start, stop: flat[start:stop]

    @property
    def num_kept(self) -> int:
        """Number of weights that are not zero."""
        return int(np.count_nonzero(self.codes))

    @property
    def nominal_bits(self) -> float:
        """Bits of all nonzero codes together if each is stored with a fixed width, in whole bits."""
        return self.codebook.nominal_bits(self.codes) if self.num_kept else 0.0


def compress_tensor(weight: Array, plan: LayerPlan) -> CompressedTensor:
    """`weight`, a NumPy array, quantized under `plan`."""
    return CompressedTensor(np.asarray(quantize(weight, plan)), UniformCodebook(plan.step), weight.dtype.name)
