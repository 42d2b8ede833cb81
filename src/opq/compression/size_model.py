"""SizeModel: predict the bytes of a file before it is encoded, as the contextless bits of each weight times a gain of contexts.

The gain is first measured on excerpts of a few weights, and after the first file on that file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from opq.codec.code_length import ContextGain, context_gain, contextless_bits, contextless_code_bits
from opq.codec.weight_section import encode_scales
from opq.compression.analysis import CheckpointAnalysis
from opq.config import CompressionConfig, Speed
from opq.errors import TargetError
from opq.quantization.codebook import ScaledCodebook, codebook_of
from opq.quantization.quantizer import quantize
from opq.quantization.rounding import ROUNDINGS
from opq.quantization.statistics import EXCERPT
from opq.rate_distortion import joint, trellis
from opq.rate_distortion.family import Family
from opq.rate_distortion.layer_plan import LayerPlan
from opq.rate_distortion.layers import Layer, LayerStatistics

_EXCERPTS = 4
"""The number of weights whose excerpts are encoded."""

_NO_GAIN = ContextGain()


@dataclass(frozen=True, eq=False)
class SizeModel:
    """Predicts the bytes of the weights of an analyzed checkpoint.

    Args:
        analysis: The checkpoint.
        layers: Its weights.
        rounding: Name of the rounding method, as in LayerPlan.rounding.
        speed: As in CompressionConfig. It does not change predictions.
        scale_bytes: {weight name: bytes of its scales}, for the weights that have some.
        gains: {weight name: effect of the coder's contexts}; none for missing weights.
    """

    analysis: CheckpointAnalysis
    layers: Sequence[Layer]
    rounding: str
    speed: Speed
    scale_bytes: Mapping[str, int] = field(default_factory=dict)
    gains: Mapping[str, ContextGain] = field(default_factory=dict)

    @classmethod
    def of(cls, analysis: CheckpointAnalysis, config: CompressionConfig) -> SizeModel:
        """The size model of a checkpoint, without gains.

        Args:
            analysis: The checkpoint.
            config: The rounding method, the settings of layers, and the speed.

        Raises:
            TargetError, SelectionError, ConfigError: See `CheckpointAnalysis.layers`.
        """
        rounding = config.resolved_rounding
        layers = analysis.layers(config)
        # The step does not matter for the bytes of scales.
        codebooks = {layer.name: codebook_of(1.0, layer.statistics.rows, None) for layer in layers}
        scaled = {name: codebook for name, codebook in codebooks.items() if isinstance(codebook, ScaledCodebook)}
        scale_bytes = {name: len(encode_scales(codebook)) for name, codebook in scaled.items()}
        return cls(analysis, layers, rounding, config.speed, scale_bytes)

    @property
    def family(self) -> Family:
        """The family of quantizers of the rounding method."""
        return ROUNDINGS[self.rounding].family

    @property
    def rounding_without_trellis(self) -> str:
        """The rounding method of weights that do not follow a trellis."""
        return "compensated" if self.rounding == "trellis" else self.rounding

    @cached_property
    def fixed_bytes(self) -> int:
        """Estimated bytes of the file other than codes: those of the analysis, and scales."""
        scales = sum(self.scale_bytes.get(layer.name, 0) for layer in self.layers if layer.repeats is None)
        return self.analysis.fixed_bytes + scales

    def bits(self, layer: Layer, threshold: float, step: float, offset: float | None = None) -> float:
        """Predict the bits of a weight's codes.

        Args:
            layer: The weight.
            threshold: Pruning threshold in weight units.
            step: Quantization step in weight units; of a weight that follows a trellis, that of uniform rounding in its place.
            offset: Rounding offset, 0..1; None: 1 - threshold / step.

        Returns:
            Bits of the whole weight.
        """
        if offset is None:
            offset = 1.0 - threshold / step
        contextless = contextless_bits(layer.statistics, threshold, step, offset)
        if contextless > 0.0 and self.follows_trellis(layer, step):
            contextless = _trellis_bits(layer.statistics, step)
        if contextless == 0.0:  # all codes are 0
            return 0.0
        context = self.gains.get(layer.name, _NO_GAIN)
        return context.gain * contextless + context.start

    def follows_trellis(self, layer: Layer, step: float) -> bool:
        """Whether a weight follows a trellis in place of uniform rounding with this step, in weight units."""
        scale = layer.statistics.laplace_scale
        return layer.trellis and trellis.FINEST_STEP * scale <= step <= trellis.COARSEST_STEP * scale

    def rough_lambda(self, file_bytes: float) -> float:
        """As `lambda_for`, from the Laplace density only: less exact, and much faster."""
        return joint.laplace_lambda(self.layers, 8.0 * (file_bytes - self.fixed_bytes), self.family)

    def lambda_for(self, file_bytes: float) -> float:
        """The lambda at which the predicted file has this many bytes; the nearest possible one if there is none."""
        return joint.lambda_for(self.layers, 8.0 * (file_bytes - self.fixed_bytes), self.family, self.bits)

    def reachable_lambda(self, budget: int, aim: float) -> float:
        """The lambda at which the predicted file has `aim` bytes.

        If the file is smaller even with the finest steps, because its exact tensors take fewer bytes than in the source, the
        finest steps are chosen.

        Args:
            budget: The target in bytes, for the message.
            aim: Bytes of the predicted file.

        Raises:
            TargetError: No lambda gives this many bytes.
        """
        lmbda = self.lambda_for(aim)
        low, high = joint.lambda_bounds(self.layers, self.family)
        if not low * (1.0 + 1e-9) < lmbda < high * (1.0 - 1e-9):  # at an end of the range the aim may be out of reach
            largest = self.fixed_bytes + joint.predicted_bits(self.layers, low, self.family, self.bits) / 8.0
            smallest = self.fixed_bytes + joint.predicted_bits(self.layers, high, self.family, self.bits) / 8.0
            if largest < aim <= largest + self.analysis.saved_bytes:
                return low  # the file is smaller than the target, since its exact tensors take few bytes
            if not smallest <= aim <= largest:
                margin = budget / aim
                dense = self.analysis.dense_bytes
                raise TargetError.out_of_reach(budget, round(smallest * margin), round(largest * margin), dense)
        return lmbda

    def guessed(self, plans: Mapping[str, LayerPlan]) -> SizeModel:
        """The size model with gains measured on excerpts of a few weights.

        Args:
            plans: {weight name: its plan}, under which excerpts are encoded, without a trellis. Weights with kernels and
                matrices have separate gains.
        """
        gains: dict[str, ContextGain] = {}
        for has_kernel in (True, False):
            group = [layer for layer in self.layers if (_kernel_size(layer) > 1) == has_kernel]
            chosen = _representatives(group)
            # The gain with a trellis is that without, and the algorithm is slow on the few rows of an excerpt.
            used = {layer.name: plans[layer.name].without_trellis for layer in chosen}
            codes = [_excerpt_codes(layer, used[layer.name]) for layer in chosen]
            context = context_gain(codes)
            gain = context.gain * (1.0 if ROUNDINGS[self.rounding].is_elementwise else _rounding_cost(codes, chosen, used))
            for layer in group:
                # The models learn fewer contexts from a small weight.
                share = min(layer.statistics.count / EXCERPT, 1.0) ** 0.5
                gains[layer.name] = ContextGain(gain, context.start * share)
        return replace(self, gains=gains)

    def learned(self, plans: Mapping[str, LayerPlan], section_bytes: Mapping[str, int]) -> SizeModel:
        """The size model with gains measured on an encoded file.

        Args:
            plans: {weight name: its plan} of the file, with bits predicted by this size model.
            section_bytes: {weight name: bytes of its section}.
        """
        gains = {}
        for name, layer in plans.items():
            before = self.gains.get(name, _NO_GAIN)
            contextless = (layer.bits * layer.count - before.start) / before.gain
            if contextless > 16.0:
                code_bytes = section_bytes[name] - self.scale_bytes.get(name, 0)
                gains[name] = ContextGain(8.0 * code_bytes / contextless)
        return replace(self, gains=gains)


def _representatives(layers: Sequence[Layer]) -> list[Layer]:
    """A few of the layers, at equal quantiles of the number of elements."""
    usable = sorted((layer for layer in layers if len(layer.statistics.excerpt) > 1), key=lambda layer: layer.statistics.count)
    if not usable:
        return []
    cumulative = np.cumsum([layer.statistics.count for layer in usable])
    quantiles = (np.arange(_EXCERPTS) + 0.5) / _EXCERPTS * cumulative[-1]
    return [usable[index] for index in sorted(set(cumulative.searchsorted(quantiles).tolist()))]


def _trellis_bits(statistics: LayerStatistics, uniform_step: float) -> float:
    """Contextless bits of a weight that follows a trellis in place of uniform rounding: the mean of both quantizers."""
    half = trellis.codebook_step(uniform_step, statistics.laplace_scale)
    # In codebook steps, quantizer 0 has borders at 1, 3, 5, ..., quantizer 1 at 1/2, 2, 4, ...
    first = contextless_bits(statistics, half, 2.0 * half, 0.5)
    second = contextless_bits(statistics, 0.5 * half, 2.0 * half, 1.0)
    return 0.5 * (first + second) * (1.0 + trellis.SPREAD * (half / statistics.laplace_scale) ** 2)


def _kernel_size(layer: Layer) -> int:
    return int(np.prod(layer.statistics.shape[2:]))


def _rounding_cost(codes: Sequence[NDArray[np.int32]], layers: Sequence[Layer], plans: Mapping[str, LayerPlan]) -> float:
    """Contextless bits of these codes of excerpts over those with each weight rounded alone."""
    alone = [_excerpt_codes(layer, replace(plans[layer.name], rounding="deadzone")) for layer in layers]
    bits, bits_alone = (sum(float(contextless_code_bits(codes).sum()) for codes in some) for some in (codes, alone))
    return bits / bits_alone if bits > 0.0 and bits_alone > 0.0 else 1.0


def _excerpt_codes(layer: Layer, plan: LayerPlan) -> NDArray[np.int32]:
    excerpt = layer.statistics.excerpt
    part = replace(plan, shape=excerpt.shape, num_kept=None, max_codes=None, rows=layer.statistics.excerpt_rows)
    return np.asarray(quantize(excerpt, part))
