"""Steps from curvature: one multiplier decides the step of every weight, row and column of a network.

With the curvature g_i R of row i and R^-1 = U^T U, an error r_ij made in rounding element ij costs g_i r_ij^2 / U_jj^2, if the
columns behind it compensate (`opq.calibration.compensation`). At high rate r_ij^2 is step_ij^2 / 12, and halving a step costs a
bit. So for the whole network at a given size

    step_ij = D U_jj / sqrt(g_i)            with one D,

which is the water-filling of the OPQ paper with the curvature in it. Curvature is an estimate, so it is drawn towards what is
known without inputs, geometrically: rows towards equal steps (in token embeddings towards steps proportional to the row's
magnitude, because frequencies of tokens differ between texts), and whole weights towards steps at which relative errors of all
weights count alike. Scales that save fewer bits than they take are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opq.calibration.compensation import Factor
from opq.calibration.curvature import Curvature
from opq.rate_distortion.scales import LARGEST_SCALE

ROW_SHARE = 0.5
"""Power of the measured curvature of rows."""

RELATIVE_SHARE = 0.375
"""Power of the cost of a relative error in the step of a whole weight; the measured curvature has the rest."""

UNSEEN = 0.05
"""Share of the mean curvature of an embedding's rows that is added to each, for tokens that the inputs do not hold."""

SCALE_BITS = 5.0
"""Bits that a scale takes."""

_LEAST = 1e-4
_PER_OCTAVE = 8


@dataclass(frozen=True, eq=False)
class Pattern:
    """The steps of a weight's matrix, up to a factor for the whole network.

    Args:
        level: log2 of the step where scales are 0.
        rows: int8 (o,) scales of rows; None for none.
        columns: int8 (n,) scales of columns; None for none.
    """

    level: float
    rows: NDArray[np.int8] | None
    columns: NDArray[np.int8] | None


def pattern_of(
    matrix: Tensor, curvature: Curvature, factors: Sequence[Factor], *, scaled: bool, by_magnitude: bool = False
) -> Pattern:
    """The pattern that a weight's curvature asks for.

    Args:
        matrix: (o, n) the weight.
        curvature: Its curvature.
        factors: Of each block of its columns.
        scaled: Whether rows and columns may have scales.
        by_magnitude: Whether each row is a token.
    """
    rows = curvature.rows / curvature.rows.mean()
    rows = rows + (UNSEEN if by_magnitude else _LEAST)
    means = torch.stack([block.diagonal().double().mean() for block in curvature.moments])
    columns = torch.cat([mean / factor.pivots**2 for mean, factor in zip(means, factors, strict=True)])
    columns = columns * curvature.rows.mean() / sum(float(block.diagonal().sum()) for block in curvature.moments)
    row_scales = column_scales = None
    if scaled:
        wanted = -0.5 * ROW_SHARE * torch.log2(rows)
        if by_magnitude:
            magnitudes = matrix.double().square().mean(1).sqrt()
            wanted = wanted + (1.0 - ROW_SHARE) * torch.log2(magnitudes.clamp(min=1e-3 * float(magnitudes.mean()) + 1e-30))
        count = matrix.numel()
        row_scales = _worthwhile(wanted, rows, count, always=by_magnitude)
        column_scales = _worthwhile(-0.5 * torch.log2(columns), columns, count)
    cost = _mean_cost(rows, row_scales) * _mean_cost(columns, column_scales)
    return Pattern(-0.5 * float(np.log2(max(cost, 1e-300))), row_scales, column_scales)


def balanced_levels(patterns: Mapping[str, Pattern], matrices: Mapping[str, Tensor]) -> dict[str, float]:
    """The levels of all weights, drawn towards those at which relative errors count alike.

    Args:
        patterns: {weight: its pattern}.
        matrices: {weight: its matrix}.

    Returns:
        {weight: level}.
    """
    relative = {name: relative_level(matrix.double().square().sum()) for name, matrix in matrices.items()}
    total = sum(matrix.numel() for matrix in matrices.values())
    shift = sum((patterns[name].level - relative[name]) * matrices[name].numel() for name in patterns) / max(total, 1)
    return {
        name: (1.0 - RELATIVE_SHARE) * pattern.level + RELATIVE_SHARE * (relative[name] + shift)
        for name, pattern in patterns.items()
    }


def relative_level(power: Tensor | float) -> float:
    """log2 of a step at which relative errors count alike: the root of the sum of squares, which is rms times root of size."""
    return 0.5 * math.log2(max(float(power), 1e-200))


def _worthwhile(wanted: Tensor, costs: Tensor, count: int, *, always: bool = False) -> NDArray[np.int8] | None:
    """Scales nearest to these logarithms of steps; None if they save fewer bits than they take."""
    scales = torch.round(_PER_OCTAVE * (wanted - wanted.mean())).clamp(-LARGEST_SCALE, LARGEST_SCALE)
    found = scales.to(torch.int8).numpy()
    if not found.any():
        return None
    mean = float(scales.mean()) / _PER_OCTAVE
    saved = 0.5 * float(torch.log2(costs.mean())) - 0.5 * np.log2(_mean_cost(costs, found)) + mean
    return found if always or saved * count > SCALE_BITS * len(found) else None


def _mean_cost(costs: Tensor, scales: NDArray[np.int8] | None) -> float:
    """The mean cost of the errors of rows or columns whose steps have these scales."""
    if scales is None:
        return float(costs.mean())
    return float((costs * torch.exp2(2.0 / _PER_OCTAVE * torch.from_numpy(scales).double())).mean())
