"""Rounding a matrix of weights so that its outputs, not its entries, stay close, and its codes stay cheap.

A layer computes W x, W of shape (outputs, inputs). Codes q and one step a row minimise

    sum over rows j of  importance_j (w_j - step_j q_j)^T M (w_j - step_j q_j)  +  price * bits(q),      M = E[x x^T],

one column at a time: a column's codes are chosen by the least of error and bits together, and the columns still to come are
moved to make up for the error, by the inverse of M. The compensation is that of optimal brain surgery (B. Hassibi, D. Stork,
1993; E. Frantar, D. Alistarh, 2022), the price of bits in it that of rate-distortion optimised quantization. Bits of a code are
those of its share among the layer's codes, taken from a first round of the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DAMPING = 0.01
"""Share of the mean diagonal added to second moments, which few inputs leave singular."""

_LARGEST_CLASS = 40
_BLOCK = 64


def damped(moments: Tensor, share: float = DAMPING) -> Tensor:
    """Second moments (groups, n, n) with `share` of their mean diagonal added to the diagonal."""
    mean = moments.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    return moments + share * mean[:, None, None] * torch.eye(moments.shape[1], dtype=moments.dtype, device=moments.device)


def compensated_error(moments: Tensor) -> Tensor:
    """What a unit of squared rounding error costs once later columns make up for it: det(M)^(1/n) of each group, (groups,)."""
    return (torch.logdet(damped(moments)) / moments.shape[1]).exp()


def steps_at(lmbda: float, output_sensitivity: Tensor, power: Tensor) -> Tensor:
    """Steps (outputs,) where a bit is worth `price`: d/db of importance * power * step^2 / 12 at high rate, step ~ 2^-b."""
    return torch.sqrt(6.0 * lmbda / (math.log(2.0) * output_sensitivity * power))


def round_rows(weight: Tensor, moments: Tensor, output_sensitivity: Tensor, steps: Tensor, lmbda: float) -> Tensor:
    """Codes int32 (outputs, n) of `weight` (outputs, n) at `steps` (outputs,).

    moments     (groups, n, n), of the inputs; consecutive rows share a group
    importance  (outputs,) what a unit of squared output error costs
    price       what a bit costs, in the same unit
    """
    rows, size = weight.shape
    groups = moments.shape[0]
    moments = damped(moments)
    # The most powerful inputs first: what is rounded last has nothing left to make up for it.
    order = torch.argsort(moments.diagonal(dim1=1, dim2=2).mean(0), descending=True)
    inverse = torch.linalg.inv(moments[:, order][:, :, order])
    # Row i of the upper Cholesky factor: what is left of the inverse once columns before i are fixed.
    factor = torch.linalg.cholesky(0.5 * (inverse + inverse.transpose(1, 2)), upper=True).float()
    scaled = (weight / steps[:, None]).float()[:, order].reshape(groups, rows // groups, size)
    worth = (output_sensitivity * steps**2).float().reshape(groups, rows // groups)
    bits = _bits(scaled.round())
    for _ in range(2):
        codes = _one_pass(scaled.clone(), factor, worth, lmbda * bits)
        bits = _bits(codes)
    result = torch.empty_like(codes)
    result[:, :, order] = codes
    return result.reshape(rows, size).to(torch.int32)


def _one_pass(left: Tensor, factor: Tensor, worth: Tensor, cost_of: Tensor) -> Tensor:
    size = left.shape[2]
    codes = torch.empty_like(left)
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        errors = torch.empty_like(left[:, :, start:end])
        for column in range(start, end):
            pivot = factor[:, column, column][:, None]
            wanted = left[:, :, column]
            code = _cheapest(wanted, worth / pivot**2, cost_of)
            error = (wanted - code) / pivot
            codes[:, :, column], errors[:, :, column - start] = code, error
            left[:, :, column + 1 : end] -= error[:, :, None] * factor[:, None, column, column + 1 : end]
        left[:, :, end:] -= torch.bmm(errors, factor[:, start:end, end:])
    return codes


def _cheapest(wanted: Tensor, worth: Tensor, cost_of: Tensor) -> Tensor:
    """Of rounding to nearest, one less, and zero: the code of least error and bits."""
    magnitude = wanted.abs()
    nearest = magnitude.round()
    candidates = torch.stack([nearest, (nearest - 1.0).clamp(min=0.0), torch.zeros_like(nearest)])
    cost = worth * (magnitude - candidates) ** 2 + cost_of[candidates.clamp(max=_LARGEST_CLASS).long()]
    return candidates.gather(0, cost.argmin(0, keepdim=True))[0] * wanted.sign()


def _bits(codes: Tensor) -> Tensor:
    """Bits of codes of magnitude 0, 1, ... by their shares, (_LARGEST_CLASS + 1,)."""
    counts = torch.bincount(codes.abs().clamp(max=_LARGEST_CLASS).long().flatten(), minlength=_LARGEST_CLASS + 1) + 0.05
    bits = -torch.log2(counts / counts.sum())
    bits[1:] += 1.0
    return bits
