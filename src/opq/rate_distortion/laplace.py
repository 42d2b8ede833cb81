"""Closed forms for one layer whose weights follow a zero-centred Laplace density f(w) = exp(-|w|/s) / (2 s).

Derived from the Laplace density (docs/method.md gives the derivations), in two families:

* threshold and errors of pruning first and quantizing after, in the weights' own unit;
* rate and distortion of one dead-zone quantizer, for the unit layer s = 1: threshold t, step d, cells
  [t + (k-1) d, t + k d) for k >= 1, reconstructed at k d.

All functions take and give floats or NumPy float64 arrays, elementwise with broadcasting; none checks its arguments beyond
what its formula needs: scales, thresholds and steps are positive unless said otherwise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import lambertw

Floats = NDArray[np.float64]

LN2 = float(np.log(2.0))


def pruned_fraction(threshold: ArrayLike, laplace_scale: ArrayLike) -> Floats:
    """Fraction of weights, 0..1, with magnitude at or under `threshold`: 1 - exp(-threshold / laplace_scale)."""
    return np.asarray(-np.expm1(-np.divide(threshold, laplace_scale)), dtype=np.float64)


def pruning_error(threshold: ArrayLike, laplace_scale: ArrayLike) -> Floats:
    """Mean squared error a weight, in squared weight units, of zeroing every magnitude up to `threshold`."""
    t = np.divide(threshold, laplace_scale)
    return np.asarray(np.square(laplace_scale) * (2.0 - np.exp(-t) * (t * t + 2.0 * t + 2.0)), dtype=np.float64)


def granular_error(step: ArrayLike) -> Floats:
    """Mean squared error, in squared weight units, of rounding to multiples of `step` inside the codebook: step^2 / 12."""
    return np.asarray(np.square(step) / 12.0, dtype=np.float64)


def overload_error(clip: ArrayLike, threshold: ArrayLike, laplace_scale: ArrayLike) -> Floats:
    """Mean squared error a kept weight, in squared weight units, of saturating magnitudes at `clip` >= `threshold`."""
    excess = np.divide(np.subtract(clip, threshold), laplace_scale)
    return np.asarray(2.0 * np.square(laplace_scale) * np.exp(-excess), dtype=np.float64)


def step_at(lmbda: ArrayLike, sensitivity: ArrayLike) -> Floats:
    """Step, in weight units, where a bit is worth `price` of sensitivity-weighted squared error: sqrt(6 price / (w ln 2))."""
    return np.asarray(np.sqrt(6.0 * np.asarray(lmbda) / (np.asarray(sensitivity) * LN2)), dtype=np.float64)


def lambda_at(step: ArrayLike, sensitivity: ArrayLike) -> Floats:
    """Inverse of `step_at`: the price of a bit at which `step` is optimal."""
    return np.asarray(np.square(step) * np.asarray(sensitivity) * LN2 / 6.0, dtype=np.float64)


def clip_at(lmbda: ArrayLike, threshold: ArrayLike, laplace_scale: ArrayLike, sensitivity: ArrayLike) -> Floats:
    """Clipping point, in weight units, where one more codeword costs what it saves.

    The point is u * laplace_scale with u exp(-u) = price exp(-threshold/laplace_scale) / (2 ln 2 sensitivity
    laplace_scale^2) on the branch u >= 1, that is u = -W_{-1}(-rhs) with the lower branch of Lambert's W. Where the right
    side exceeds 1/e no further codeword pays and the result is 0.
    """
    scale = np.asarray(laplace_scale, dtype=np.float64)
    # The right side's logarithm, because the right side itself may underflow.
    fall = np.asarray(threshold) / scale + np.log(2.0 * LN2 * np.asarray(sensitivity) / np.asarray(lmbda)) + 2.0 * np.log(scale)
    # Beyond 700 the right side underflows and W_{-1} would be -inf; a channel that far out holds no kept weight to speak of.
    u = -np.real(lambertw(-np.exp(-np.clip(fall, 1.0, 700.0)), -1))
    return np.where(fall >= 1.0, u * scale, 0.0)


def entropy(probability: ArrayLike) -> Floats:
    """Binary entropy in bits of `probability` in [0, 1]."""
    p = np.asarray(probability, dtype=np.float64)
    inside = (p > 0.0) & (p < 1.0)
    safe = np.where(inside, p, 0.5)
    return np.where(inside, -safe * np.log2(safe) - (1.0 - safe) * np.log1p(-safe) / LN2, 0.0)


def rate(t: ArrayLike, d: ArrayLike, first: ArrayLike | None = None) -> Floats:
    """Entropy of the codes in bits a weight, unit layer with threshold `t` and step `d`: h(q) + q (1 + h(r)/(1-r)).

    `first` is the width of the first cell where it is not `d`, as when a threshold is set before the step is.
    """
    q, r = np.exp(-np.asarray(t)), np.exp(-np.asarray(d))
    beyond = r if first is None else np.exp(-np.asarray(first))
    magnitudes = entropy(beyond) + beyond * entropy(r) / -np.expm1(-np.asarray(d))
    return np.asarray(entropy(q) + q * (1.0 + magnitudes), dtype=np.float64)


def distortion(t: ArrayLike, d: ArrayLike) -> Floats:
    """Mean squared error a weight, unit layer with threshold `t` and step `d`, cell k reconstructed at k d."""
    t, d = np.asarray(t, dtype=np.float64), np.asarray(d, dtype=np.float64)
    variance, centroid = _cell_variance(d), _cell_centroid(d)
    return np.asarray(pruning_error(t, 1.0) + np.exp(-t) * (variance + np.square(centroid - d + t)), dtype=np.float64)


def rate_slopes(t: Floats, d: Floats) -> tuple[Floats, Floats]:
    """Derivatives of `rate` by t and by d."""
    q, r = np.exp(-t), np.exp(-d)
    gap = -np.expm1(-d)
    by_t = -q * (np.log2(-np.expm1(-t)) + t / LN2 + 1.0 + entropy(r) / gap)
    by_d = -q * (d / LN2) * r / gap**2
    return by_t, by_d


def distortion_slopes(t: Floats, d: Floats) -> tuple[Floats, Floats]:
    """Derivatives of `distortion` by t and by d."""
    q, r = np.exp(-t), np.exp(-d)
    gap = -np.expm1(-d)
    offset = _cell_centroid(d) - d + t
    by_t = q * (t * t - _cell_variance(d) - offset**2 + 2.0 * offset)
    # Both derivatives lose their leading digits to cancellation for small d, where the series take over.
    small = d < 0.02
    variance_slope = np.where(small, d / 6.0 - d**3 / 60.0, -2.0 * d * r / gap**2 + d**2 * r * (1.0 + r) / gap**3)
    centroid_slope = np.where(small, 0.5 - d / 6.0 + d**3 / 180.0, -r / gap + d * r / gap**2)
    by_d = q * (variance_slope + 2.0 * offset * (centroid_slope - 1.0))
    return by_t, by_d


def _cell_centroid(d: Floats) -> Floats:
    """Mean of a unit exponential cut to [0, d): 1 - d / (exp(d) - 1)."""
    with np.errstate(over="ignore"):
        return np.where(d < 1e-3, d / 2.0 - d**2 / 12.0, 1.0 - d / np.expm1(d))


def _cell_variance(d: Floats) -> Floats:
    """Variance of a unit exponential cut to [0, d): 1 - d^2 exp(-d) / (1 - exp(-d))^2."""
    with np.errstate(over="ignore"):
        return np.where(d < 0.02, d**2 / 12.0 - d**4 / 240.0, 1.0 - np.square(d / 2.0 / np.sinh(d / 2.0)))
