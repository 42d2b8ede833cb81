"""Balanced costs: what a unit of squared error costs in each weight, from the weights alone.

If the relative errors of all weights counted alike, a unit of squared error in a weight of N elements with Laplace scale s
would cost 1 / (N s^2), and steps would be proportional to s sqrt(N). Measured on networks of many kinds, relative errors of
weights with a large scale cost more, on average by the root of the scale. So the cost is

    (s / s0)^(1/2) / (N s^2),        the first factor at least 1/4 and at most 4,

with s0 the geometric mean of the scales of all weights. The limits keep small weights beside very large ones from becoming
zero. docs/log.md has the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from opq.rate_distortion.layers import LayerStatistics

SCALE_EXPONENT = 0.5
"""Power of the scale that multiplies the cost of a relative error."""

LARGEST_FACTOR = 4.0
"""Largest value of that power, and the inverse of the smallest."""

_SMALLEST_SCALE = 2.0**-100
"""Weights of a smaller scale, as weight decay leaves them, count as zero: float32 has no steps for them."""


def balanced_costs(statistics: Mapping[str, LayerStatistics]) -> dict[str, float]:
    """The cost of a unit of squared error in each weight.

    Args:
        statistics: {weight: its statistics}.

    Returns:
        {weight: cost > 0}; 1 for weights that are all zero or nearly so.
    """
    scales = {
        name: measured.laplace_scale for name, measured in statistics.items() if measured.laplace_scale >= _SMALLEST_SCALE
    }
    middle = sum(map(math.log, scales.values())) / max(len(scales), 1)
    costs = dict.fromkeys(statistics, 1.0)
    for name, scale in scales.items():
        limit = math.log(LARGEST_FACTOR)
        factor = math.exp(min(max(SCALE_EXPONENT * (math.log(scale) - middle), -limit), limit))
        costs[name] = factor / (statistics[name].count * scale**2)
    return costs
