"""Masks that are open for the first part of a training, held to a byte budget by the border between pruned and kept.

The border of weight i lies at c (1 - offset_i) step_i, at c = 1 where codes of 1 begin, or at half a step if that is more; c,
the widening, is one number for the whole network, as small as the budget allows. As latent values move, so does it. No border
takes more than _MOST_LOST of what the plan keeps of a weight: a layer that is emptied passes no gradient, and stays empty. A
weight whose mask prunes all of it stays pruned: its step means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from opq.training.budget.code_reduction import section_bytes
from opq.training.prepared_model import PreparedWeight, current_codes

_CLOSE_ENOUGH = 1.001
_NARROWEST, _WIDEST = 0.5, 64.0
_MOST_LOST = 0.75


class MaskThresholds:
    """The borders of prepared weights, whose masks are a plan's; there are none before `open` and after `close`."""

    def __init__(self, weights: Sequence[PreparedWeight]) -> None:
        self._weights = weights
        self._least = [math.ceil((1.0 - _MOST_LOST) * int(weight.codebook.mask.sum())) for weight in weights]

    @property
    def are_open(self) -> bool:
        """Whether latent values decide what is pruned."""
        return any(border is not None for border in self.borders)

    @property
    def borders(self) -> list[float | None]:
        """The border of each weight, None where its mask is fixed."""
        return [weight.codebook.border for weight in self._weights]

    @borders.setter
    def borders(self, borders: Sequence[float | None]) -> None:
        for weight, border in zip(self._weights, borders, strict=True):
            weight.codebook.border = border

    def open(self) -> None:
        """Put all borders where the plan has them."""
        self._widen(1.0, self._limits())

    def fit(self, code_bytes: int) -> bool:
        """Move borders to the narrowest place where all sections take at most `code_bytes`; whether there is one."""
        low, high, limits = _NARROWEST, _WIDEST, self._limits()
        while high > _CLOSE_ENOUGH * low:
            middle = math.sqrt(low * high)
            self._widen(middle, limits)
            low, high = (middle, high) if section_bytes(current_codes(self._weights)) > code_bytes else (low, middle)
        self._widen(high, limits)
        return high < _WIDEST

    def close(self) -> None:
        """Fix masks as they are now."""
        for weight in self._weights:
            weight.codebook.close(weight.latent)

    def _widen(self, widening: float, limits: Sequence[float]) -> None:
        """Put all borders at so many times their thresholds, or half a step if that is more, but none beyond its limit."""
        for weight, limit in zip(self._weights, limits, strict=True):
            threshold, step = 1.0 - float(weight.codebook.rounding_offset), float(weight.codebook.step)
            weight.codebook.border = min(max(widening * threshold, 0.5) * step, limit) if limit < math.inf else limit

    def _limits(self) -> list[float]:
        """The largest border of each weight that leaves as many kept as it must; infinity where none is kept."""
        return [_limit(weight, least) for weight, least in zip(self._weights, self._least, strict=True)]


@torch.no_grad()
def _limit(weight: PreparedWeight, least: int) -> float:
    if not least:
        return math.inf
    magnitudes = weight.latent.abs().flatten()
    magnitudes = magnitudes if magnitudes.dtype == torch.float64 else magnitudes.float()
    last = magnitudes.kthvalue(len(magnitudes) - least + 1).values
    return float(torch.nextafter(last, torch.zeros_like(last)))
