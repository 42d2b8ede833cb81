"""Paper mode: sparsity first, bits after; each one scalar root over all layers.

Pruning: every layer's threshold is sqrt(price / sensitivity), and the price is where the pruned fractions add up.
Quantization: with the thresholds fixed, kept magnitudes are exponential; the price of a bit gives each layer its step and
each channel its clipping point (Lambert W), and the price is where the widths average to the asked bits. See docs/method.md,
sections 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from opq.allocation import laplace
from opq.allocation.laplace import Floats
from opq.allocation.layers import Layer
from opq.errors import TargetError


@dataclass(frozen=True)
class PaperPoint:
    """One layer's outcome: pruning threshold, exact number of kept weights, step, and largest code of each channel."""

    threshold: float
    kept: int
    step: float
    limits: tuple[int, ...]


def allocate(layers: Sequence[Layer], sparsity: float, bits: float) -> list[PaperPoint]:
    """One point a layer, such that `sparsity` (0 <= p < 1) of all weights are zero and kept ones take `bits` on average.

    Raises TargetError when the targets are out of range, or when overrides leave the other layers no way to meet them.
    """
    if not 0.0 <= sparsity < 1.0:
        raise TargetError(f"sparsity must lie in [0, 1), got {sparsity:g}")
    if not 1.0 < bits <= 16.0:
        raise TargetError(f"bits must lie in (1, 16], got {bits:g}: a kept weight always carries its sign")
    thresholds = _thresholds(layers, sparsity)
    kept = _kept_counts(layers, thresholds, sparsity)
    prices = _bit_prices(layers, thresholds, bits)
    return [
        _point(layer, threshold, count, price)
        for layer, threshold, count, price in zip(layers, thresholds, kept, prices, strict=True)
    ]


def _point(layer: Layer, threshold: float, kept: int, price: float) -> PaperPoint:
    channels = len(layer.statistics.channel_scales)
    if layer.statistics.laplace_scale == 0.0:
        return PaperPoint(threshold, kept, 1.0, (1,) * channels)
    step = float(laplace.step_at(price, layer.override.sensitivity))
    clips = _clips(layer, threshold, price)
    limits = np.clip(np.rint(clips / step), 1, 2**24 - 1).astype(np.int64)
    return PaperPoint(threshold, kept, step, tuple(int(limit) for limit in limits))


def _thresholds(layers: Sequence[Layer], sparsity: float) -> Floats:
    scale = np.array([layer.statistics.laplace_scale for layer in layers])
    count = np.array([float(layer.statistics.count) for layer in layers])
    root = np.sqrt([layer.override.sensitivity for layer in layers])
    fixed = np.array([np.nan if layer.override.sparsity is None else layer.override.sparsity for layer in layers])
    pinned, empty = ~np.isnan(fixed), scale == 0.0
    free = ~pinned & ~empty
    # Layers of zeros are pruned whole, whatever the threshold.
    given = count[pinned] @ fixed[pinned] + count[empty & ~pinned].sum()
    goal = sparsity * count.sum() - given
    thresholds = np.where(pinned & ~empty, -scale * np.log1p(-np.nan_to_num(fixed)), 0.0)
    if not free.any():
        return thresholds
    if not 0.0 <= goal < count[free].sum():
        if goal < 0.0 and not pinned.any():
            return thresholds  # more zeros are there than were asked for: nothing else is pruned
        raise TargetError(
            f"sparsity {sparsity:g} is out of reach: overrides fix {given:,.0f} zeros, "
            f"which leaves {goal:,.0f} for {count[free].sum():,.0f} other weights"
        )
    if goal == 0.0:
        return thresholds

    def excess(log_base: float) -> float:
        return float(count[free] @ laplace.pruned_fraction(np.exp(log_base) / root[free], scale[free]) - goal)

    unit = np.log(scale[free] * root[free])
    low, high = float(unit.min()) - 1.0, float(unit.max()) + 1.0
    base = np.exp(_root(excess, low, high))
    return np.where(free, base / root, thresholds)


