"""Masks that are open for the first part of a training, held to a byte budget by the border between pruned and kept.

The border of weight i lies at c t_i, or at half a step if that is more: t_i is the threshold of its plan, and c, the widening,
one number for the whole network, as large as it takes for the codes to fit into the budget. As latent values move, so does it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from opq.training.fitting import section_bytes
from opq.training.preparing import PreparedWeight, codes_of

_CLOSE_ENOUGH = 1.001
_STRIDE = 1.02
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
            codebook.border = None if widening is None else max(widening * threshold, 0.5) * step

    def fit(self, code_bytes: int) -> None:
        """Move open borders to the nearest place where the sections of all weights take at most `code_bytes`."""
        low, high = _NARROWEST, _WIDEST
        widening, stride = self.widening or 1.0, _STRIDE
        while high > _CLOSE_ENOUGH * low:
            self.open(widening)
            if section_bytes(codes_of(self._weights)) > code_bytes:
                low, is_between = widening, high < _WIDEST
            else:
                high, is_between = widening, low > _NARROWEST
            if is_between:
                widening = math.sqrt(low * high)
            else:  # in growing strides to where it is otherwise
                widening = min(low * stride, high) if high == _WIDEST else max(high / stride, low)
                stride *= stride
        self.open(high)

    def close(self) -> None:
        """Fix masks as they are now."""
        for weight in self._weights:
            weight.codebook.close(weight.latent)
        self.widening = None
