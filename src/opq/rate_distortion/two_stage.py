"""Paper mode: sparsity first, bits after; each one scalar root over all layers.

Pruning: every layer's threshold is sqrt(price / sensitivity), and the price is where the pruned fractions add up.
Quantization: with the thresholds fixed, kept magnitudes are exponential; the price of a bit gives each layer its step and
each channel its clipping point (Lambert W), and the price is where the widths average to the asked bits. See docs/method.md,
sections 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opq.errors import TargetError
from opq.rate_distortion import laplace
from opq.rate_distortion.laplace import Floats
from opq.rate_distortion.layers import Layer
from opq.rate_distortion.roots import bracket_root


@dataclass(frozen=True)
class TwoStagePoint:
    """One layer's outcome: pruning threshold, exact number of kept weights, step, and largest code of each channel."""

    threshold: float
    num_kept: int
    step: float
    max_codes: tuple[int, ...]


def allocate(layers: Sequence[Layer], sparsity: float, bits: float) -> list[TwoStagePoint]:
    """One point a layer, such that `sparsity` (0 <= p < 1) of all weights are zero and kept ones take `bits` on average.

    Raises TargetError when the targets are out of range, or when layer configs leave the other layers no way to meet them.
    """
    if not 0.0 <= sparsity < 1.0:
        raise TargetError(f"sparsity must lie in [0, 1), got {sparsity:g}")
    if not 1.0 < bits <= 16.0:
        raise TargetError(f"bits must lie in (1, 16], got {bits:g}: a kept weight always carries its sign")
    thresholds = _thresholds(layers, sparsity)
    kept = _kept_counts(layers, thresholds, sparsity)
    lambdas = _bit_lambdas(layers, thresholds, bits)
    return [
        _point(layer, threshold, count, lmbda)
        for layer, threshold, count, lmbda in zip(layers, thresholds, kept, lambdas, strict=True)
    ]


def _point(layer: Layer, threshold: float, kept: int, lmbda: float) -> TwoStagePoint:
    channels = len(layer.statistics.channel_scales)
    if layer.statistics.laplace_scale == 0.0:
        return TwoStagePoint(threshold, kept, 1.0, (1,) * channels)
    step = float(laplace.step_at(lmbda, layer.sensitivity))
    scales = layer.statistics.channel_scales
    alive = scales > 0.0
    clips = laplace.clip_at(lmbda, threshold, np.where(alive, scales, 1.0), layer.sensitivity)
    limits = np.clip(np.rint(np.where(alive, clips, 0.0) / step), 1, 2**24 - 1).astype(np.int64)
    return TwoStagePoint(threshold, kept, step, tuple(limits.tolist()))


def _thresholds(layers: Sequence[Layer], sparsity: float) -> Floats:
    scale = np.array([layer.statistics.laplace_scale for layer in layers])
    count = np.array([float(layer.statistics.count) for layer in layers])
    zeros = np.array([float(layer.statistics.zeros) for layer in layers])
    root = np.sqrt([layer.sensitivity for layer in layers])
    fixed = np.array([np.nan if layer.config.sparsity is None else layer.config.sparsity for layer in layers])
    pinned, empty = ~np.isnan(fixed), scale == 0.0
    free = ~pinned & ~empty
    # Layers of zeros are pruned whole, whatever the threshold.
    given = count[pinned] @ fixed[pinned] + count[empty & ~pinned].sum()
    goal = sparsity * count.sum() - given
    thresholds = np.where(pinned & ~empty, -scale * np.log1p(-np.nan_to_num(fixed)), 0.0)
    if not free.any():
        return thresholds
    if goal <= zeros[free].sum() and not pinned.any():
        return thresholds  # as many zeros are there as were asked for, or more: nothing else is pruned
    if not zeros[free].sum() <= goal < count[free].sum():
        raise TargetError(
            f"sparsity {sparsity:g} is out of reach: layer configs fix {given:,.0f} zeros, which leaves {goal:,.0f} for "
            f"{count[free].sum():,.0f} other weights, of which {zeros[free].sum():,.0f} are zero"
        )

    def excess(log_base: float) -> float:
        pruned = count[free] * laplace.pruned_fraction(np.exp(log_base) / root[free], scale[free])
        # A weight that is zero already is pruned whatever the threshold.
        return float(np.maximum(pruned, zeros[free]).sum() - goal)

    unit = np.log(scale[free] * root[free])
    low, high = float(unit.min()) - 1.0, float(unit.max()) + 1.0
    base = np.exp(bracket_root(excess, low, high, tolerance=1e-12))
    return np.where(free, base / root, thresholds)


