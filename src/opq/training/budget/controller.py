"""BudgetController: a PI controller with anti-windup that keeps the bytes of codes within a budget during training.

The entropy of codes grows in training, by an amount that is not known in advance: 3 to 14% of the bytes in a few epochs of
ResNet-20. Lowering codes only at the end costs more accuracy than a pull that training can compensate (docs/log.md). Per
training step, a latent value whose code is k >= 2 moves towards zero by

    pull * share * log2(n_(k-1) / n_k) * step,

where share is that of the learning rate, n_k counts the codes of magnitude k in the weight, and the logarithm approximates the
bits that lowering the code saves. Codes of 1 do not move, because masks are fixed. With the relative excess e of the codes over
99.8% of the budget, as measured about 60 times per training,

    pull = max(0, 0.05 e + 0.002 * sum of e).

Anti-windup: the sum of e never falls below zero, so that a long time within the budget does not delay a later pull.

While masks are recomputed (`opq.training.budget.mask_threshold`), the pull is zero unless no threshold meets the budget.
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
_MOVE_EVERY = 4  # steps; each move goes as many times as far
_MARGIN = 0.002
_PROPORTIONAL, _INTEGRAL = 0.05, 0.002
_MOST_BITS = 6.0


class BudgetController:
    """A controller that a training calls after each step.

    Args:
        model: The prepared network, whose latent values and mask thresholds it changes.
        code_bytes: Budget of the codes of all weights in bytes, > 0.
        mask_update_share: Share of the training, from its beginning, in which masks are recomputed, 0..1.
    """

    def __init__(self, model: nn.Module, code_bytes: int, mask_update_share: float = 0.0) -> None:
        self._weights, self._code_bytes, self._mask_update_share = prepared_weights(model), code_bytes, mask_update_share
        self._sum = self._pull = 0.0
        self._saved: list[Tensor] = []
        self._masks = MaskThresholds(self._weights)
        if mask_update_share > 0.0:
            self._masks.begin()

    def __call__(self, step: int, steps: int, share: float) -> None:
        """Measure the codes if a measurement is due, and move latent values.

        Args:
            step: Number of the finished step, 0 <= step < steps.
            steps: Steps of the whole training.
            share: Current learning rate as a share of the highest one, 0..1.

        Raises:
            TrainingError: A latent value became NaN or infinite.
        """
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
        """The state for a checkpoint as JSON values, which `restore` accepts."""
        saved = [bits.tolist() for bits in self._saved]
        return {
            "code_bytes": self._code_bytes,
            "sum": self._sum,
            "pull": self._pull,
            "saved": saved,
            "thresholds": self._masks.thresholds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state` returned."""
        self._code_bytes, self._sum, self._pull = state["code_bytes"], state["sum"], state["pull"]
        self._saved = [
            torch.tensor(bits, dtype=weight.latent.dtype, device=weight.latent.device)
            for bits, weight in zip(state["saved"], self._weights, strict=False)
        ]
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
                steps = weight.codebook.steps.to(weight.latent.dtype)
                weight.latent.sub_(strength * steps * saved[codes.long()] * weight.latent.sign())
