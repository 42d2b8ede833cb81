"""GPTQ with a rate term: quantize a weight matrix so that its outputs stay close and its codes stay cheap.

A layer computes W x, with W of shape (outputs, inputs). The codes q, with one step per row, minimise

    sum over rows j of  sensitivity_j (w_j - step_j q_j)^T M (w_j - step_j q_j)  +  lambda * bits(q),      M = E[x x^T],

one column at a time. The codes of a column minimise error and bits together, and the inverse of M moves the columns that are
still to be quantized so that they compensate the error. The compensation is that of optimal brain surgery (B. Hassibi and
D. Stork, 1993) and GPTQ (E. Frantar et al., arXiv 2210.17323, 2022). The rate term is that of rate-distortion optimised
quantization: the bits of a code follow from its share among the layer's codes, which a first pass gives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DAMPING = 0.01
"""Share of the mean diagonal that is added to second moments, because few inputs leave them singular."""

_LARGEST_CLASS = 40
_BLOCK = 64


def damped(moments: Tensor, share: float = DAMPING) -> Tensor:
    """Add a share of the mean diagonal to the diagonal.

    Args:
        moments: (groups, n, n) second moments.
        share: Of the mean diagonal, >= 0.

    Returns:
        (groups, n, n), positive definite.
    """
    mean = moments.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    return moments + share * mean[:, None, None] * torch.eye(moments.shape[1], dtype=moments.dtype, device=moments.device)


def compensated_error(moments: Tensor) -> Tensor:
    """Output error per unit of squared rounding error, if later columns compensate: det(M)^(1/n).

    It is the geometric mean of the variances that remain of each input, given those that come after it.

    Args:
        moments: (groups, n, n) second moments M, not damped yet.

    Returns:
        (groups,), positive.
    """
    return (torch.logdet(damped(moments)) / moments.shape[1]).exp()


def steps_at(lmbda: float, output_sensitivity: Tensor, power: Tensor) -> Tensor:
    """Steps at which one bit per weight more saves as much error as it costs.

    At high rate the error per weight is sensitivity * power * step^2 / 12, and each bit halves the step. Setting the
    derivative by bits to -lambda gives step = sqrt(6 lambda / (ln 2 * sensitivity * power)).

    Args:
        lmbda: Lagrange multiplier: error per bit, > 0.
        output_sensitivity: (outputs,) cost of a unit of squared output error, > 0.
        power: (outputs,) output error per unit of squared rounding error; see `compensated_error`.

    Returns:
        (outputs,).
    """
    return torch.sqrt(6.0 * lmbda / (math.log(2.0) * output_sensitivity * power))


def quantize_rows(weight: Tensor, moments: Tensor, output_sensitivity: Tensor, steps: Tensor, lmbda: float) -> Tensor:
    """Quantize the rows of a matrix with GPTQ and a rate term.

    Args:
        weight: (outputs, n), floating point.
        moments: (groups, n, n) second moments of the inputs, not damped yet. Each group has outputs / groups consecutive rows.
        output_sensitivity: (outputs,) cost of a unit of squared output error.
        steps: (outputs,) step of each row, > 0.
        lmbda: Lagrange multiplier: error per bit, >= 0.

    Returns:
        Codes, int32 (outputs, n).
    """
    rows, size = weight.shape
    groups = moments.shape[0]
    moments = damped(moments)
    # The most powerful inputs first: no column is left to compensate the errors of the last ones.
    order = torch.argsort(moments.diagonal(dim1=1, dim2=2).mean(0), descending=True)
    inverse = torch.linalg.inv(moments[:, order][:, :, order])
    # Row i of the upper Cholesky factor is the row of the inverse that remains once the columns before i are fixed.
    factor = torch.linalg.cholesky(0.5 * (inverse + inverse.transpose(1, 2)), upper=True).float()
    scaled = (weight / steps[:, None]).float()[:, order].reshape(groups, rows // groups, size)
    worth = (output_sensitivity * steps**2).float().reshape(groups, rows // groups)
    bits = _code_bits(scaled.round())
    for _ in range(2):
        codes = _quantize_columns(scaled.clone(), factor, worth, lmbda * bits)
        bits = _code_bits(codes)
    result = torch.empty_like(codes)
    result[:, :, order] = codes
    return result.reshape(rows, size).to(torch.int32)


def _quantize_columns(left: Tensor, factor: Tensor, worth: Tensor, cost_of: Tensor) -> Tensor:
    """Codes (groups, rows, n) of `left`, weights in steps, which is overwritten; in blocks, as GPTQ does, for speed."""
    size = left.shape[2]
    codes = torch.empty_like(left)
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        errors = torch.empty_like(left[:, :, start:end])
        for column in range(start, end):
            pivot = factor[:, column, column][:, None]
            target = left[:, :, column]
            code = _cheapest(target, worth / pivot**2, cost_of)
            error = (target - code) / pivot
            codes[:, :, column], errors[:, :, column - start] = code, error
            left[:, :, column + 1 : end] -= error[:, :, None] * factor[:, None, column, column + 1 : end]
        left[:, :, end:] -= torch.bmm(errors, factor[:, start:end, end:])
    return codes


def _cheapest(target: Tensor, worth: Tensor, cost_of: Tensor) -> Tensor:
    """The candidate of least error and bits: round to nearest, one less, or zero."""
    magnitude = target.abs()
    nearest = magnitude.round()
    candidates = torch.stack([nearest, (nearest - 1.0).clamp(min=0.0), torch.zeros_like(nearest)])
    cost = worth * (magnitude - candidates) ** 2 + cost_of[candidates.clamp(max=_LARGEST_CLASS).long()]
    return candidates.gather(0, cost.argmin(0, keepdim=True))[0] * target.sign()


def _code_bits(codes: Tensor) -> Tensor:
    """(_LARGEST_CLASS + 1,) bits of a code of each magnitude, sign included, from the shares of magnitudes in `codes`."""
    counts = torch.bincount(codes.abs().clamp(max=_LARGEST_CLASS).long().flatten(), minlength=_LARGEST_CLASS + 1) + 0.05
    bits = -torch.log2(counts / counts.sum())
    bits[1:] += 1.0
    return bits
