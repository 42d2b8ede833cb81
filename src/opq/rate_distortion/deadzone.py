"""The universal rate-distortion curve: the best dead-zone quantizer of a unit Laplace layer at every price of a bit.

Minimising distortion + price * rate over threshold t and step d gives one curve t(price), d(price). The Laplace density is a
scale family, so a layer of scale s and sensitivity w is the point price / (w s^2) on it, and its own threshold and step are
s t and s d. One scalar, the price, therefore places every layer of a network.

On the curve the gradients of rate and distortion are parallel, price = -D_t/R_t = -D_d/R_d, which for each d is one scalar
root in t. The curve is tabulated that way once, densely, and read by linear interpolation of logarithms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from opq.rate_distortion.laplace import Floats, distortion_slopes, rate_slopes

# From codes of about 19 bits a weight to less than 1e-14; beyond its ends the curve continues with its end points.
FINEST_STEP, COARSEST_STEP = 1e-5, 40.0
_POINTS = 4096


@dataclass(frozen=True)
class _Curve:
    log_lambda: Floats
    log_threshold: Floats
    log_step: Floats


def thresholds_and_steps(lmbda: ArrayLike) -> tuple[Floats, Floats]:
    """Thresholds and steps of unit layers (scale 1, sensitivity 1) at `price` >= 0, squared weight units a bit.

    Prices outside the tabulated curve, infinity among them, give its end points.
    """
    curve = _tabulate()
    with np.errstate(divide="ignore"):
        log_lambda = np.log(np.asarray(lmbda, dtype=np.float64))
    threshold = np.exp(np.interp(log_lambda, curve.log_lambda, curve.log_threshold))
    return threshold, np.exp(np.interp(log_lambda, curve.log_lambda, curve.log_step))


def threshold_for_step(step: float) -> float:
    """The curve's threshold at `step`, both of the unit layer."""
    curve = _tabulate()
    return float(np.exp(np.interp(np.log(step), curve.log_step, curve.log_threshold)))


def step_for_threshold(threshold: float) -> float:
    """The curve's step at `threshold`, both of the unit layer."""
    curve = _tabulate()
    return float(np.exp(np.interp(np.log(threshold), curve.log_threshold, curve.log_step)))


def lambda_range() -> tuple[float, float]:
    """Lowest and highest price on the tabulated curve."""
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
        # Positive while the threshold is too low: raising it still buys rate more cheaply than raising the step does.
        too_low = error_t * rate_d > error_d * rate_t
        low, high = np.where(too_low, t, low), np.where(too_low, high, t)
    t = 0.5 * (low + high)
    lmbda = -distortion_slopes(t, d)[0] / rate_slopes(t, d)[0]
    return _Curve(np.log(lmbda), np.log(t), np.log(d))
