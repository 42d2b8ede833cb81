"""A network in training, held to a byte budget: where its codes take more, those of 2 and more are pulled down.

Codes spread while a network trains, and by how much nobody knows before: 3 to 14% of the bytes in a few epochs of ResNet-20. To
lower them all at the end costs more than to let the training work against a pull (docs/log.md). A latent value whose code is k
moves towards zero by

    pull * share * bits saved * step,    bits saved about log2(n_(k-1) / n_k), n_k codes of magnitude k in the weight

a step of the training, `share` being that of the learning rate; codes of 1 stay, since masks are fixed. The pull is zero while
the codes are within the budget, and else follows the excess and its sum, as a thermostat does.

In the first steps masks may be open still: then what keeps the codes within the budget is the border between pruned and kept
weights, one multiple of all thresholds, and it is moved until they fill it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from opq.training.fitting import bits_saved, section_bytes
from opq.training.preparing import codebooks

_MEASUREMENTS = 60
_LEAST_BETWEEN = 20
_MOVE_EVERY = 4
_MARGIN = 0.002
_PROPORTIONAL, _INTEGRAL = 0.05, 0.002
_MOST_BITS = 6.0
_CLOSE, _STRIDE = 0.001, 1.02
_NARROWEST, _WIDEST = 0.5, 64.0


class Hold:
    """Called after each step of a training.

    code_bytes  what the sections of all weights may take
    open_share  share of the steps, the first ones, in which masks are open
    """

    def __init__(self, model: nn.Module, code_bytes: int, open_share: float = 0.0) -> None:
        self._weights, self._code_bytes, self._open_share = codebooks(model), code_bytes, open_share
        self._sum = self._pull = 0.0
        self._saved: list[Tensor] = []
        self._widening: float | None = None
        if open_share > 0.0:
            self._open(1.0)

    def __call__(self, step: int, steps: int, share: float) -> None:
        """After step number `step` of `steps`, at `share` of the highest learning rate."""
        is_due = step % max(_LEAST_BETWEEN, steps // _MEASUREMENTS) == 0
        if self._widening is not None:
            is_last = step + 1 >= round(self._open_share * steps)
            if is_due or is_last:
                self._fit()
            if is_last:
                self._close()
            return
        if is_due:
            self._measure()
        if self._pull > 0.0 and step % _MOVE_EVERY == 0:
            self._move(_MOVE_EVERY * share * self._pull)

    def state(self) -> dict[str, Any]:
        """All that a training needs to go on."""
        return {"sum": self._sum, "pull": self._pull, "saved": self._saved, "widening": self._widening}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._sum, self._pull = state["sum"], state["pull"]
        self._saved = [saved.to(weight.latent) for saved, weight in zip(state["saved"], self._weights, strict=False)]
        self._open(state["widening"])

    def _open(self, widening: float | None) -> None:
        """Put all borders at so many times their thresholds, or half a step if that is more; None to have none."""
        self._widening = widening
        for weight in self._weights:
            codebook = weight.codebook
            threshold, step = 1.0 - float(codebook.offset), float(codebook.step)
            codebook.border = None if widening is None else max(widening * threshold, 0.5) * step

    def _close(self) -> None:
        for weight in self._weights:
            weight.codebook.close(weight.latent)
        self._widening = None

    def _fit(self) -> None:
        """Move the borders to the nearest place where the codes fit in."""
        low, high = _NARROWEST, _WIDEST
        widening, stride = self._widening or 1.0, _STRIDE
        while high > (1.0 + _CLOSE) * low:
            self._open(widening)
            if section_bytes(self._codes()) > self._code_bytes:
                low, seen = widening, high < _WIDEST
            else:
                high, seen = widening, low > _NARROWEST
            if seen:
                widening = math.sqrt(low * high)
            else:  # in growing strides to where it is otherwise
                widening = min(low * stride, high) if high == _WIDEST else max(high / stride, low)
                stride *= stride
        self._open(high)

    def _codes(self) -> list[NDArray[np.int32]]:
        return [weight.codebook.codes(weight.latent).cpu().numpy() for weight in self._weights]

    def _measure(self) -> None:
        codes = self._codes()
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
                codes = weight.codebook.codes(weight.latent).abs().clamp_(max=len(saved) - 1)
                step = weight.codebook.step.to(weight.latent.dtype)
                weight.latent.sub_(strength * step * saved[codes.long()] * weight.latent.sign())
