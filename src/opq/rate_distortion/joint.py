"""Joint mode: one price of a bit decides sparsity and precision of every layer, at a byte budget.

A layer is the point price / (sensitivity * scale^2) of a family of quantizers of unit layers, scaled back by its own Laplace
scale. There are two: one step for all (`opq.rate_distortion.uniform`), and the dead-zone quantizers that err least on a Laplace density
(`opq.rate_distortion.deadzone`). See docs/method.md, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from opq.errors import TargetError
from opq.rate_distortion import laplace
from opq.rate_distortion.laplace import Floats
from opq.rate_distortion.layers import Layer, LayerStatistics
from opq.rate_distortion.roots import find_root

Measure = Callable[[Layer, float, float], float]
"""(layer, threshold, step) -> predicted bits of the whole layer."""


class Family(Protocol):
    """Quantizers of a unit layer, one at each price; the modules `even` and `curve` are such."""

    FINEST_STEP: float
    COARSEST_STEP: float

    def thresholds_and_steps(self, lmbda: ArrayLike) -> tuple[Floats, Floats]:
        """Thresholds and steps at `price` >= 0."""

    def threshold_for_step(self, step: float) -> float:
        """The threshold that goes with `step`."""

    def step_for_threshold(self, threshold: float) -> float:
        """The step that goes with `threshold`."""

    def lambda_range(self) -> tuple[float, float]:
        """Lowest and highest price that make a difference."""


# What the logarithm of the Laplace guess is first taken to err by, and how closely the logarithm of the price is found: a
# relative error of the bits of about half that, which a sample of magnitudes knows no better.
_NEAR, _CLOSE = 0.05, 4e-6


@dataclass(frozen=True)
class JointPoint:
    """One layer's outcome, in weight units."""

    threshold: float
    step: float


def laplace_bits(layer: Layer, threshold: float, step: float) -> float:
    """Bits of the layer's codes if it were exactly Laplace; 0 for a layer of zeros."""
    scale = layer.statistics.laplace_scale
    return layer.statistics.count * float(laplace.rate(threshold / scale, step / scale)) if scale > 0.0 else 0.0


def points_at(layers: Sequence[Layer], lmbda: float, family: Family) -> list[JointPoint]:
    """Every layer's threshold and step where a bit is worth `price` of sensitivity-weighted squared error."""
    scale = np.array([layer.statistics.laplace_scale for layer in layers])
    sensitivity = np.array([layer.sensitivity for layer in layers])
    with np.errstate(divide="ignore"):
        unit_t, unit_d = family.thresholds_and_steps(lmbda / (sensitivity * scale**2))
    points = []
    for layer, s, t, d in zip(layers, scale, unit_t, unit_d, strict=True):
        if s == 0.0:
            points.append(JointPoint(0.0, 1.0))
        else:
            t, d = _pinned(layer, float(s), family) or (float(t), float(d))
            points.append(JointPoint(t * float(s), d * float(s)))
    return points


def lambda_for(layers: Sequence[Layer], bits: float, family: Family, measure: Measure = laplace_bits) -> float:
    """The price at which the layers' codes take `bits` in all, by the given measure; the nearest price where none does."""
    low, high = (math.log(lmbda) for lmbda in lambda_bounds(layers, family))

    @cache
    def excess(log_lambda: float) -> float:
        return bits - predicted_bits(layers, math.exp(log_lambda), family, measure)

    # The measure is asked only around the price that the Laplace density alone gives, which takes next to no time to find.
    guess = math.log(laplace_lambda(layers, bits, family))
    left, right = max(guess - _NEAR, low), min(guess + _NEAR, high)
    while excess(left) > 0.0 and left > low:
        left, right = max(left - 4.0 * (right - left), low), left
    while excess(right) < 0.0 and right < high:
        left, right = right, min(right + 4.0 * (right - left), high)
    if excess(left) >= 0.0:
        return math.exp(left)
    if excess(right) <= 0.0:
        return math.exp(right)
    return math.exp(find_root(excess, left, right, tolerance=_CLOSE))


def laplace_lambda(layers: Sequence[Layer], bits: float, family: Family) -> float:
    """The price at which the codes would take `bits` were every layer Laplace and none fixed, or the nearest; to 0.1%."""
    low, high = (math.log(lmbda) for lmbda in lambda_bounds(layers, family))
    own = [layer for layer in layers if layer.repeats is None and layer.statistics.laplace_scale > 0.0]
    count = np.array([float(layer.statistics.count) for layer in own])
    squares = np.array([layer.sensitivity * layer.statistics.laplace_scale**2 for layer in own])

    def excess(log_lambda: float) -> float:
        return bits - float(count @ laplace.rate(*family.thresholds_and_steps(math.exp(log_lambda) / squares)))

    if excess(low) >= 0.0:
        return math.exp(low)
    return math.exp(high if excess(high) <= 0.0 else find_root(excess, low, high, tolerance=1e-3))


def predicted_bits(layers: Sequence[Layer], lmbda: float, family: Family, measure: Measure) -> float:
    """Bits of all layers' codes at `price`."""
    points = points_at(layers, lmbda, family)
    return sum(
        measure(layer, point.threshold, point.step)
        for layer, point in zip(layers, points, strict=True)
        if layer.repeats is None
    )


def lambda_bounds(layers: Sequence[Layer], family: Family) -> tuple[float, float]:
    """Prices between which every layer goes from its finest to its coarsest point."""
    low, high = family.lambda_range()
    squares = [layer.sensitivity * layer.statistics.laplace_scale**2 for layer in layers]
    squares = [square for square in squares if square > 0.0] or [1.0]
    return low * min(squares), high * max(squares)


def _measured_threshold(statistics: LayerStatistics, sparsity: float) -> float:
    """The magnitude under which this share of the layer lies; 0 where as many are zero already."""
    place = round(sparsity * len(statistics.magnitudes))
    return float(statistics.magnitudes[max(place, 1) - 1])


def _pinned(layer: Layer, scale: float, family: Family) -> tuple[float, float] | None:
    """Unit threshold and step of a layer that an override fixes, else None."""
    config = layer.config
    if config.step is not None:
        d = config.step / scale
        if not family.FINEST_STEP <= d <= family.COARSEST_STEP:
            raise TargetError(
                f"layers[{layer.name!r}]: step must lie in {family.FINEST_STEP * scale:.3g}.."
                f"{family.COARSEST_STEP * scale:.3g}, {family.FINEST_STEP:g} to {family.COARSEST_STEP:g} of its mean "
                f"magnitude; got {config.step:g}"
            )
        return family.threshold_for_step(d), d
    if config.sparsity is not None:
        t = _measured_threshold(layer.statistics, config.sparsity) / scale or -float(np.log1p(-config.sparsity))
        t = max(t, family.threshold_for_step(family.FINEST_STEP))
        return t, max(family.step_for_threshold(t), t)  # a layer of few large weights leads beyond the family's end
    if config.bits is not None:
        wanted = config.bits

        def excess(log_d: float) -> float:
            d = math.exp(log_d)
            return wanted - float(laplace.rate(family.threshold_for_step(d), d))

        d = math.exp(find_root(excess, math.log(family.FINEST_STEP), math.log(family.COARSEST_STEP), tolerance=1e-10))
        return family.threshold_for_step(d), d
    return None
