"""Compensated rounding: rounding errors within an output row compensate each other, under a fixed prior of input correlations.

An output row computes w . x, and a rounding error e costs e^T M e with M = E[x x^T]. M is not known without data, but in most
networks neighbouring pixels have similar values, and values after a ReLU are positive. So the prior is, for n input channels
and positions p, q of the kernel,

    M = I_n x A + ACROSS 1 1^T,        A_pq = (1 - SHARED) NEAR^|p - q| + SHARED,

where |p - q| is the sum of distances along the axes of the kernel. The positions of a kernel are rounded in sequence.
Each error is compensated by the later positions, as in GPTQ: by the rows of the upper Cholesky factor of A^-1 (B. Hassibi, D.
Stork, 1993; E. Frantar, D. Alistarh, 2022). The last term makes the sum of errors of a row small: the input channels are
divided into PARTS parts, and each part compensates the sum of errors of the parts before it.

The three constants were chosen on image networks (docs/log.md), not fitted to one of them. If inputs are not correlated like
that, such as those of an embedding, nothing is gained, and the squared error is larger by `squared_error_factor`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEAR, SHARED, ACROSS = 0.3, 0.3, 0.1
"""Correlations: of neighbours in a kernel, of all positions of a kernel, and of all inputs of a row."""

PARTS = 16
"""Parts into which the input channels of a row are divided."""

LARGEST_KERNEL = 256
"""The largest number of positions of a kernel; the positions of larger kernels are treated as input channels."""

_UNIT = 2.0**20
"""Errors are summed as integers in units of 1 / _UNIT of a step."""


@dataclass(frozen=True, eq=False)
class _Prior:
    """Constants of a kernel shape with k positions, float64.

    moves  (k, k): the value at q > p decreases by moves[p, q] times the error at p
    pull   (k,): A^-1 1
    """

    moves: NDArray[np.float64]
    pull: NDArray[np.float64]


def compensated_codes(scaled: Any, offset: Any, threshold: Any, max_codes: Any, xp: Any) -> Any:
    """Round weights with compensation of errors within each row.

    Rows are independent of each other. All operations are elementwise or sums of integers, so every array library and every
    order of summation gives the same codes.

    Args:
        scaled: (rows, inputs, *kernel): weights over the step, float32 or float64.
        offset: Rounding offset, zero-dimensional.
        threshold: Magnitudes up to it get code 0, in steps, zero-dimensional.
        max_codes: Largest codes, zero-dimensional or shaped to broadcast with `scaled`.
        xp: The array API functions for `scaled`.

    Returns:
        Signed codes in the dtype and shape of `scaled`. The code of a weight that is 0 is 0.
    """
    prior = _prior(_kernel(tuple(scaled.shape)))
    size = len(prior.pull)
    flat = xp.reshape(scaled, (scaled.shape[0], -1, size))
    inputs = flat.shape[1]
    limits = xp.reshape(xp.broadcast_to(max_codes, scaled.shape), flat.shape) if max_codes.ndim else max_codes
    total = xp.astype(flat[:, 0, 0] * 0, xp.int64)
    parts = []
    for start, stop in pairwise(_part_edges(inputs)):
        left = [flat[:, start:stop, position] for position in range(size)]
        nonzero = [value != 0 for value in left]
        if start:
            factor = ACROSS / (1.0 + ACROSS * (inputs - start) * float(prior.pull.sum())) / _UNIT
            push = xp.astype(total, scaled.dtype) * _like(factor, scaled, xp)
            left = [
                value - push[:, None] * _like(float(pull), scaled, xp) for value, pull in zip(left, prior.pull, strict=True)
            ]
        codes = []
        for position in range(size):
            limit = limits[:, start:stop, position] if limits.ndim else limits
            code = _round(left[position], nonzero[position], offset, threshold, limit, xp)
            error = left[position] - code
            for later in range(position + 1, size):
                left[later] = left[later] - error * _like(float(prior.moves[position, later]), scaled, xp)
            codes.append(code)
        part = xp.stack(codes, axis=2)
        errors = part - flat[:, start:stop, :]
        total = total + xp.sum(xp.astype(xp.floor(errors * _like(_UNIT, scaled, xp)), xp.int64), axis=(1, 2))
        parts.append(part)
    return xp.reshape(xp.concat(parts, axis=1), tuple(scaled.shape))


def squared_error_factor(shape: tuple[int, ...]) -> float:
    """Approximate squared error of compensated rounding, for a weight of this shape, over that of dead-zone rounding."""
    if len(shape) < 2:
        return 1.0
    moves = _prior(_kernel(shape)).moves
    # Each error remains at its own position, and moves the later ones.
    return 1.0 + float(np.square(moves).sum() / len(moves))


def _round(value: Any, nonzero: Any, offset: Any, threshold: Any, max_codes: Any, xp: Any) -> Any:
    magnitude = xp.abs(value)
    one = xp.ones_like(magnitude)
    level = xp.maximum(xp.minimum(xp.floor(magnitude + offset), max_codes * one), one)
    signed = xp.where(value < 0, -level, level)
    return xp.where(nonzero & (magnitude > threshold), signed, xp.zeros_like(signed))


def _like(value: float, array: Any, xp: Any) -> Any:
    return xp.asarray(value, dtype=array.dtype, device=array.device)


def _kernel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the kernel; () if it is too large."""
    return shape[2:] if math.prod(shape[2:]) <= LARGEST_KERNEL else ()


def _part_edges(inputs: int) -> list[int]:
    parts = min(PARTS, inputs)
    return [inputs * part // parts for part in range(parts + 1)]


@cache
def _prior(kernel: tuple[int, ...]) -> _Prior:
    positions = np.indices(kernel or (1,)).reshape(max(len(kernel), 1), -1)
    distance = np.abs(positions[:, :, None] - positions[:, None, :]).sum(axis=0)
    inverse = np.linalg.inv((1.0 - SHARED) * NEAR ** distance.astype(np.float64) + SHARED)
    factor = np.linalg.cholesky(inverse).T  # upper triangular: inverse = factor^T factor
    return _Prior(np.triu(factor / np.diag(factor)[:, None], 1), inverse.sum(axis=1))
