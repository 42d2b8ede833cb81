"""Batch-norm arithmetic: pure functions on the vectors of one batch norm, for NumPy arrays and torch tensors.

In evaluation a batch norm computes y = weight (x - mean) / sqrt(variance + eps) + bias: one scale and one shift per channel,
spread over four vectors. So its statistics can be replaced by any others if weight and bias compensate for that, and a scale
All arithmetic is in the dtype of the given vectors, float64 by convention.
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
    """The four vectors of a batch norm, and its eps.

    Args:
        weight: (channels,).
        bias: (channels,).
        mean: (channels,), the running mean.
        variance: (channels,), the running variance.
        eps: Added to the variance.
    """

    weight: Vector
    bias: Vector
    mean: Vector
    variance: Vector
    eps: float

    @property
    def slope(self) -> Vector:
        """(channels,): the factor on the input, weight / sqrt(variance + eps)."""
        return self.weight / (self.variance + self.eps) ** 0.5

    def with_statistics(self, mean: Vector, variance: Vector) -> BatchNormVectors:
        """The same function of the input with other statistics.

        Args:
            mean: (channels,), the new running mean.
            variance: (channels,), the new running variance.
        """
        return replace(
            self,
            weight=self.slope * (variance + self.eps) ** 0.5,
            bias=self.bias + self.slope * (mean - self.mean),
            mean=mean,
            variance=variance,
        )


def is_folded(mean: Vector, variance: Vector) -> bool:
    """Whether the statistics of a batch norm are constants: mean 0, and the same variance in all channels."""
    return bool((mean == 0).all() and (variance == variance[0]).all())


def prefixes(names: Iterable[str]) -> list[str]:
    """The prefix of each batch norm's vectors, such as "bn1.": one for each name that ends with running_var."""
    return [name.removesuffix("running_var") for name in names if name.rpartition(".")[2] == "running_var"]