def _kept_counts(layers: Sequence[Layer], thresholds: Floats, sparsity: float) -> list[int]:
    count = np.array([layer.statistics.count for layer in layers], dtype=np.int64)
    scale = np.array([layer.statistics.laplace_scale for layer in layers])
    pinned = np.array([layer.override.sparsity is not None for layer in layers])
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.where(scale > 0.0, laplace.pruned_fraction(thresholds, scale), 1.0)
    share = count * fraction
    for index, layer in enumerate(layers):
        if layer.override.sparsity is not None and scale[index] > 0.0:
            share[index] = round(layer.override.sparsity * int(count[index]))
    pruned = np.floor(share).astype(np.int64)
    # Largest remainders take the weights that rounding down left over, so that the total is met to the weight.
    missing = max(round(sparsity * int(count.sum())) - int(pruned.sum()), 0)
    # Tied weights come last: given different counts they would no longer be stored once.
    ties = {layer.repeats for layer in layers} | {layer.name for layer in layers if layer.repeats is not None}
    tied = np.array([layer.name in ties for layer in layers])
    order = np.lexsort((pruned - share, tied))
    order = order[(~pinned & (scale > 0.0) & (pruned < count))[order]]
    pruned[order[:missing]] += 1
    return [int(n) for n in count - pruned]


def _bit_prices(layers: Sequence[Layer], thresholds: Floats, bits: float) -> list[float]:
    """Price of a bit for each layer: one for all layers that no override fixes."""
    weight = np.array([_kept_weight(layer, t).sum() for layer, t in zip(layers, thresholds, strict=True)])
    prices = [0.0] * len(layers)
    free = []
    spent = 0.0
    for index, (layer, threshold) in enumerate(zip(layers, thresholds, strict=True)):
        override = layer.override
        if layer.statistics.laplace_scale == 0.0:
            continue
        if override.step is not None:
            prices[index] = float(laplace.price_at(override.step, override.sensitivity))
        elif override.bits is not None:
            prices[index] = _price_for([layer], [threshold], override.bits)
        else:
            free.append(index)
            continue
        spent += weight[index] * _mean_bits([layer], [threshold], prices[index])
    if not free:
        return prices
    total = weight[free].sum()
    wanted = (bits * (total + sum(weight[i] for i, p in enumerate(prices) if p > 0.0)) - spent) / total
    if not 1.0 < wanted <= 24.0:
        raise TargetError(
            f"bits {bits:g} is out of reach: overrides leave {wanted:.3g} bits for each kept weight of the other layers"
        )
    price = _price_for([layers[i] for i in free], [float(thresholds[i]) for i in free], wanted)
    for index in free:
        prices[index] = price
    return prices


def _kept_weight(layer: Layer, threshold: float) -> Floats:
    """Expected kept weights of each channel, as the channel's own Laplace scale has it."""
    scales = layer.statistics.channel_scales
    each = layer.statistics.count / len(scales)
    alive = scales > 0.0
    return np.where(alive, each * np.exp(-threshold / np.where(alive, scales, 1.0)), 0.0)


def _clips(layer: Layer, threshold: float, price: float) -> Floats:
    """Clipping point of each channel; at least one step, the codebook's first value."""
    step = laplace.step_at(price, layer.override.sensitivity)
    scales = layer.statistics.channel_scales
    alive = scales > 0.0
    clips = laplace.clip_at(price, threshold, np.where(alive, scales, 1.0), layer.override.sensitivity)
    return np.where(alive, np.maximum(clips, step), step)


def _mean_bits(layers: Sequence[Layer], thresholds: Sequence[float], price: float) -> float:
    spent = total = 0.0
    for layer, threshold in zip(layers, thresholds, strict=True):
        weight = _kept_weight(layer, threshold)
        step = laplace.step_at(price, layer.override.sensitivity)
        spent += float(weight @ np.log2(2.0 * _clips(layer, threshold, price) / step))
        total += float(weight.sum())
    return spent / total


def _price_for(layers: Sequence[Layer], thresholds: Sequence[float], bits: float) -> float:
    squares = [layer.override.sensitivity * layer.statistics.laplace_scale**2 for layer in layers]
    # Four steps to the scale would be 4 bits; each bit is a factor 4 in the price. The bracket grows as far as needed.
    guess = float(np.log(np.mean(squares)) - bits * np.log(4.0) + np.log(16.0))

    def excess(log_price: float) -> float:
        return bits - _mean_bits(layers, thresholds, float(np.exp(log_price)))

    return float(np.exp(_root(excess, guess - 1.0, guess + 1.0)))


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Root of a rising function, from a bracket that is widened until it holds one."""
    width = high - low
    while rising(low) > 0.0:
        low -= width
        width *= 2.0
    while rising(high) < 0.0:
        high += width
        width *= 2.0
    return float(brentq(rising, low, high, xtol=1e-12, rtol=1e-12))
