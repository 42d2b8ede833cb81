"""Masks that are recomputed in the first part of training, under thresholds that keep the file within its byte budget.

The threshold of weight i is max(c (1 - rounding_offset_i), 1/2) step_i. At c = 1 it is the plan's threshold. The factor c is
one number for the whole network. Bisection finds the smallest c that meets the budget, again and again as latent values move.
No threshold prunes more than three quarters of the weights that the plan keeps in a layer, because an empty layer passes no
gradient and would stay empty. A layer that the plan prunes completely stays pruned, because its step has no meaning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from opq.rate_distortion.rate_control import geometric_bisection
from opq.training.attach import PreparedWeight, current_codes
from opq.training.budget.code_reduction import section_bytes

_TOLERANCE = 0.001
_SMALLEST, _LARGEST = 0.5, 64.0
_MAX_PRUNED = 0.75


class MaskThresholds:
    """Thresholds of prepared weights. They are set from `begin` to `freeze`.

    Args:
        weights: The prepared weights, with the masks of a plan.
    """

    def __init__(self, weights: Sequence[PreparedWeight]) -> None:
        self._weights = weights
        self._min_kept = [math.ceil((1.0 - _MAX_PRUNED) * int(weight.codebook.mask.sum())) for weight in weights]

    @property
    def are_recomputed(self) -> bool:
        """Whether thresholds are set."""
        return any(threshold is not None for threshold in self.thresholds)

    @property
    def thresholds(self) -> list[float | None]:
        """The threshold of each weight, as CodebookParametrization.threshold; None if its mask is fixed."""
        return [weight.codebook.threshold for weight in self._weights]

    @thresholds.setter
    def thresholds(self, thresholds: Sequence[float | None]) -> None:
        for weight, threshold in zip(self._weights, thresholds, strict=True):
            weight.codebook.threshold = threshold

    def begin(self) -> None:
        """Set the thresholds of the plan."""
        self._apply(1.0, self._limits())

    def fit(self, code_bytes: int) -> bool:
        """Set the lowest thresholds at which the codes of all weights take at most `code_bytes`.

        Returns:
            Whether such thresholds exist. If not, the highest ones are set.
        """
        limits = self._limits()

        def fits(factor: float) -> bool:
            self._apply(factor, limits)
            return section_bytes(current_codes(self._weights)) <= code_bytes

        _, factor = geometric_bisection(fits, _SMALLEST, _LARGEST, _TOLERANCE)
        self._apply(factor, limits)
        return factor < _LARGEST

    def freeze(self) -> None:
        """Fix the current masks."""
        for weight in self._weights:
            weight.codebook.freeze_mask(weight.latent)

    def _apply(self, factor: float, limits: Sequence[float]) -> None:
        """Set each threshold to `factor` times the plan's, at least half a step and at most its limit."""
        for weight, limit in zip(self._weights, limits, strict=True):
            start, step = 1.0 - float(weight.codebook.rounding_offset), float(weight.codebook.step)
            weight.codebook.threshold = min(max(factor * start, 0.5) * step, limit) if limit < math.inf else limit

    def _limits(self) -> list[float]:
        """The highest allowed threshold of each weight; infinity if the plan prunes all of it."""
        return [_limit(weight, min_kept) for weight, min_kept in zip(self._weights, self._min_kept, strict=True)]


@torch.no_grad()
def _limit(weight: PreparedWeight, min_kept: int) -> float:
    """The highest threshold that keeps at least `min_kept` elements of a weight."""
    if not min_kept:
        return math.inf
    magnitudes = weight.codebook.magnitudes(weight.latent).flatten()
    last = magnitudes.kthvalue(len(magnitudes) - min_kept + 1).values
    return float(torch.nextafter(last, torch.zeros_like(last)))
