"""Joint mode: one price of a bit decides sparsity and precision of every layer, at a byte budget.

A layer is the point price / (sensitivity * scale^2) on the universal curve (opq.allocation.curve), scaled back by its own
Laplace scale. See docs/method.md, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from opq.allocation import curve, laplace
from opq.allocation.layers import Layer, LayerStatistics

Price = Callable[[LayerStatistics, float, float], float]
"""(statistics, threshold, step) -> predicted bits of the whole layer."""


@dataclass(frozen=True)
class JointPoint:
    """One layer's outcome, in weight units."""

    threshold: float
    step: float


def laplace_bits(statistics: LayerStatistics, threshold: float, step: float) -> float:
    """Bits of the layer's codes if it were exactly Laplace; 0 for a layer of zeros."""
    scale = statistics.laplace_scale
    return statistics.count * float(laplace.rate(threshold / scale, step / scale)) if scale > 0.0 else 0.0


def points_at(layers: Sequence[Layer], price: float) -> list[JointPoint]:
    """Every layer's threshold and step where a bit is worth `price` of sensitivity-weighted squared error."""
    scale = np.array([layer.statistics.laplace_scale for layer in layers])
    sensitivity = np.array([layer.override.sensitivity for layer in layers])
    with np.errstate(divide="ignore"):
        unit_t, unit_d = curve.thresholds_and_steps(price / (sensitivity * scale**2))
    points = []
    for layer, s, t, d in zip(layers, scale, unit_t, unit_d, strict=True):
        if s == 0.0:
            points.append(JointPoint(0.0, 1.0))
        else:
            t, d = _pinned(layer, float(s)) or (float(t), float(d))
            points.append(JointPoint(t * float(s), d * float(s)))
    return points


def price_for(layers: Sequence[Layer], bits: float, measure: Price = laplace_bits) -> float:
    """The price at which the layers' codes take `bits` in all, by the given measure; the nearest price where none does."""
    low, high = price_bounds(layers)

    def excess(log_price: float) -> float:
        return bits - predicted_bits(layers, float(np.exp(log_price)), measure)

    low, high = float(np.log(low)), float(np.log(high))
    if excess(low) >= 0.0:
        return float(np.exp(low))
    if excess(high) <= 0.0:
        return float(np.exp(high))
    return float(np.exp(brentq(excess, low, high, xtol=1e-7)))


def predicted_bits(layers: Sequence[Layer], price: float, measure: Price) -> float:
    """Bits of all layers' codes at `price`."""
    points = points_at(layers, price)
    return sum(
        measure(layer.statistics, point.threshold, point.step)
        for layer, point in zip(layers, points, strict=True)
        if layer.repeats is None
    )


def price_bounds(layers: Sequence[Layer]) -> tuple[float, float]:
    """Prices between which every layer goes from its finest to its coarsest point."""
    low, high = curve.price_range()
    squares = [layer.override.sensitivity * layer.statistics.laplace_scale**2 for layer in layers]
    squares = [square for square in squares if square > 0.0] or [1.0]
    return low * min(squares), high * max(squares)


def _pinned(layer: Layer, scale: float) -> tuple[float, float] | None:
    """Unit threshold and step of a layer that an override fixes, else None."""
    override = layer.override
    if override.step is not None:
        d = override.step / scale
        return curve.threshold_for_step(d), d
    if override.sparsity is not None:
        t = -float(np.log1p(-override.sparsity))
        return t, curve.step_for_threshold(t)
    if override.bits is not None:
        wanted = override.bits
        low, high = np.log(curve.COARSEST_STEP), np.log(curve.FINEST_STEP)

        def excess(log_d: float) -> float:
            d = float(np.exp(log_d))
            return float(laplace.rate(curve.threshold_for_step(d), d)) - wanted

        d = float(np.exp(brentq(excess, low, high, xtol=1e-10)))
        return curve.threshold_for_step(d), d
    return None
