"""Rounding column by column, in which the columns still to come make up for the errors of those before them.

With R the curvature of a row's elements, the codes q of a row w with steps s minimise (w - s q)^T R (w - s q) greedily: after a
column is rounded, the inverse of R moves the columns behind it (optimal brain surgery, B. Hassibi and D. Stork, 1993; GPTQ,
E. Frantar et al., arXiv 2210.17323, 2022). With R^-1 = U^T U, U upper triangular, rounding column j costs (error / U_jj)^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING = 0.05
"""Share of the mean diagonal that is added to a curvature's, because few inputs leave it singular."""

_BLOCK = 64


@dataclass(frozen=True, eq=False)
class Factor:
    """The factor U of the inverse of a damped curvature.

    Args:
        order: (k,) the columns in the order in which they are rounded: those of the largest curvature first, because no column
            is left to make up for the last ones.
        upper: float32 (k, k) the rows of U over their diagonals, in this order.
        pivots: float64 (k,) U_jj in the order of the columns.
    """

    order: Tensor
    upper: Tensor
    pivots: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> Factor:
        """The factor of a curvature (k, k), positive semidefinite, which is first scaled to a mean diagonal of 1."""
        size = len(moments)
        scaled = moments.double() / moments.double().diagonal().mean().clamp(min=1e-300)
        order = torch.argsort(scaled.diagonal(), descending=True, stable=True)
        scaled = scaled[order][:, order]
        damping = DAMPING
        while True:
            damped = scaled + damping * torch.eye(size, dtype=torch.float64)
            lower, failed = torch.linalg.cholesky_ex(damped)
            if not failed:
                inverse = torch.cholesky_inverse(lower)
                upper, failed = torch.linalg.cholesky_ex(0.5 * (inverse + inverse.T), upper=True)
                if not failed and bool(upper.isfinite().all()):
                    break
            damping *= 4.0
        pivots = torch.empty(size, dtype=torch.float64)
        pivots[order] = upper.diagonal()
        return cls(order, (upper / upper.diagonal()[:, None]).float(), pivots)


def round_columns(matrix: Tensor, row_steps: Tensor, column_steps: Tensor, factor: Factor) -> Tensor:
    """Codes of a matrix.

    Args:
        matrix: float32 (o, k).
        row_steps: float32 (o,), > 0.
        column_steps: float32 (k,), > 0. The step of element ij is row_steps[i] * column_steps[j].
        factor: Of its columns.

    Returns:
        Codes, int32 (o, k).
    """
    order = factor.order
    columns = column_steps[order]
    # Columns are rows here, so that each is contiguous; in steps, so that rounding is to integers.
    left = (matrix / row_steps[:, None]).T[order] / columns[:, None]
    upper = factor.upper * (columns[:, None] / columns)
    codes = torch.empty_like(left)
    for start in range(0, len(left), _BLOCK):
        end = min(start + _BLOCK, len(left))
        errors = torch.empty_like(left[start:end])
        for column in range(start, end):
            torch.round(left[column], out=codes[column])
            torch.sub(left[column], codes[column], out=errors[column - start])
            left[column + 1 : end].addr_(upper[column, column + 1 : end], errors[column - start], alpha=-1.0)
        left[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1.0)
    result = torch.empty_like(codes)
    result[order] = codes
    return result.T.to(torch.int32)
