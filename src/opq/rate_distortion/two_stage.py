"""Two-stage mode, as in the OPQ paper: sparsity first, then bits. Each stage is one scalar root over all layers.

Pruning: the threshold of each layer is sqrt(lambda / sensitivity), and lambda is the root at which the pruned fractions give
the target sparsity. Quantization: the thresholds are fixed, so kept magnitudes are exponential. A second lambda gives each
layer its step and each channel its clipping magnitude (Lambert W), and is the root at which the mean width of kept codes is the
target. See docs/method.md, sections 1 and 2.
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
    """The quantizer of one layer.

    Args:
        threshold: Pruning threshold of the closed form, in weight units.
        num_kept: Exact number of kept weights.
        step: In weight units.
        max_codes: Largest code of each channel, >= 1.
    """

    threshold: float
    num_kept: int
    step: float
    max_codes: tuple[int, ...]


def allocate(layers: Sequence[Layer], sparsity: float, bits: float) -> list[TwoStagePoint]:
    """Allocate sparsity and bits to layers.

    Args:
        layers: The layers.
        sparsity: Fraction of zeros over all weights, 0 <= sparsity < 1.
        bits: Mean nominal width of a kept weight's code, 1 < bits <= 16.

    Returns:
        One point per layer.

    Raises:
        TargetError: A target is out of range, or the settings of layers make it impossible to meet.
    """
    if not 0.0 <= sparsity < 1.0:
        raise TargetError(f"sparsity must lie in [0, 1), got {sparsity:g}")
    if not 1.0 < bits <= 16.0:
        raise TargetError(f"bits must lie in (1, 16], because the sign of a kept weight takes one bit, got {bits:g}")
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
    max_codes = np.clip(np.rint(np.where(alive, clips, 0.0) / step), 1, 2**24 - 1).astype(np.int64)
    return TwoStagePoint(threshold, kept, step, tuple(max_codes.tolist()))


def _thresholds(layers: Sequence[Layer], sparsity: float) -> Floats:
    scale = np.array([layer.statistics.laplace_scale for layer in layers])
    count = np.array([float(layer.statistics.count) for layer in layers])
    zeros = np.array([float(layer.statistics.zeros) for layer in layers])
    root = np.sqrt([layer.sensitivity for layer in layers])
    fixed = np.array([np.nan if layer.config.sparsity is None else layer.config.sparsity for layer in layers])
    is_fixed, is_zero = ~np.isnan(fixed), scale == 0.0
    free = ~is_fixed & ~is_zero
    # Layers of zeros are pruned completely at any threshold.
    fixed_zeros = count[is_fixed] @ fixed[is_fixed] + count[is_zero & ~is_fixed].sum()
    goal = sparsity * count.sum() - fixed_zeros
    thresholds = np.where(is_fixed & ~is_zero, -scale * np.log1p(-np.nan_to_num(fixed)), 0.0)
    if not free.any():
        return thresholds
    if goal <= zeros[free].sum() and not is_fixed.any():
        return thresholds  # the weights have at least as many zeros as requested, so nothing else is pruned
    if not zeros[free].sum() <= goal < count[free].sum():
        raise TargetError(
            f"sparsity {sparsity:g} is out of reach: layer configs fix {fixed_zeros:,.0f} zeros, so {goal:,.0f} of the "
            f"{count[free].sum():,.0f} other weights must be zero, of which {zeros[free].sum():,.0f} are already; "
            "change the sparsity, or that of layers"
        )

    def excess(log_base: float) -> float:
        pruned = count[free] * laplace.pruned_fraction(np.exp(log_base) / root[free], scale[free])
        # Weights that are zero already are pruned at any threshold.
        return float(np.maximum(pruned, zeros[free]).sum() - goal)

    unit = np.log(scale[free] * root[free])
    low, high = float(unit.min()) - 1.0, float(unit.max()) + 1.0
    base = np.exp(bracket_root(excess, low, high, tolerance=1e-12))
    return np.where(free, base / root, thresholds)


def _kept_counts(layers: Sequence[Layer], thresholds: Floats, sparsity: float) -> list[int]:
    count = np.array([layer.statistics.count for layer in layers], dtype=np.int64)
    scale = np.array([layer.statistics.laplace_scale for layer in layers])
    is_fixed = np.array([layer.config.sparsity is not None for layer in layers])
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.where(scale > 0.0, laplace.pruned_fraction(thresholds, scale), 1.0)
    zeros = np.array([layer.statistics.zeros for layer in layers], dtype=np.int64)
    exact = np.maximum(count * fraction, zeros)
    for index, layer in enumerate(layers):
        if layer.config.sparsity is not None and scale[index] > 0.0:
            exact[index] = max(round(layer.config.sparsity * int(count[index])), zeros[index])
    pruned = np.floor(exact).astype(np.int64)
    # The layers with the largest remainders are rounded up, so that the total is exact.
    missing = max(round(sparsity * int(count.sum())) - int(pruned.sum()), 0)
    # Tied weights come last, and all names of one are rounded together: with different counts they would not stay equal.
    group = np.array([layer.repeats or layer.name for layer in layers])
    members = {name: np.flatnonzero(group == name) for name in group}
    sizes = np.array([len(members[name]) for name in group])
    order = np.lexsort((pruned - exact, sizes > 1))
    order = order[(~is_fixed & (scale > 0.0) & (pruned < count))[order]]
    for index in order:
        names = members[group[index]]
        if index == names[0] and len(names) <= missing:
            pruned[names] += 1
            missing -= len(names)
    return [int(n) for n in count - pruned]


def _bit_lambdas(layers: Sequence[Layer], thresholds: Floats, bits: float) -> list[float]:
    """The second lambda of each layer; all layers without settings share one."""
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
    free_bits = (bits * (total + sum(weight[i] for i, lmbda in enumerate(lambdas) if lmbda > 0.0)) - spent) / total
    if not 1.0 < free_bits <= 24.0:
        raise TargetError(
            f"bits {bits:g} is out of reach: layer configs leave {free_bits:.3g} bits per kept weight of the other layers, "
            "which must lie in (1, 24]; change bits, or the bits and steps of layers"
        )
    lmbda = _lambda_for(_channels([layers[i] for i in free], [float(thresholds[i]) for i in free]), free_bits)
    for index in free:
        lambdas[index] = lmbda
    return lambdas


@dataclass(frozen=True, eq=False)
class _Channels:
    """The nonzero channels of some layers, concatenated: all arrays are (channels,).

    scale        Laplace scale of the channel
    threshold    threshold of its layer
    sensitivity  sensitivity of its layer
    num_kept     expected number of kept weights, from the channel's Laplace scale
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
    # A code is at least 1. This is not a dot product, because BLAS would start threads, which cost more than they save.
    spent = channels.num_kept * np.log2(2.0 * np.maximum(clips / step, 1.0))
    return float(spent.sum() / channels.num_kept.sum())


def _lambda_for(channels: _Channels, bits: float) -> float:
    # A step of a quarter of the scale gives about 4 bits, and a bit is a factor of 4 in lambda. The bracket is only a guess.
    guess = float(np.log(np.mean(channels.sensitivity * channels.scale**2)) - bits * np.log(4.0) + np.log(16.0))

    def excess(log_lambda: float) -> float:
        return bits - _mean_bits(channels, float(np.exp(log_lambda)))

    return float(np.exp(bracket_root(excess, guess - 1.0, guess + 1.0, tolerance=1e-7)))
