"""Rounding in which the errors of a row make up for each other, by what the inputs of any network are like.

A row of a layer computes w . x, and what a rounding error e costs is e^T M e, M = E[x x^T]. Without data M is not known, but
much of it is alike everywhere: neighbouring pixels take like values, and behind a ReLU all values are positive. So with n
inner channels and positions p, q of the kernel

    M = I_n x A + ACROSS 1 1^T,        A_pq = (1 - SHARED) NEAR^|p - q| + SHARED,

|p - q| counted in steps along the kernel's axes. The positions of a kernel are rounded one after the other, and each error
moves those to come by what makes up for it under A: the rows of the upper Cholesky factor of A^-1 (B. Hassibi, D. Stork, 1993;
E. Frantar, D. Alistarh, 2022). The last term asks that the errors of a whole row add up to nothing: after each of PARTS parts
of the inner channels, those to come are moved by what makes up best for the sum so far.

The three numbers were chosen on networks of this kind (docs/log.md), not fitted to any. Where the inputs are not like that,
as those of an embedding, nothing is gained, and the squared error is larger by `excess`.
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
"""Correlation of neighbours in a kernel; what all its positions share; what all inputs of a row share."""

PARTS = 16
LARGEST_KERNEL = 256
"""Positions of a kernel beyond which they are taken as unlike each other."""

_UNIT = 2.0**20


@dataclass(frozen=True, eq=False)
class _Prior:
    """What a kernel's shape decides, float64.

    moves  (k, k) by how much an error at p moves what is rounded at q > p
    pull   (k,) A^-1 1
    """

    moves: NDArray[np.float64]
    pull: NDArray[np.float64]


def compensated_codes(scaled: Any, offset: Any, border: Any, most: Any, xp: Any) -> Any:
    """Signed codes, as floats, of weights in steps; 0 stays 0.

    scaled  (rows, inner, *kernel) weights over the step, float32 or float64
    offset  rounding offset, of no dimension, as is the next
    border  magnitude, in steps, at or under which a code is 0
    most    largest code, of a shape that goes with (rows, inner)
    Rows are rounded independently of each other. Every operation is elementwise, and sums are of integers, so that any library
    and any order of summing gives the same codes.
    """
    prior = _prior(_kernel(tuple(scaled.shape)))
    size = len(prior.pull)
    flat = xp.reshape(scaled, (scaled.shape[0], -1, size))
    inner = flat.shape[1]
    total = xp.astype(flat[:, 0, 0] * 0, xp.int64)
    parts = []
    for start, stop in pairwise(_edges(inner)):
        left = [flat[:, start:stop, place] for place in range(size)]
        alive = [wanted != 0 for wanted in left]
        if start:
            factor = ACROSS / (1.0 + ACROSS * (inner - start) * float(prior.pull.sum())) / _UNIT
            push = xp.astype(total, scaled.dtype) * _like(factor, scaled, xp)
            left = [
                wanted - push[:, None] * _like(float(pull), scaled, xp) for wanted, pull in zip(left, prior.pull, strict=True)
            ]
        codes = []
        for place in range(size):
            code = _round(left[place], alive[place], offset, border, most, xp)
            error = left[place] - code
            for later in range(place + 1, size):
                left[later] = left[later] - error * _like(float(prior.moves[place, later]), scaled, xp)
            codes.append(code)
        part = xp.stack(codes, axis=2)
        errors = part - flat[:, start:stop, :]
        total = total + xp.sum(xp.astype(xp.floor(errors * _like(_UNIT, scaled, xp)), xp.int64), axis=(1, 2))
        parts.append(part)
    return xp.reshape(xp.concat(parts, axis=1), tuple(scaled.shape))


def squared_error_factor(shape: tuple[int, ...]) -> float:
    """Squared error of a weight of this shape, rounded so, over that of rounding each element by itself; about."""
    if len(shape) < 2:
        return 1.0
    moves = _prior(_kernel(shape)).moves
    # What remains of an error where it was made, and what it moved.
    return 1.0 + float(np.square(moves).sum() / len(moves))


def _round(wanted: Any, alive: Any, offset: Any, border: Any, most: Any, xp: Any) -> Any:
    magnitude = xp.abs(wanted)
    one = xp.ones_like(magnitude)
    level = xp.maximum(xp.minimum(xp.floor(magnitude + offset), most * one), one)
    signed = xp.where(wanted < 0, -level, level)
    return xp.where(alive & (magnitude > border), signed, xp.zeros_like(signed))


def _like(value: float, array: Any, xp: Any) -> Any:
    return xp.asarray(value, dtype=array.dtype, device=array.device)


def _kernel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The kernel's shape; of one too large that of a single position, its positions being inner channels then."""
    return shape[2:] if math.prod(shape[2:]) <= LARGEST_KERNEL else ()


def _edges(inner: int) -> list[int]:
    parts = min(PARTS, inner)
    return [inner * part // parts for part in range(parts + 1)]


@cache
def _prior(kernel: tuple[int, ...]) -> _Prior:
    places = np.indices(kernel or (1,)).reshape(max(len(kernel), 1), -1)
    distance = np.abs(places[:, :, None] - places[:, None, :]).sum(axis=0)
    inverse = np.linalg.inv((1.0 - SHARED) * NEAR ** distance.astype(np.float64) + SHARED)
    factor = np.linalg.cholesky(inverse).T  # upper: its transpose times it is the inverse
    return _Prior(np.triu(factor / np.diag(factor)[:, None], 1), inverse.sum(axis=1))
