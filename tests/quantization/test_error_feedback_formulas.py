"""Compensated rounding against the formulas of docs/method.md, section 4, in dense linear algebra."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opq.quantization.error_feedback import squared_error_factor
from opq.quantization.quantizer import quantize
from opq.rate_distortion.layer_plan import LayerPlan

SHAPES = [(2, 18, 3, 3), (4, 24), (5, 7, 3), (3, 1, 5, 5), (2, 21, 1, 1), (2, 3, 2, 3, 2)]
# The constants of the document, on which the bytes of files depend.
NEIGHBOURS, SHARED, ROW, PARTS = 0.3, 0.3, 0.1, 16


def within(kernel):
    """A: 0.7 times 0.3^distance, distance in steps along the axes of the kernel, plus 0.3."""
    places = list(np.ndindex(*kernel))
    distance = [[sum(abs(a - b) for a, b in zip(p, q, strict=True)) for q in places] for p in places]
    return (1.0 - SHARED) * NEIGHBOURS ** np.array(distance, dtype=float) + SHARED


def best_move(moments, known, wanted):
    """The changes of the `wanted` weights that minimise e^T M e for errors of one of the `known` weights."""
    return -np.linalg.solve(moments[np.ix_(wanted, wanted)], moments[np.ix_(wanted, known)])


def codes_by_hand(row, kernel):
    """Codes of one row in steps: each position compensates those before it, each 16th of the row the sum of errors."""
    inner = row.reshape(-1, int(np.prod(kernel)))
    moments, (channels, size) = within(kernel), inner.shape
    codes, total = np.zeros_like(inner), 0.0
    parts = min(PARTS, channels)
    edges = [channels * part // parts for part in range(parts + 1)]
    for start, stop in pairwise(edges):
        left = inner[start:stop].copy()
        if start:  # the change m of all later weights that minimizes m^T (I x A) m + 0.1 (total + sum of m)^2
            count = (channels - start) * size
            whole = np.kron(np.eye(channels - start), moments) + ROW * np.ones((count, count))
            move = -np.linalg.solve(whole, ROW * total * np.ones(count)).reshape(-1, size)
            left += move[: stop - start]
        for place in range(size):
            codes[start:stop, place] = np.sign(left[:, place]) * np.floor(np.abs(left[:, place]) + 0.5)
            error = codes[start:stop, place] - left[:, place]
            later = list(range(place + 1, size))
            if later:
                left[:, later] += np.outer(error, best_move(moments, [place], later)[:, 0])
        total += (codes[start:stop] - inner[start:stop]).sum()
    return codes.reshape(row.shape)


@given(st.sampled_from(SHAPES), st.integers(0, 99))
@settings(max_examples=15)
def test_codes_are_those_of_the_documented_formulas(shape, seed):
    """Dense linear algebra gives the same codes: within a kernel, and for the sum of the errors of a row."""
    weight, step = np.random.default_rng(seed).normal(size=shape), 0.5
    plan = LayerPlan(shape, step, 0.5 * step, 0.5, 0.0, 0.0, rounding="compensated")
    found = quantize(weight, plan)
    wanted = np.stack([codes_by_hand(row / step, shape[2:] or (1,)) for row in weight])
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kernel", [(), (3,), (3, 3), (5, 5), (2, 3, 2)])
def test_the_squared_error_factor_is_one_plus_the_mean_square_of_all_moves(kernel):
    """The factor is 1 + sum over p < q of (change of q for an error at p)^2 / k; 1.2 for 3x3 kernels."""
    moments = within(kernel or (1,))
    size = len(moments)
    moves = [best_move(moments, [place], list(range(place + 1, size))) for place in range(size - 1)]
    wanted = 1.0 + sum(float(np.square(move).sum()) for move in moves) / size
    assert squared_error_factor((8, 4, *kernel)) == pytest.approx(wanted)
    if kernel == (3, 3):
        assert squared_error_factor((8, 4, *kernel)) == pytest.approx(1.2, abs=0.05)
