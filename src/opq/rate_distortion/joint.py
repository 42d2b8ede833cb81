"""Joint mode: one Lagrange multiplier lambda determines sparsity and precision of every layer, for a byte budget.

A layer gets the quantizer at lambda / (sensitivity * scale^2) of a family of quantizers of unit layers, multiplied by its own
Laplace scale. There are two families: one step for all layers (`opq.rate_distortion.uniform`), and the rate-distortion optimal
dead-zone quantizers of a Laplace density (`opq.rate_distortion.deadzone`). See docs/method.md, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from opq.errors import TargetError
from opq.rate_distortion import laplace
from opq.rate_distortion.family import Family
from opq.rate_distortion.layers import Layer, LayerStatistics
from opq.rate_distortion.roots import find_root

Measure = Callable[[Layer, float, float], float]
"""(layer, threshold, step) -> predicted bits of the whole layer."""


# Half the width of the first bracket around log(lambda) of the Laplace density, and the tolerance of log(lambda). The relative
# error of the bits is about half the tolerance, less than the error of a sample of magnitudes.
_BRACKET, _TOLERANCE = 0.05, 4e-6


@dataclass(frozen=True)
class JointPoint:
    """The quantizer of one layer: threshold and step in weight units."""

    threshold: float
    step: float


def laplace_bits(layer: Layer, threshold: float, step: float) -> float:
    """Bits of the codes of a layer with an exact Laplace density; 0 if all weights are zero.

    Args:
        layer: The layer.
        threshold: In weight units.
        step: In weight units.
    """
    scale = layer.statistics.laplace_scale
    return layer.statistics.count * float(laplace.rate(threshold / scale, step / scale)) if scale > 0.0 else 0.0


def points_at(layers: Sequence[Layer], lmbda: float, family: Family) -> list[JointPoint]:
    """The quantizer of each layer at a Lagrange multiplier.

    Args:
        layers: The layers.
        lmbda: Sensitivity-weighted squared error per bit, > 0.
        family: The family of quantizers.

    Returns:
        One point per layer, which respects the layer's settings.

    Raises:
        TargetError: The step in a layer's settings is out of range.
    """
    scale = np.array([layer.statistics.laplace_scale for layer in layers])
    sensitivity = np.array([layer.sensitivity for layer in layers])
    with np.errstate(divide="ignore"):
        unit_t, unit_d = family.thresholds_and_steps(lmbda / (sensitivity * scale**2))
    points = []
    for layer, s, t, d in zip(layers, scale, unit_t, unit_d, strict=True):
        if s == 0.0:
            points.append(JointPoint(0.0, 1.0))
        else:
            t, d = _fixed_quantizer(layer, float(s), family) or (float(t), float(d))
            points.append(JointPoint(t * float(s), d * float(s)))
    return points


def lambda_for(layers: Sequence[Layer], bits: float, family: Family, measure: Measure = laplace_bits) -> float:
    """The lambda at which the codes of all layers together take `bits`; the nearest possible one if there is none.

    Args:
        layers: The layers.
        bits: Target for the sum of all codes.
        family: The family of quantizers.
        measure: Predicts the bits of a layer.
    """
    low, high = (math.log(lmbda) for lmbda in lambda_bounds(layers, family))

    @cache
    def excess(log_lambda: float) -> float:
        return bits - predicted_bits(layers, math.exp(log_lambda), family, measure)

    # The measure is slow, so it is evaluated only near the lambda of the Laplace density.
    guess = math.log(laplace_lambda(layers, bits, family))
    left, right = max(guess - _BRACKET, low), min(guess + _BRACKET, high)
    while excess(left) > 0.0 and left > low:
        left, right = max(left - 4.0 * (right - left), low), left
    while excess(right) < 0.0 and right < high:
        left, right = right, min(right + 4.0 * (right - left), high)
    if excess(left) >= 0.0:
        return math.exp(left)
    if excess(right) <= 0.0:
        return math.exp(right)
    return math.exp(find_root(excess, left, right, tolerance=_TOLERANCE))


def laplace_lambda(layers: Sequence[Layer], bits: float, family: Family) -> float:
    """As `lambda_for`, to 0.1%, assuming that every layer has an exact Laplace density and no settings.

    Args:
        layers: The layers.
        bits: Target for the sum of all codes.
        family: The family of quantizers.
    """
    low, high = (math.log(lmbda) for lmbda in lambda_bounds(layers, family))
    distinct = [layer for layer in layers if layer.repeats is None and layer.statistics.laplace_scale > 0.0]
    count = np.array([float(layer.statistics.count) for layer in distinct])
    squares = np.array([layer.sensitivity * layer.statistics.laplace_scale**2 for layer in distinct])

    def excess(log_lambda: float) -> float:
        return bits - float(count @ laplace.rate(*family.thresholds_and_steps(math.exp(log_lambda) / squares)))

    if excess(low) >= 0.0:
        return math.exp(low)
    return math.exp(high if excess(high) <= 0.0 else find_root(excess, low, high, tolerance=1e-3))


def predicted_bits(layers: Sequence[Layer], lmbda: float, family: Family, measure: Measure) -> float:
    """Predict the bits of the codes of all layers.

    Args:
        layers: The layers. Those that repeat another one count 0.
        lmbda: Sensitivity-weighted squared error per bit, > 0.
        family: The family of quantizers.
        measure: Predicts the bits of a layer.
    """
    points = points_at(layers, lmbda, family)
    return sum(
        measure(layer, point.threshold, point.step)
        for layer, point in zip(layers, points, strict=True)
        if layer.repeats is None
    )


def lambda_bounds(layers: Sequence[Layer], family: Family) -> tuple[float, float]:
    """The range of lambda.

    Args:
        layers: The layers.
        family: The family of quantizers.

    Returns:
        The lambda at which every layer has its finest quantizer, and the one at which every layer has its coarsest.
    """
    low, high = family.lambda_range()
    squares = [layer.sensitivity * layer.statistics.laplace_scale**2 for layer in layers]
    squares = [square for square in squares if square > 0.0] or [1.0]
    return low * min(squares), high * max(squares)


def _measured_threshold(statistics: LayerStatistics, sparsity: float) -> float:
    """The threshold that prunes this fraction of the layer; 0 if as many weights are zero already."""
    rank = round(sparsity * len(statistics.magnitudes))
    return float(statistics.magnitudes[max(rank, 1) - 1])


def _fixed_quantizer(layer: Layer, scale: float, family: Family) -> tuple[float, float] | None:
    """Threshold and step, over the layer's scale, that the layer's settings fix; None if they fix nothing."""
    config = layer.config
    if config.step is not None:
        d = config.step / scale
        if not family.FINEST_STEP <= d <= family.COARSEST_STEP:
            raise TargetError(
                f"layers[{layer.name!r}]: step must lie in [{family.FINEST_STEP * scale:.3g}, "
                f"{family.COARSEST_STEP * scale:.3g}], which is {family.FINEST_STEP:g} to {family.COARSEST_STEP:g} times its "
                f"mean magnitude, got {config.step:g}"
            )
        return family.threshold_for_step(d), d
    if config.sparsity is not None:
        t = _measured_threshold(layer.statistics, config.sparsity) / scale or -float(np.log1p(-config.sparsity))
        t = max(t, family.threshold_for_step(family.FINEST_STEP))
        return t, max(family.step_for_threshold(t), t)  # if few weights are large, t exceeds every threshold of the family
    if config.bits is not None:
        bits = config.bits

        def excess(log_d: float) -> float:
            d = math.exp(log_d)
            return bits - float(laplace.rate(family.threshold_for_step(d), d))

        d = math.exp(find_root(excess, math.log(family.FINEST_STEP), math.log(family.COARSEST_STEP), tolerance=1e-10))
        return family.threshold_for_step(d), d
    return None
