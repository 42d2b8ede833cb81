"""A weight as codes and a step: what goes into a file, and all that comes out of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.allocation.plans import LayerPlan
from opq.quantization.quantizer import Array, dequantize, quantize


@dataclass(frozen=True, eq=False)
class CompressedTensor:
    """A quantized weight.

    codes  int32, shaped as the weight: 0 where pruned, else the signed index of the codebook value step * code
    step   distance of neighbouring codebook values, in weight units, > 0, representable in float32
    dtype  name of the weight's dtype ("float32", "bfloat16", ...)
    """

    codes: NDArray[np.int32]
    step: float
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.codes.shape

    def values(self) -> NDArray[np.generic]:
        """The weight itself, in its own dtype; bit-equal to `fake_quantize` of the original."""
        with np.errstate(over="ignore"):  # a file may hold a step that leads to infinity; `verify` refuses it
            return np.asarray(dequantize(self.codes, self.step, dtypes.NUMPY[self.dtype]))

    @property
    def kept(self) -> int:
        """Number of non-zero codes."""
        return int(np.count_nonzero(self.codes))

    @property
    def code_bits(self) -> float:
        """Nominal bits of all kept codes together: each pays log2(2 m), m the largest code of its channel."""
        if self.kept == 0:
            return 0.0
        rows = np.abs(self.codes).reshape(self.codes.shape[0] if self.codes.ndim else 1, -1)
        largest = np.maximum(rows.max(axis=1), 1)
        return float(np.count_nonzero(rows, axis=1) @ np.log2(2.0 * largest))


def compress_tensor(weight: Array, plan: LayerPlan) -> CompressedTensor:
    """`weight`, a NumPy array, quantized under `plan`."""
    return CompressedTensor(np.asarray(quantize(weight, plan)), plan.step, weight.dtype.name)
