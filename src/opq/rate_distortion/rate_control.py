"""The search for the Lagrange multiplier lambda whose file meets a byte target, and bisection on file sizes.

A file's size falls as lambda rises, nearly as a power of it. `BudgetSearch` encodes, counts the bytes, and moves lambda along
the line through the two nearest files in logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

USUAL_SLOPE = -0.35
"""d log(bytes) / d log(lambda), before two files have shown it."""

MAX_ROUNDS = 24
"""Files that a search encodes at most."""

_STEEPEST, _FLATTEST, _FARTHEST = -1.5, -0.02, 3.0
_SMALLEST_STEP = 0.01
_SAME_LAMBDA = 1.0 + 1e-9

File = TypeVar("File")


class BudgetSearch(Generic[File]):
    """A search for the largest file within a byte budget.

    Args:
        budget: The most bytes the file may have.
        close: Share of the budget from which a file within it ends the search, 0..1.
        aim: Share of the budget that the next file aims at, 0..1.
        bounds: Lambdas between which the search stays: both positive and finite, or neither.
        slope: d log(bytes) / d log(lambda) until two files have shown it.

    Attributes:
        best: The largest file within the budget so far, or None.
        tried: (lambda, bytes) of each file so far.
        slope: The slope that the search has seen last.
    """

    def __init__(
        self,
        budget: int,
        *,
        close: float,
        aim: float,
        bounds: tuple[float, float] = (0.0, math.inf),
        slope: float = USUAL_SLOPE,
    ) -> None:
        self.best: File | None = None
        self.tried: list[tuple[float, int]] = []
        self.slope = slope
        self._budget, self._close, self._aim = budget, close, aim
        self._low, self._high = bounds
        self._best_bytes = -1

    def run(
        self,
        first: float,
        encode: Callable[[float], tuple[File, int]],
        *,
        max_rounds: int = MAX_ROUNDS,
        predict: Callable[[float], float] | None = None,
        also_above: bool = False,
    ) -> float:
        """Encode files until one is close under the budget, or nothing is left to try.

        Args:
            first: Lambda of the first file.
            encode: Gives the file at a lambda, and its bytes.
            max_rounds: Files to encode at most.
            predict: Lambda at which the file has this many bytes, asked once, after the first file; None for the line alone.
            also_above: Whether a file as close above the budget ends the search too.

        Returns:
            The lambda that would be tried next.
        """
        lmbda = first
        for _ in range(max_rounds):
            file, size = encode(lmbda)
            self._note(lmbda, file, size)
            aim = self._aim * self._budget
            proposed, self.slope = next_lambda(self.tried, self._budget, aim, self.slope)
            is_close = self._close * self._budget <= size <= self._budget
            if is_close or (also_above and self._budget < size <= self._budget / self._close):
                return proposed
            if self._low > 0.0 and self._high / self._low < _SAME_LAMBDA:
                return proposed
            lmbda = predict(aim) if predict is not None and len(self.tried) == 1 else proposed
            if not self._low < lmbda < self._high:
                lmbda = math.sqrt(self._low * self._high) if 0.0 < self._low < self._high < math.inf else proposed
        return lmbda

    def _note(self, lmbda: float, file: File, size: int) -> None:
        self.tried.append((lmbda, size))
        if size > self._budget:
            self._low = lmbda
            return
        self._high = lmbda
        if size > self._best_bytes:
            self.best, self._best_bytes = file, size


def next_lambda(
    tried: Sequence[tuple[float, float]], budget: float, aim: float, slope: float = USUAL_SLOPE
) -> tuple[float, float]:
    """The lambda whose file should take `aim` bytes, by the line through the two nearest files in logarithms.

    Args:
        tried: (lambda, bytes) of each file so far, one at least.
        budget: The next lambda lies between those whose files are larger and those whose files are not, or beyond all of them.
        aim: Bytes to aim at.
        slope: d log(bytes) / d log(lambda) if fewer than two files show it.

    Returns:
        The lambda, and the slope that was used.
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
        wanted = low + _SMALLEST_STEP * len(tried) if wanted <= low else high - _SMALLEST_STEP * len(tried)
    return math.exp(wanted), slope


def geometric_bisection(fits: Callable[[float], bool], low: float, high: float, tolerance: float) -> tuple[float, float]:
    """Narrow an interval until high <= (1 + tolerance) * low, keeping the border between what fits and what does not.

    Args:
        fits: Whether a value fits; what fits lies above the border.
        low: A positive value taken not to fit.
        high: A larger value, taken to fit.
        tolerance: > 0.

    Returns:
        The largest value seen not to fit and the smallest one seen to fit, or the ends.
    """
    while high > (1.0 + tolerance) * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return low, high
