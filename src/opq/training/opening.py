"""Masks that are open for the first part of a training, held to a byte budget by the border between pruned and kept.

The border of weight i lies at c (1 - offset_i) step_i, at c = 1 where codes of 1 begin, or at half a step if that is more; c,
the widening, is one number for the whole network, as small as the budget allows. As latent values move, so does it. A weight
whose mask prunes all of it stays pruned: its step means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from opq.training.fitting import section_bytes
from opq.training.preparing import PreparedWeight, codes_of

_CLOSE_ENOUGH = 1.001
_NARROWEST, _WIDEST = 0.5, 64.0


class OpenMasks:
    """The borders of prepared weights.

    widening  what thresholds are multiplied by; None while masks are fixed, as they are before `open` and after `close`
    """

    def __init__(self, weights: Sequence[PreparedWeight]) -> None:
        self._weights = weights
        self.widening: float | None = None

    @property
    def are_open(self) -> bool:
        """Whether latent values decide what is pruned."""
        return self.widening is not None

    def open(self, widening: float | None = 1.0) -> None:
        """Put all borders at so many times their thresholds, or half a step if that is more; None to have none."""
        self.widening = widening
        for weight in self._weights:
            codebook = weight.codebook
            threshold, step = 1.0 - float(codebook.offset), float(codebook.step)
            border = max(widening * threshold, 0.5) * step if widening is not None else None
            codebook.border = math.inf if border is not None and not codebook.mask.any() else border

    def fit(self, code_bytes: int) -> None:
        """Move open borders to the narrowest place where the sections of all weights take at most `code_bytes`."""
        low, high = _NARROWEST, _WIDEST
        while high > _CLOSE_ENOUGH * low:
            middle = math.sqrt(low * high)
            self.open(middle)
            low, high = (middle, high) if section_bytes(codes_of(self._weights)) > code_bytes else (low, middle)
        self.open(high)

    def close(self) -> None:
        """Fix masks as they are now."""
        for weight in self._weights:
            weight.codebook.close(weight.latent)
        self.widening = None
