"""One step for the whole network: threshold and step of a unit layer at every lambda, for any density of the weights.

At high rate, rounding to multiples of a step d has a mean squared error of d^2/12, and one bit more halves the step. So at the
optimal step lambda = d^2 ln 2 / 6 for any distribution (`opq.rate_distortion.laplace.lambda_at`), that is d = sqrt(6 lambda /
ln 2), with threshold d/2. A layer of scale s and sensitivity w is the point lambda / (w s^2), as in
`opq.rate_distortion.deadzone`, and its own step s d = sqrt(6 lambda / (w ln 2)) does not depend on s: layers of equal
sensitivity share a step, whatever the distribution of their weights. The functions are those of `deadzone`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from opq.rate_distortion.laplace import Floats, lambda_at, step_at

# From codes of about 19 bits per weight to steps larger than every weight, even if only one in 10^6 is not zero.
FINEST_STEP, COARSEST_STEP = 1e-5, 2e6


def thresholds_and_steps(lmbda: ArrayLike) -> tuple[Floats, Floats]:
    """Thresholds and steps of unit layers, which have scale 1 and sensitivity 1.

    Args:
        lmbda: Lagrange multipliers >= 0 in squared weight units per bit, infinity included. Those outside of `lambda_range`
            give its ends.

    Returns:
        float64 thresholds and steps, shaped as `lmbda`.
    """
    step = np.clip(step_at(lmbda, 1.0), FINEST_STEP, COARSEST_STEP)
    return 0.5 * step, step


def threshold_for_step(step: float) -> float:
    """The threshold that belongs to `step`, both of the unit layer."""
    return 0.5 * step


def step_for_threshold(threshold: float) -> float:
    """The step that belongs to `threshold`, both of the unit layer."""
    return 2.0 * threshold


def lambda_range() -> tuple[float, float]:
    """The lambdas of the finest and the coarsest step."""
    return float(lambda_at(FINEST_STEP, 1.0)), float(lambda_at(COARSEST_STEP, 1.0))
