"""What a file will take, before it is written: the contextless bits of each weight times what context saves.

What context saves is first guessed from excerpts of a few weights, and then, once a file was written, known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from opq.allocation import curve, even, joint
from opq.allocation.layers import Layer
from opq.allocation.plans import LayerPlan
from opq.codec.estimate import Saving, context_saving, contextless_bits, contextless_code_bits
from opq.compression.survey import Survey
from opq.errors import TargetError
from opq.quantization.quantizer import quantize
from opq.quantization.statistics import EXCERPT

_LOOKED_AT = 4
_NONE = Saving()


@dataclass(frozen=True, eq=False)
class Forecast:
    """Predictions for some weights of a surveyed checkpoint.

    shaped   whether they are rounded in view of each other, with one step; else with the steps of the Laplace curve
    savings  {weight name: what the coder takes of its contextless bits}; all of them where missing
    """

    surveyed: Survey
    layers: Sequence[Layer]
    shaped: bool
    savings: Mapping[str, Saving] = field(default_factory=dict)

    @property
    def family(self) -> joint.Family:
        """The quantizers that layers are given."""
        return even if self.shaped else curve

    def bits(self, layer: Layer, threshold: float, step: float, offset: float | None = None) -> float:
        """Bits of a whole weight; `offset` is that of cells of one width behind the threshold unless given."""
        if offset is None:
            offset = 1.0 - threshold / step
        contextless = contextless_bits(layer.statistics, threshold, step, offset)
        if contextless == 0.0:  # all zero
            return 0.0
        saving = self.savings.get(layer.name, _NONE)
        return saving.gain * contextless + saving.start

    def rough_price(self, file_bytes: float) -> float:
        """As `price_for`, by the Laplace density alone: less exact, and at once."""
        return joint.laplace_price(self.layers, 8.0 * (file_bytes - self.surveyed.fixed_bytes), self.family)

    def price_for(self, file_bytes: float) -> float:
        """The price at which the whole file takes so many bytes, or comes nearest to that."""
        return joint.price_for(self.layers, 8.0 * (file_bytes - self.surveyed.fixed_bytes), self.family, self.bits)

    def reachable_price(self, budget: int, aim: float) -> float:
        """As `price_for(aim)`; TargetError, telling of `budget`, where no price comes to it."""
        price = self.price_for(aim)
        low, high = joint.price_bounds(self.layers, self.family)
        if not low * (1.0 + 1e-9) < price < high * (1.0 - 1e-9):  # at an end of the curve: is the aim there, or beyond?
            fixed = self.surveyed.fixed_bytes
            largest = fixed + joint.predicted_bits(self.layers, low, self.family, self.bits) / 8.0
            smallest = fixed + joint.predicted_bits(self.layers, high, self.family, self.bits) / 8.0
            if not smallest <= aim <= largest:
                margin = budget / aim
                dense = self.surveyed.dense_bytes
                raise TargetError.out_of_reach(budget, round(smallest * margin), round(largest * margin), dense)
        return price

    def guessed(self, plans: Mapping[str, LayerPlan]) -> Forecast:
        """The forecast with savings as excerpts show them under these plans; kernels and plain matrices save differently."""
        savings: dict[str, Saving] = {}
        for has_kernel in (True, False):
            alike = [layer for layer in self.layers if (_kernel(layer) > 1) == has_kernel]
            seen = _spread(alike)
            codes = [_excerpt_codes(layer, plans[layer.name]) for layer in seen]
            saving = context_saving(codes)
            gain = saving.gain * (_shaping_cost(codes, seen, plans) if self.shaped else 1.0)
            for layer in alike:
                # A small weight leaves less to learn.
                share = min(layer.statistics.count / EXCERPT, 1.0) ** 0.5
                savings[layer.name] = Saving(gain, saving.start * share)
        return replace(self, savings=savings)

    def learned(self, plans: Mapping[str, LayerPlan], taken: Mapping[str, int]) -> Forecast:
        """The forecast with the savings that a file showed whose sections of these plans took so many bytes each."""
        savings = {}
        for name, layer in plans.items():
            before = self.savings.get(name, _NONE)
            contextless = (layer.bits * layer.count - before.start) / before.gain
            if contextless > 16.0:
                savings[name] = Saving(8.0 * taken[name] / contextless)
        return replace(self, savings=savings)


def _spread(layers: Sequence[Layer]) -> list[Layer]:
    """A few of the layers, such that each stands for as many weights."""
    usable = sorted((layer for layer in layers if len(layer.statistics.excerpt) > 1), key=lambda layer: layer.statistics.count)
    if not usable:
        return []
    passed = np.cumsum([layer.statistics.count for layer in usable])
    wanted = (np.arange(_LOOKED_AT) + 0.5) / _LOOKED_AT * passed[-1]
    return [usable[index] for index in sorted(set(passed.searchsorted(wanted).tolist()))]


def _kernel(layer: Layer) -> int:
    return int(np.prod(layer.statistics.shape[2:]))


def _shaping_cost(shaped: Sequence[NDArray[np.int32]], layers: Sequence[Layer], plans: Mapping[str, LayerPlan]) -> float:
    """What these shaped codes of excerpts take without contexts, over what they take rounded by themselves."""
    plain = [_excerpt_codes(layer, replace(plans[layer.name], shaped=False)) for layer in layers]
    taken, before = (sum(float(contextless_code_bits(codes).sum()) for codes in some) for some in (shaped, plain))
    return taken / before if taken > 0.0 and before > 0.0 else 1.0


def _excerpt_codes(layer: Layer, plan: LayerPlan) -> NDArray[np.int32]:
    excerpt = layer.statistics.excerpt
    return np.asarray(quantize(excerpt, replace(plan, shape=excerpt.shape, kept=None, limits=None)))