def _kept_counts(layers: Sequence[Layer], thresholds: Floats, sparsity: float) -> list[int]:
    count = np.array([layer.statistics.count for layer in layers], dtype=np.int64)
    scale = np.array([layer.statistics.laplace_scale for layer in layers])
    pinned = np.array([layer.config.sparsity is not None for layer in layers])
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.where(scale > 0.0, laplace.pruned_fraction(thresholds, scale), 1.0)
    zeros = np.array([layer.statistics.zeros for layer in layers], dtype=np.int64)
    share = np.maximum(count * fraction, zeros)
    for index, layer in enumerate(layers):
        if layer.config.sparsity is not None and scale[index] > 0.0:
            share[index] = max(round(layer.config.sparsity * int(count[index])), zeros[index])
    pruned = np.floor(share).astype(np.int64)
    # Largest remainders take the weights that rounding down left over, so that the total is met to the weight.
    missing = max(round(sparsity * int(count.sum())) - int(pruned.sum()), 0)
    # Tied weights come last, and all names of one together: with different counts they would be different weights.
    group = np.array([layer.repeats or layer.name for layer in layers])
    members = {name: np.flatnonzero(group == name) for name in group}
    sizes = np.array([len(members[name]) for name in group])
    order = np.lexsort((pruned - share, sizes > 1))
    order = order[(~pinned & (scale > 0.0) & (pruned < count))[order]]
    for index in order:
        names = members[group[index]]
        if index == names[0] and len(names) <= missing:
            pruned[names] += 1
            missing -= len(names)
    return [int(n) for n in count - pruned]


def _bit_lambdas(layers: Sequence[Layer], thresholds: Floats, bits: float) -> list[float]:
    """Price of a bit for each layer: one for all layers that no override fixes."""
    channels = [_channels([layer], [threshold]) for layer, threshold in zip(layers, thresholds, strict=True)]
    weight = np.array([channel.num_kept.sum() for channel in channels])
    lambdas = [0.0] * len(layers)
    free = []
    spent = 0.0
    for index, layer in enumerate(layers):
        config = layer.config
        if layer.statistics.laplace_scale == 0.0:
            continue
        if config.step is not None:
            lambdas[index] = float(laplace.lambda_at(config.step, layer.sensitivity))
        elif config.bits is not None:
            lambdas[index] = _lambda_for(channels[index], config.bits)
        else:
            free.append(index)
            continue
        spent += weight[index] * _mean_bits(channels[index], lambdas[index])
    if not free:
        return lambdas
    total = weight[free].sum()
    wanted = (bits * (total + sum(weight[i] for i, p in enumerate(lambdas) if p > 0.0)) - spent) / total
    if not 1.0 < wanted <= 24.0:
        raise TargetError(
            f"bits {bits:g} is out of reach: layer configs leave {wanted:.3g} bits for each kept weight of the other layers"
        )
    lmbda = _lambda_for(_channels([layers[i] for i in free], [float(thresholds[i]) for i in free]), wanted)
    for index in free:
        lambdas[index] = lmbda
    return lambdas


@dataclass(frozen=True, eq=False)
class _Channels:
    """The channels of some layers, one after the other, those of zeros left out.

    scale        their Laplace scales
    threshold    their layers' thresholds
    sensitivity  their layers' sensitivities
    kept         expected kept weights of each, as its own Laplace scale has it
    """

    scale: Floats
    threshold: Floats
    sensitivity: Floats
    num_kept: Floats


def _channels(layers: Sequence[Layer], thresholds: Sequence[float]) -> _Channels:
    scale = np.concatenate([layer.statistics.channel_scales for layer in layers])
    sizes = [len(layer.statistics.channel_scales) for layer in layers]
    threshold = np.repeat(np.asarray(thresholds), sizes)
    sensitivity = np.repeat([layer.sensitivity for layer in layers], sizes)
    each = np.repeat([layer.statistics.count / size for layer, size in zip(layers, sizes, strict=True)], sizes)
    alive = scale > 0.0
    scale, threshold = scale[alive], threshold[alive]
    return _Channels(scale, threshold, sensitivity[alive], each[alive] * np.exp(-threshold / scale))


def _mean_bits(channels: _Channels, lmbda: float) -> float:
    step = laplace.step_at(lmbda, channels.sensitivity)
    clips = laplace.clip_at(lmbda, channels.threshold, channels.scale, channels.sensitivity)
    # At least one step, the codebook's first value.
    # No dot product: BLAS would start threads for one this long, which cost more than they save.
    spent = channels.num_kept * np.log2(2.0 * np.maximum(clips / step, 1.0))
    return float(spent.sum() / channels.num_kept.sum())


def _lambda_for(channels: _Channels, bits: float) -> float:
    # Four steps to the scale would be 4 bits; each bit is a factor 4 in the price. The bracket grows as far as needed.
    guess = float(np.log(np.mean(channels.sensitivity * channels.scale**2)) - bits * np.log(4.0) + np.log(16.0))

    def excess(log_lambda: float) -> float:
        return bits - _mean_bits(channels, float(np.exp(log_lambda)))

    return float(np.exp(bracket_root(excess, guess - 1.0, guess + 1.0, tolerance=1e-7)))
