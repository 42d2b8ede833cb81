"""What a file will take, before it is written: the contextless bits of each weight times what context saves.

What context saves is first guessed from excerpts of a few weights, and then, once a file was written, known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from opq.codec.code_length import ContextGain, context_gain, contextless_bits, contextless_code_bits
from opq.compression.analysis import CheckpointAnalysis
from opq.config import CompressionConfig, TwoStage
from opq.errors import TargetError
from opq.quantization.quantizer import quantize
from opq.quantization.rounding import ROUNDINGS
from opq.quantization.statistics import EXCERPT
from opq.rate_distortion import joint
from opq.rate_distortion.family import Family
from opq.rate_distortion.layers import Layer
from opq.rate_distortion.plan import LayerPlan

_LOOKED_AT = 4
_NONE = ContextGain()


@dataclass(frozen=True, eq=False)
class SizeModel:
    """Predicts the bytes of the weights of an analyzed checkpoint.

    Args:
        analysis: The checkpoint.
        layers: Its weights.
        rounding: Name of the rounding method, as in LayerPlan.rounding.
        gains: {weight name: what the coder's contexts save}; nothing for those that are missing.
    """

    analysis: CheckpointAnalysis
    layers: Sequence[Layer]
    rounding: str
    gains: Mapping[str, ContextGain] = field(default_factory=dict)

    @classmethod
    def of(cls, analysis: CheckpointAnalysis, config: CompressionConfig) -> SizeModel:
        """The model of a checkpoint under a config, before any excerpt was coded."""
        rounding = "compensated" if config.rounding == "auto" else config.rounding
        if isinstance(config.target, TwoStage):
            rounding = "deadzone"
        return cls(analysis, analysis.layers(config), rounding)

    @property
    def family(self) -> Family:
        """The quantizers from which layers get theirs."""
        return ROUNDINGS[self.rounding].family

    def bits(self, layer: Layer, threshold: float, step: float, offset: float | None = None) -> float:
        """Bits of a whole weight; `offset` is that of cells of one width behind the threshold unless given."""
        if offset is None:
            offset = 1.0 - threshold / step
        contextless = contextless_bits(layer.statistics, threshold, step, offset)
        if contextless == 0.0:  # all zero
            return 0.0
        saving = self.gains.get(layer.name, _NONE)
        return saving.gain * contextless + saving.start

    def rough_lambda(self, file_bytes: float) -> float:
        """As `price_for`, by the Laplace density alone: less exact, and at once."""
        return joint.laplace_lambda(self.layers, 8.0 * (file_bytes - self.analysis.fixed_bytes), self.family)

    def lambda_for(self, file_bytes: float) -> float:
        """The price at which the whole file takes so many bytes, or comes nearest to that."""
        return joint.lambda_for(self.layers, 8.0 * (file_bytes - self.analysis.fixed_bytes), self.family, self.bits)

    def reachable_lambda(self, budget: int, aim: float) -> float:
        """As `price_for(aim)`; TargetError, telling of `budget`, where no price comes to it."""
        lmbda = self.lambda_for(aim)
        low, high = joint.lambda_bounds(self.layers, self.family)
        if not low * (1.0 + 1e-9) < lmbda < high * (1.0 - 1e-9):  # at an end of the curve: is the aim there, or beyond?
            fixed = self.analysis.fixed_bytes
            largest = fixed + joint.predicted_bits(self.layers, low, self.family, self.bits) / 8.0
            smallest = fixed + joint.predicted_bits(self.layers, high, self.family, self.bits) / 8.0
            if not smallest <= aim <= largest:
                margin = budget / aim
                dense = self.analysis.dense_bytes
                raise TargetError.out_of_reach(budget, round(smallest * margin), round(largest * margin), dense)
        return lmbda

    def guessed(self, plans: Mapping[str, LayerPlan]) -> SizeModel:
        """The forecast with savings as excerpts show them under these plans; kernels and plain matrices save differently."""
        gains: dict[str, ContextGain] = {}
        for has_kernel in (True, False):
            alike = [layer for layer in self.layers if (_kernel(layer) > 1) == has_kernel]
            seen = _spread(alike)
            codes = [_excerpt_codes(layer, plans[layer.name]) for layer in seen]
            saving = context_gain(codes)
            gain = saving.gain * (1.0 if ROUNDINGS[self.rounding].is_elementwise else _rounding_cost(codes, seen, plans))
            for layer in alike:
                # A small weight leaves less to learn.
                share = min(layer.statistics.count / EXCERPT, 1.0) ** 0.5
                gains[layer.name] = ContextGain(gain, saving.start * share)
        return replace(self, gains=gains)

    def learned(self, plans: Mapping[str, LayerPlan], taken: Mapping[str, int]) -> SizeModel:
        """The forecast with the savings that a file showed whose sections of these plans took so many bytes each."""
        gains = {}
        for name, layer in plans.items():
            before = self.gains.get(name, _NONE)
            contextless = (layer.bits * layer.count - before.start) / before.gain
            if contextless > 16.0:
                gains[name] = ContextGain(8.0 * taken[name] / contextless)
        return replace(self, gains=gains)


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


def _rounding_cost(codes: Sequence[NDArray[np.int32]], layers: Sequence[Layer], plans: Mapping[str, LayerPlan]) -> float:
    """What these codes of excerpts take without contexts, over what they take if each weight is rounded alone."""
    alone = [_excerpt_codes(layer, replace(plans[layer.name], rounding="deadzone")) for layer in layers]
    taken, before = (sum(float(contextless_code_bits(codes).sum()) for codes in some) for some in (codes, alone))
    return taken / before if taken > 0.0 and before > 0.0 else 1.0


def _excerpt_codes(layer: Layer, plan: LayerPlan) -> NDArray[np.int32]:
    excerpt = layer.statistics.excerpt
    return np.asarray(quantize(excerpt, replace(plan, shape=excerpt.shape, num_kept=None, max_codes=None)))
