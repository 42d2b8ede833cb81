"""Which price of a bit to try next, from the sizes of files that others gave."""

from __future__ import annotations

import math
from collections.abc import Sequence

USUAL_SLOPE = -0.35
"""d log(bytes) / d log(price), before two files have shown it."""

_STEEPEST, _FLATTEST, _FARTHEST = -1.5, -0.02, 3.0
_LEAST_STEP = 0.01


def next_lambda(
    tried: Sequence[tuple[float, float]], budget: float, aim: float, slope: float = USUAL_SLOPE
) -> tuple[float, float]:
    """The price whose file should take `aim` bytes, by the line through the two nearest of those tried, and the line's slope.

    tried   (price, bytes) of each file so far, one at least
    budget  a next price lies between those whose files are larger and those whose are not, or beyond all of them
    slope   where fewer than two tell it
    """
    points = [(math.log(lmbda), math.log(size)) for lmbda, size in tried]
    goal = math.log(aim)
    nearest = sorted(points, key=lambda point: abs(point[1] - goal))
    if len(nearest) > 1 and abs(nearest[0][0] - nearest[1][0]) > 1e-6:
        measured = (nearest[0][1] - nearest[1][1]) / (nearest[0][0] - nearest[1][0])
        slope = measured if _STEEPEST < measured < _FLATTEST else slope
    wanted = nearest[0][0] + max(min((goal - nearest[0][1]) / slope, _FARTHEST), -_FARTHEST)
    low = max((at for at, size in points if size > math.log(budget)), default=-math.inf)
    high = min((at for at, size in points if size <= math.log(budget)), default=math.inf)
    if math.isfinite(low) and math.isfinite(high):
        wanted = wanted if low < wanted < high else 0.5 * (low + high)
    elif wanted <= low or wanted >= high:  # sizes of neighbouring prices may rise again by some bytes
        wanted = low + _LEAST_STEP * len(tried) if wanted <= low else high - _LEAST_STEP * len(tried)
    return math.exp(wanted), slope
