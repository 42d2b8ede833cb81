"""Quantize a large weight some rows at a time, with the same codes as `quantize` of the whole weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from opq.quantization.compressed_tensor import compress_tensor
from opq.quantization.statistics import blocks
from opq.rate_distortion.layer_plan import LayerPlan

Rows = Callable[[int, int], NDArray[np.generic]]
"""rows(start, stop) returns weight[start:stop]."""

_DIGIT = 16
"""Bits of a magnitude that one pass of the radix selection counts."""


def code_pieces(rows: Rows, plan: LayerPlan) -> Callable[[int, int], NDArray[np.int32]]:
    """A reader of the codes of a weight.

    Args:
        rows: Reads rows of the weight, which has at least one dimension and one element. It is called from several threads.
        plan: Plan of the whole weight.

    Returns:
        codes(start, stop): the int32 codes from one position in row-major order to another, in one dimension; thread-safe.
    """
    width = plan.count // plan.shape[0]
    boundary = _find_boundary(rows, plan) if plan.num_kept is not None else None

    def codes(start: int, stop: int) -> NDArray[np.int32]:
        first, last = start // width, -(-stop // width)
        block = rows(first, last)
        num_kept = boundary.count_kept(block, first * width) if boundary else None
        max_codes, scales = (values and values[first:last] for values in (plan.max_codes, plan.rows))
        part = replace(plan, shape=block.shape, num_kept=num_kept, max_codes=max_codes, rows=scales)
        return compress_tensor(block, part).codes.reshape(-1)[start - first * width : stop - first * width]

    return codes


@dataclass(frozen=True)
class _Boundary:
    """Which weights a plan with `num_kept` keeps: those above `magnitude`, and those equal to it at positions before `end`."""

    magnitude: float
    end: int

    def count_kept(self, block: NDArray[np.generic], start: int) -> int:
        """Number of kept weights of a block that begins at position `start` of the weight."""
        magnitudes = _magnitudes(block)
        ties = magnitudes[: max(self.end - start, 0)] == self.magnitude
        return int(np.count_nonzero(magnitudes > self.magnitude)) + int(np.count_nonzero(ties))


def _find_boundary(rows: Rows, plan: LayerPlan) -> _Boundary:
    """The boundary that keeps exactly `plan.num_kept` weights: radix selection, one pass over the weight per digit."""
    dtype = _magnitudes(rows(0, 1)).dtype
    remaining = plan.num_kept or 0
    if remaining == 0:
        return _Boundary(math.inf, 0)
    spans = list(blocks(plan.shape[0], plan.count // plan.shape[0]))
    prefix, width = 0, 8 * dtype.itemsize
    for low in range(width - _DIGIT, -1, -_DIGIT):
        counts = np.zeros(2**_DIGIT, dtype=np.int64)
        for span in spans:
            bits = _magnitudes(rows(*span)).view(f"u{dtype.itemsize}")
            if low + _DIGIT < width:
                bits = bits[bits >> (low + _DIGIT) == prefix]
            counts += np.bincount((bits >> low).astype(np.uint16), minlength=2**_DIGIT)
        from_top = np.cumsum(counts[::-1])
        digit = 2**_DIGIT - 1 - int(from_top.searchsorted(remaining))
        remaining -= int(from_top[2**_DIGIT - 1 - digit] - counts[digit])  # magnitudes with a larger digit are all kept
        prefix = prefix << _DIGIT | digit
    magnitude = float(np.array(prefix, dtype=f"u{dtype.itemsize}").view(dtype))
    for start, stop in spans:
        ties = np.flatnonzero(_magnitudes(rows(start, stop)) == magnitude)
        if len(ties) >= remaining:
            return _Boundary(magnitude, start * math.prod(plan.shape[1:]) + int(ties[remaining - 1]) + 1)
        remaining -= len(ties)
    return _Boundary(magnitude, plan.count)


def _magnitudes(block: NDArray[np.generic]) -> NDArray[np.floating]:
    """Magnitudes in one dimension, in the dtype in which the quantizer compares them."""
    work = block if block.dtype == np.float64 else block.astype(np.float32, copy=False)
    return np.abs(work.reshape(-1))
