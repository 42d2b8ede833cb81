"""A network in training, held to a byte budget: where its codes take more, those of 2 and more are pulled down.

Codes spread while a network trains, and by how much nobody knows before: 3 to 14% of the bytes in a few epochs of ResNet-20. To
lower them all at the end costs more than to let the training work against a pull (docs/log.md). A latent value whose code is k
moves towards zero by

    pull * share * bits saved * step,    bits saved about log2(n_(k-1) / n_k), n_k codes of magnitude k in the weight

a step of the training, `share` being that of the learning rate; codes of 1 stay, since masks are fixed. The pull is zero while
the codes are within the budget, and else follows the excess and its sum, as a thermostat does.

While masks are open (`opq.training.budget.mask_threshold`) nothing is pulled where borders keep the codes within the budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opq.errors import TrainingError
from opq.training.budget.code_reduction import bits_saved, section_bytes
from opq.training.budget.mask_threshold import MaskThresholds
from opq.training.prepared_model import codebooks, current_codes

_MEASUREMENTS = 60
_LEAST_BETWEEN = 20
_MOVE_EVERY = 4
_MARGIN = 0.002
_PROPORTIONAL, _INTEGRAL = 0.05, 0.002
_MOST_BITS = 6.0


class BudgetController:
    """Called after each step of a training.

    code_bytes  what the sections of all weights may take
    open_share  share of the steps, the first ones, in which masks are open
    """

    def __init__(self, model: nn.Module, code_bytes: int, open_share: float = 0.0) -> None:
        self._weights, self._code_bytes, self._open_share = codebooks(model), code_bytes, open_share
        self._sum = self._pull = 0.0
        self._saved: list[Tensor] = []
        self._masks = MaskThresholds(self._weights)
        if open_share > 0.0:
            self._masks.open()

    def __call__(self, step: int, steps: int, share: float) -> None:
        """After step number `step` of `steps`, at `share` of the highest learning rate."""
        is_due = step % max(_LEAST_BETWEEN, steps // _MEASUREMENTS) == 0
        is_open = self._masks.are_open
        closes = is_open and step + 1 >= round(self._open_share * steps)
        if is_due or closes:
            self._check(step)
            if is_open and self._masks.fit(self._code_bytes):
                self._sum = self._pull = 0.0
            else:
                self._measure()
        if closes:
            self._masks.close()
        if self._pull > 0.0 and step % _MOVE_EVERY == 0:
            self._move(_MOVE_EVERY * share * self._pull)

    def state(self) -> dict[str, Any]:
        """All that a training needs to go on."""
        return {"sum": self._sum, "pull": self._pull, "saved": self._saved, "borders": self._masks.borders}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._sum, self._pull = state["sum"], state["pull"]
        self._saved = [saved.to(weight.latent) for saved, weight in zip(state["saved"], self._weights, strict=False)]
        self._masks.borders = state["borders"]

    def _check(self, step: int) -> None:
        for weight in self._weights:
            if not torch.isfinite(weight.latent).all():
                name = weight.names[0]
                raise TrainingError(f"{name} is no number after {step + 1:,} steps; lower the learning rate, or clip gradients")

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
