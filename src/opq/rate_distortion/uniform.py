"""One step for the whole network: a unit layer's threshold and step at every price of a bit, without a density.

At high rate rounding to multiples of a step d errs by d^2/12 and a bit halves the step, so that a bit is worth d^2 ln 2 / 6
whatever the distribution (`opq.rate_distortion.laplace.price_at`): d = sqrt(6 price / ln 2), threshold d/2. A layer of scale s and
sensitivity w is the point price / (w s^2), as on the Laplace curve, and its own step s d = sqrt(6 price / (w ln 2)) does not
depend on s: layers of one sensitivity share a step, whatever their weights look like, mostly zeros among them.
The functions are those of `opq.rate_distortion.deadzone`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from opq.rate_distortion.laplace import Floats, lambda_at, step_at

# From codes of about 19 bits a weight to steps beyond any weight of a layer that is all zeros but for one in 10^6.
FINEST_STEP, COARSEST_STEP = 1e-5, 2e6


def thresholds_and_steps(lmbda: ArrayLike) -> tuple[Floats, Floats]:
    """Thresholds and steps of unit layers at `price` >= 0; prices outside of `price_range` give its ends."""
    step = np.clip(step_at(lmbda, 1.0), FINEST_STEP, COARSEST_STEP)
    return 0.5 * step, step


def threshold_for_step(step: float) -> float:
    """The threshold at `step`."""
    return 0.5 * step


def step_for_threshold(threshold: float) -> float:
    """The step at `threshold`."""
    return 2.0 * threshold


def lambda_range() -> tuple[float, float]:
    """Prices of the finest and the coarsest step."""
    return float(lambda_at(FINEST_STEP, 1.0)), float(lambda_at(COARSEST_STEP, 1.0))
