"""Batch-norm arithmetic: pure functions on the vectors of one batch norm, NumPy arrays or torch tensors alike.

In evaluation a batch norm computes y = weight (x - mean) / sqrt(variance + eps) + bias, a factor and a term per channel, spread
over four vectors. So its statistics can be replaced by any others if weight and bias make up for it, and a factor and a term
on its input can be absorbed. All arithmetic is in the dtype of the vectors given, float64 by convention.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

PARTS = ("weight", "bias", "running_mean", "running_var")
"""Names of the vectors in a state dict, after the batch norm's own name."""

Vector = Any
"""(channels,) of NumPy or torch."""


@dataclass(frozen=True, eq=False)
class BatchNormVectors:
    """The four vectors of a batch norm, and its eps."""

    weight: Vector
    bias: Vector
    mean: Vector
    variance: Vector
    eps: float

    @property
    def slope(self) -> Vector:
        """(channels,): what the input is multiplied by, weight / sqrt(variance + eps)."""
        return self.weight / (self.variance + self.eps) ** 0.5

    def with_statistics(self, mean: Vector, variance: Vector) -> BatchNormVectors:
        """The same function with other statistics."""
        return replace(
            self,
            weight=self.slope * (variance + self.eps) ** 0.5,
            bias=self.bias + self.slope * (mean - self.mean),
            mean=mean,
            variance=variance,
        )

    def absorb(self, scales: Vector, shift: Vector) -> BatchNormVectors:
        """The batch norm of x that computes what this one computes of scales * x + shift; same statistics."""
        return replace(self, weight=self.weight * scales, bias=self.bias + self.slope * (shift + (scales - 1.0) * self.mean))


def is_folded(mean: Vector, variance: Vector) -> bool:
    """Whether a batch norm has no statistics of its own: mean 0, and one variance for all channels."""
    return bool((mean == 0).all() and (variance == variance[0]).all())


def prefixes(names: Iterable[str]) -> list[str]:
    """What the names of each batch norm's vectors begin with, "bn1." for example: those that have a running_var."""
    return [name.removesuffix("running_var") for name in names if name.rpartition(".")[2] == "running_var"]
