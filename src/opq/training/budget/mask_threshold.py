"""Masks that are recomputed in the first part of a training, under thresholds that keep the file within its bytes.

The threshold of weight i is c (1 - rounding_offset_i) step_i, or half a step if that is more: c = 1 is where codes of 1 begin in
the plan. The factor c is one number for the whole network, as small as the budget allows; it changes as latent values move. No
threshold prunes more than _MAX_PRUNED of what the plan keeps of a weight, since an empty layer passes no gradient and stays
empty. A weight whose mask prunes all of it stays pruned: its step means nothing.
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
    """The thresholds of prepared weights, whose masks are a plan's; there are none before `begin` and after `freeze`."""

    def __init__(self, weights: Sequence[PreparedWeight]) -> None:
        self._weights = weights
        self._least = [math.ceil((1.0 - _MAX_PRUNED) * int(weight.codebook.mask.sum())) for weight in weights]

    @property
    def are_recomputed(self) -> bool:
        """Whether latent values decide what is pruned."""
        return any(threshold is not None for threshold in self.thresholds)

    @property
    def thresholds(self) -> list[float | None]:
        """The threshold of each weight, None if its mask is fixed."""
        return [weight.codebook.threshold for weight in self._weights]

    @thresholds.setter
    def thresholds(self, thresholds: Sequence[float | None]) -> None:
        for weight, threshold in zip(self._weights, thresholds, strict=True):
            weight.codebook.threshold = threshold

    def begin(self) -> None:
        """Set all thresholds to those of the plan."""
        self._apply(1.0, self._limits())

    def fit(self, code_bytes: int) -> bool:
        """Lower thresholds as far as all sections take at most `code_bytes`; whether that is possible."""
        limits = self._limits()

        def fits(factor: float) -> bool:
            self._apply(factor, limits)
            return section_bytes(current_codes(self._weights)) <= code_bytes

        _, factor = geometric_bisection(fits, _SMALLEST, _LARGEST, _TOLERANCE)
        self._apply(factor, limits)
        return factor < _LARGEST

    def freeze(self) -> None:
        """Fix masks as they are now."""
        for weight in self._weights:
            weight.codebook.freeze_mask(weight.latent)

    def _apply(self, factor: float, limits: Sequence[float]) -> None:
        """Set each threshold to `factor` times where codes of 1 begin, or half a step if that is more, but not above its limit."""
        for weight, limit in zip(self._weights, limits, strict=True):
            start, step = 1.0 - float(weight.codebook.rounding_offset), float(weight.codebook.step)
            weight.codebook.threshold = min(max(factor * start, 0.5) * step, limit) if limit < math.inf else limit

    def _limits(self) -> list[float]:
        """The largest threshold of each weight that leaves as many kept as it must; infinity if none is kept."""
        return [_limit(weight, least) for weight, least in zip(self._weights, self._least, strict=True)]


@torch.no_grad()
def _limit(weight: PreparedWeight, least: int) -> float:
    if not least:
        return math.inf
    magnitudes = weight.latent.abs().flatten()
    magnitudes = magnitudes if magnitudes.dtype == torch.float64 else magnitudes.float()
    last = magnitudes.kthvalue(len(magnitudes) - least + 1).values
    return float(torch.nextafter(last, torch.zeros_like(last)))
