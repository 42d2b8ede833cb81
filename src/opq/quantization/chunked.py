"""Codes of a weight of which only some rows are held at a time; together they are what `quantize` gives of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from opq.quantization.compressed_tensor import compress_tensor
from opq.quantization.statistics import blocks
from opq.rate_distortion.plan import LayerPlan

Rows = Callable[[int, int], NDArray[np.generic]]
"""Gives the rows of a weight from one place along axis 0 to another."""

_DIGIT = 16


def code_pieces(rows: Rows, plan: LayerPlan) -> Callable[[int, int], NDArray[np.int32]]:
    """A function that gives the codes from one place in row-major order to another, in one dimension; from several threads.

    rows  of a weight of at least one dimension and one element
    plan  of the whole weight
    """
    width = plan.count // plan.shape[0]
    cut = _find_cut(rows, plan) if plan.num_kept is not None else None

    def codes(start: int, stop: int) -> NDArray[np.int32]:
        first, last = start // width, -(-stop // width)
        block = rows(first, last)
        kept = cut.count_kept(block, first * width) if cut else None
        limits = plan.max_codes and plan.max_codes[first:last]
        part = replace(plan, shape=block.shape, num_kept=kept, max_codes=limits)
        return compress_tensor(block, part).codes.reshape(-1)[start - first * width : stop - first * width]

    return codes


@dataclass(frozen=True)
class _Cut:
    """Which weights a plan with `kept` keeps: magnitudes above one, and those equal to it before a place in the weight."""

    magnitude: float
    end: int

    def count_kept(self, block: NDArray[np.generic], start: int) -> int:
        """How many of a block that begins at `start` are kept."""
        magnitudes = _magnitudes(block)
        ties = magnitudes[: max(self.end - start, 0)] == self.magnitude
        return int(np.count_nonzero(magnitudes > self.magnitude)) + int(np.count_nonzero(ties))


def _find_cut(rows: Rows, plan: LayerPlan) -> _Cut:
    """The cut above which stand exactly `plan.kept` weights: selection by radix, a digit of the magnitudes' bits a walk."""
    kind = _magnitudes(rows(0, 1)).dtype
    left = plan.num_kept or 0
    if left == 0:
        return _Cut(math.inf, 0)
    places = list(blocks(plan.shape[0], plan.count // plan.shape[0]))
    prefix, width = 0, 8 * kind.itemsize
    for low in range(width - _DIGIT, -1, -_DIGIT):
        counts = np.zeros(2**_DIGIT, dtype=np.int64)
        for place in places:
            bits = _magnitudes(rows(*place)).view(f"u{kind.itemsize}")
            if low + _DIGIT < width:
                bits = bits[bits >> (low + _DIGIT) == prefix]
            counts += np.bincount((bits >> low).astype(np.uint16), minlength=2**_DIGIT)
        from_top = np.cumsum(counts[::-1])
        digit = 2**_DIGIT - 1 - int(from_top.searchsorted(left))
        left -= int(from_top[2**_DIGIT - 1 - digit] - counts[digit])  # those above the digit are kept whatever follows
        prefix = prefix << _DIGIT | digit
    magnitude = float(np.array(prefix, dtype=f"u{kind.itemsize}").view(kind))
    for start, stop in places:
        ties = np.flatnonzero(_magnitudes(rows(start, stop)) == magnitude)
        if len(ties) >= left:
            return _Cut(magnitude, start * math.prod(plan.shape[1:]) + int(ties[left - 1]) + 1)
        left -= len(ties)
    return _Cut(magnitude, plan.count)


def _magnitudes(block: NDArray[np.generic]) -> NDArray[np.floating]:
    """In one dimension, as the quantizer takes them."""
    work = block if block.dtype == np.float64 else block.astype(np.float32, copy=False)
    return np.abs(work.reshape(-1))
