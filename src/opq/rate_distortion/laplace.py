"""Closed forms for one layer whose weights follow a zero-centred Laplace density f(w) = exp(-|w|/s) / (2 s).

There are two groups, derived in docs/method.md:

* errors of pruning first and quantizing afterwards, in weight units;
* rate and distortion of one dead-zone quantizer of the unit layer s = 1, with threshold t, step d, and cells
  [t + (k-1) d, t + k d) for k >= 1, reconstructed at k d.

All functions are elementwise with broadcasting and return float64. None checks its arguments: scales, thresholds and steps must
be positive if nothing else is documented.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LN2 = float(np.log(2.0))


def pruned_fraction(threshold: ArrayLike, laplace_scale: ArrayLike) -> Floats:
    """Fraction of weights, 0..1, whose magnitude is at most `threshold`: 1 - exp(-threshold / laplace_scale)."""
    return np.asarray(-np.expm1(-np.divide(threshold, laplace_scale)), dtype=np.float64)


def pruning_error(threshold: ArrayLike, laplace_scale: ArrayLike) -> Floats:
    """Mean squared error per weight, in squared weight units, of pruning every magnitude up to `threshold`."""
    t = np.divide(threshold, laplace_scale)
    return np.asarray(np.square(laplace_scale) * (2.0 - np.exp(-t) * (t * t + 2.0 * t + 2.0)), dtype=np.float64)


def granular_error(step: ArrayLike) -> Floats:
    """Mean squared error, in squared weight units, of rounding to multiples of `step` without clipping: step^2 / 12."""
    return np.asarray(np.square(step) / 12.0, dtype=np.float64)


def overload_error(clip: ArrayLike, threshold: ArrayLike, laplace_scale: ArrayLike) -> Floats:
    """Mean squared error per kept weight, in squared weight units, of clipping magnitudes at `clip` >= `threshold`."""
    excess = np.divide(np.subtract(clip, threshold), laplace_scale)
    return np.asarray(2.0 * np.square(laplace_scale) * np.exp(-excess), dtype=np.float64)


def step_at(lmbda: ArrayLike, sensitivity: ArrayLike) -> Floats:
    """The optimal step at high rate, in weight units: sqrt(6 lambda / (sensitivity ln 2)).

    Args:
        lmbda: Lagrange multiplier, sensitivity-weighted squared error per bit.
        sensitivity: Cost of a unit of squared error.
    """
    return np.asarray(np.sqrt(6.0 * np.asarray(lmbda) / (np.asarray(sensitivity) * LN2)), dtype=np.float64)


def lambda_at(step: ArrayLike, sensitivity: ArrayLike) -> Floats:
    """Inverse of `step_at`: the lambda at which `step` is optimal."""
    return np.asarray(np.square(step) * np.asarray(sensitivity) * LN2 / 6.0, dtype=np.float64)


def clip_at(lmbda: ArrayLike, threshold: ArrayLike, laplace_scale: ArrayLike, sensitivity: ArrayLike) -> Floats:
    """The clipping magnitude, in weight units, at which one more code costs as much as it saves.

    It is u * laplace_scale with u exp(-u) = lambda exp(-threshold/laplace_scale) / (2 ln 2 sensitivity laplace_scale^2) and
    u >= 1, that is u = -W_{-1}(-rhs) with the lower branch of Lambert's W. See docs/method.md, section 2.

    Args:
        lmbda: Lagrange multiplier, sensitivity-weighted squared error per bit.
        threshold: Pruning threshold in weight units, >= 0.
        laplace_scale: Mean magnitude in weight units.
        sensitivity: Cost of a unit of squared error.

    Returns:
        The magnitude; 0 if the right side exceeds 1/e, that is, if no further code reduces the cost.
    """
    from scipy.special import lambertw  # here, because reading a file must not import SciPy

    scale = np.asarray(laplace_scale, dtype=np.float64)
    # -log(rhs), because the right side itself may underflow.
    minus_log = (
        np.asarray(threshold) / scale + np.log(2.0 * LN2 * np.asarray(sensitivity) / np.asarray(lmbda)) + 2.0 * np.log(scale)
    )
    # Beyond 700 the right side underflows and W_{-1} would be -inf; such a channel has practically no kept weights.
    u = -np.real(lambertw(-np.exp(-np.clip(minus_log, 1.0, 700.0)), -1))
    return np.where(minus_log >= 1.0, u * scale, 0.0)


def binary_entropy(probability: ArrayLike) -> Floats:
    """Binary entropy h(p) in bits of a `probability` in [0, 1]."""
    p = np.asarray(probability, dtype=np.float64)
    inside = (p > 0.0) & (p < 1.0)
    safe = np.where(inside, p, 0.5)
    return np.where(inside, -safe * np.log2(safe) - (1.0 - safe) * np.log1p(-safe) / LN2, 0.0)


def rate(t: ArrayLike, d: ArrayLike, first: ArrayLike | None = None) -> Floats:
    """Entropy of the codes of a unit layer in bits per weight: h(q) + q (1 + h(r)/(1-r)), q = exp(-t), r = exp(-d).

    Args:
        t: Threshold, >= 0.
        d: Step.
        first: Width of the first cell if it is not `d`.
    """
    q, r = np.exp(-np.asarray(t)), np.exp(-np.asarray(d))
    beyond = r if first is None else np.exp(-np.asarray(first))
    magnitudes = binary_entropy(beyond) + beyond * binary_entropy(r) / -np.expm1(-np.asarray(d))
    return np.asarray(binary_entropy(q) + q * (1.0 + magnitudes), dtype=np.float64)


def distortion(t: ArrayLike, d: ArrayLike) -> Floats:
    """Mean squared error per weight of a unit layer with threshold `t` and step `d`, cell k reconstructed at k d."""
    t, d = np.asarray(t, dtype=np.float64), np.asarray(d, dtype=np.float64)
    variance, centroid = _cell_variance(d), _cell_centroid(d)
    return np.asarray(pruning_error(t, 1.0) + np.exp(-t) * (variance + np.square(centroid - d + t)), dtype=np.float64)


def rate_slopes(t: Floats, d: Floats) -> tuple[Floats, Floats]:
    """Derivatives of `rate` with respect to t and d."""
    q, r = np.exp(-t), np.exp(-d)
    gap = -np.expm1(-d)
    by_t = -q * (np.log2(-np.expm1(-t)) + t / LN2 + 1.0 + binary_entropy(r) / gap)
    by_d = -q * (d / LN2) * r / gap**2
    return by_t, by_d


def distortion_slopes(t: Floats, d: Floats) -> tuple[Floats, Floats]:
    """Derivatives of `distortion` with respect to t and d."""
    q, r = np.exp(-t), np.exp(-d)
    gap = -np.expm1(-d)
    offset = _cell_centroid(d) - d + t
    by_t = q * (t * t - _cell_variance(d) - offset**2 + 2.0 * offset)
    # Both derivatives lose their leading digits to cancellation for small d, so series replace them there.
    small = d < 0.02
    variance_slope = np.where(small, d / 6.0 - d**3 / 60.0, -2.0 * d * r / gap**2 + d**2 * r * (1.0 + r) / gap**3)
    centroid_slope = np.where(small, 0.5 - d / 6.0 + d**3 / 180.0, -r / gap + d * r / gap**2)
    by_d = q * (variance_slope + 2.0 * offset * (centroid_slope - 1.0))
    return by_t, by_d


def _cell_centroid(d: Floats) -> Floats:
    """Mean of a unit exponential truncated to [0, d): 1 - d / (exp(d) - 1)."""
    with np.errstate(over="ignore"):
        return np.where(d < 1e-3, d / 2.0 - d**2 / 12.0, 1.0 - d / np.expm1(d))


def _cell_variance(d: Floats) -> Floats:
    """Variance of a unit exponential truncated to [0, d): 1 - d^2 exp(-d) / (1 - exp(-d))^2."""
    with np.errstate(over="ignore"):
        return np.where(d < 0.02, d**2 / 12.0 - d**4 / 240.0, 1.0 - np.square(d / 2.0 / np.sinh(d / 2.0)))
