"""Holds a network to a byte budget while it trains: a PI controller on the bytes of its codes.

Codes spread while a network trains, and by how much is not known before: 3 to 14% of the bytes in a few epochs of ResNet-20.
Lowering them all at the end costs more than letting the training work against a pull (docs/log.md). A latent value whose code is
k >= 2 moves towards zero by

    pull * share * bits saved * step,    bits saved about log2(n_(k-1) / n_k), n_k codes of magnitude k in the weight

per training step, `share` being that of the learning rate; codes of 1 do not move, since masks are fixed. The pull is zero while
the codes are within the budget, and else proportional to the excess and to its sum, which cannot fall below zero.

While masks are recomputed (`opq.training.budget.mask_threshold`) nothing is pulled if thresholds keep the codes within the
budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opq.errors import TrainingError
from opq.training.attach import current_codes, prepared_weights
from opq.training.budget.code_reduction import bits_saved, section_bytes
from opq.training.budget.mask_threshold import MaskThresholds

_MEASUREMENTS = 60
_LEAST_BETWEEN = 20
_MOVE_EVERY = 4
_MARGIN = 0.002
_PROPORTIONAL, _INTEGRAL = 0.05, 0.002
_MOST_BITS = 6.0


class BudgetController:
    """Called after each step of a training.

    Args:
        model: The prepared network.
        code_bytes: The most bytes that the codes of all weights may take.
        mask_update_share: Share of the steps, the first ones, in which masks are recomputed, 0..1.
    """

    def __init__(self, model: nn.Module, code_bytes: int, mask_update_share: float = 0.0) -> None:
        self._weights, self._code_bytes, self._mask_update_share = prepared_weights(model), code_bytes, mask_update_share
        self._sum = self._pull = 0.0
        self._saved: list[Tensor] = []
        self._masks = MaskThresholds(self._weights)
        if mask_update_share > 0.0:
            self._masks.begin()

    def __call__(self, step: int, steps: int, share: float) -> None:
        """After step number `step` of `steps`, at `share` of the highest learning rate."""
        is_due = step % max(_LEAST_BETWEEN, steps // _MEASUREMENTS) == 0
        recomputed = self._masks.are_recomputed
        ends = recomputed and step + 1 >= round(self._mask_update_share * steps)
        if is_due or ends:
            self._check(step)
            if recomputed and self._masks.fit(self._code_bytes):
                self._sum = self._pull = 0.0
            else:
                self._measure()
        if ends:
            self._masks.freeze()
        if self._pull > 0.0 and step % _MOVE_EVERY == 0:
            self._move(_MOVE_EVERY * share * self._pull)

    def state(self) -> dict[str, Any]:
        """All that a training needs to go on."""
        return {"sum": self._sum, "pull": self._pull, "saved": self._saved, "thresholds": self._masks.thresholds}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._sum, self._pull = state["sum"], state["pull"]
        self._saved = [saved.to(weight.latent) for saved, weight in zip(state["saved"], self._weights, strict=False)]
        self._masks.thresholds = state["thresholds"]

    def _check(self, step: int) -> None:
        for weight in self._weights:
            if not torch.isfinite(weight.latent).all():
                name = weight.names[0]
                raise TrainingError(
                    f"{name!r} became NaN or infinite at step {step + 1:,}; lower the learning rate, or clip gradients"
                )

    def _measure(self) -> None:
        codes = current_codes(self._weights)
        excess = section_bytes(codes) / self._code_bytes - 1.0 + _MARGIN
        self._sum = max(self._sum + _INTEGRAL * excess, 0.0)
        self._pull = max(self._sum + _PROPORTIONAL * excess, 0.0)
        self._saved = []
        if self._pull > 0.0:
            for weight, array in zip(self._weights, codes, strict=True):
                saved = np.minimum(bits_saved(array), _MOST_BITS)
                saved[:2] = 0.0
                self._saved.append(torch.from_numpy(saved).to(weight.latent))

    def _move(self, strength: float) -> None:
        with torch.no_grad():
            for weight, saved in zip(self._weights, self._saved, strict=True):
                codes = weight.codebook.codes(weight.latent).abs().clamp_(0, len(saved) - 1)
                step = weight.codebook.step.to(weight.latent.dtype)
                weight.latent.sub_(strength * step * saved[codes.long()] * weight.latent.sign())
