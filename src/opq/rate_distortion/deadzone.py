"""The universal rate-distortion curve: the optimal dead-zone quantizer of a unit Laplace layer at every lambda.

Minimizing distortion + lambda * rate over threshold t and step d gives one curve t(lambda), d(lambda). The Laplace density is a
scale family, so a layer of scale s and sensitivity w is the point lambda / (w s^2) on the curve, and its own threshold and step
are s t and s d. One scalar, the Lagrange multiplier lambda, therefore determines the quantizer of every layer of a network.

On the curve the gradients of rate and distortion are parallel, lambda = -D_t/R_t = -D_d/R_d, which for each d is one scalar
root in t. The curve is tabulated once in this way, and evaluated by linear interpolation of logarithms. See docs/method.md,
section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from opq.rate_distortion.laplace import Floats, distortion_slopes, rate_slopes

# From codes of about 19 bits per weight to less than 1e-14 bits. Beyond the ends of the curve its end points are used.
FINEST_STEP, COARSEST_STEP = 1e-5, 40.0
_POINTS = 4096


@dataclass(frozen=True)
class _Curve:
    log_lambda: Floats
    log_threshold: Floats
    log_step: Floats


def thresholds_and_steps(lmbda: ArrayLike) -> tuple[Floats, Floats]:
    """Thresholds and steps of unit layers, which have scale 1 and sensitivity 1.

    Args:
        lmbda: Lagrange multipliers >= 0 in squared weight units per bit, infinity included. Those beyond the ends of the
            tabulated curve give its end points.

    Returns:
        float64 thresholds and steps, shaped as `lmbda`.
    """
    curve = _tabulate()
    with np.errstate(divide="ignore"):
        log_lambda = np.log(np.asarray(lmbda, dtype=np.float64))
    threshold = np.exp(np.interp(log_lambda, curve.log_lambda, curve.log_threshold))
    return threshold, np.exp(np.interp(log_lambda, curve.log_lambda, curve.log_step))


def threshold_for_step(step: float) -> float:
    """The threshold of the curve's point with this step, both of the unit layer."""
    curve = _tabulate()
    return float(np.exp(np.interp(np.log(step), curve.log_step, curve.log_threshold)))


def step_for_threshold(threshold: float) -> float:
    """The step of the curve's point with this threshold, both of the unit layer."""
    curve = _tabulate()
    return float(np.exp(np.interp(np.log(threshold), curve.log_threshold, curve.log_step)))


def lambda_range() -> tuple[float, float]:
    """The smallest and the largest lambda on the tabulated curve."""
    curve = _tabulate()
    return float(np.exp(curve.log_lambda[0])), float(np.exp(curve.log_lambda[-1]))


@cache
def _tabulate() -> _Curve:
    d = np.geomspace(FINEST_STEP, COARSEST_STEP, _POINTS)
    low, high = 0.45 * d, d.copy()
    for _ in range(60):
        t = 0.5 * (low + high)
        rate_t, rate_d = rate_slopes(t, d)
        error_t, error_d = distortion_slopes(t, d)
        # While the threshold is too low, raising it saves a bit at less distortion than raising the step does.
        too_low = error_t * rate_d > error_d * rate_t
        low, high = np.where(too_low, t, low), np.where(too_low, high, t)
    t = 0.5 * (low + high)
    lmbda = -distortion_slopes(t, d)[0] / rate_slopes(t, d)[0]
    return _Curve(np.log(lmbda), np.log(t), np.log(d))
