"""The search for the Lagrange multiplier lambda whose file meets a byte target, and bisection on file sizes.

A file's size falls as lambda rises, nearly as a power of it. `BudgetSearch` encodes, counts the bytes, and moves lambda along
the line through the two nearest files in logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

USUAL_SLOPE = -0.35
"""d log(bytes) / d log(lambda), used until two files have been encoded."""

MAX_ROUNDS = 24
"""The largest number of files that a search encodes."""

_STEEPEST, _FLATTEST = -1.5, -0.02
"""Measured slopes outside of this range are noise and are ignored."""

_LARGEST_MOVE, _SMALLEST_MOVE = 3.0, 0.01
"""Changes of log(lambda) from one file to the next."""

_SAME_LAMBDA = 1.0 + 1e-9

File = TypeVar("File")


class BudgetSearch(Generic[File]):
    """A search for the largest file within a byte budget.

    Args:
        budget: The largest allowed size of the file in bytes.
        close: A file within the budget that has at least this fraction of it ends the search, 0..1.
        aim: The size at which the next file aims, as a fraction of the budget, 0..1.
        bounds: The search stays between these lambdas: both positive and finite, or (0, infinity).
        slope: d log(bytes) / d log(lambda), used until two files have been encoded.

    Attributes:
        best: The largest file within the budget so far, or None.
        tried: (lambda, bytes) of each file so far.
        slope: The last measured slope.
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
        """Encode files until one is just within the budget, or until no further lambda can be tried.

        Args:
            first: Lambda of the first file.
            encode: Returns the file at a lambda, and its size in bytes.
            max_rounds: The largest number of files to encode.
            predict: Returns the lambda at which the file has a given number of bytes. It is called once, after the first file.
                None: the line through the encoded files predicts every lambda.
            also_above: Whether a file that is as close above the budget also ends the search.

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
    """Predict the lambda whose file takes `aim` bytes, from the line through the two nearest files in logarithms.

    Args:
        tried: (lambda, bytes) of each file so far, at least one.
        budget: Bytes. The result lies between the lambdas of larger files and those of files within the budget; if there are
            files of one kind only, it lies beyond all of them.
        aim: Target size in bytes.
        slope: d log(bytes) / d log(lambda), used if the files do not determine it.

    Returns:
        The lambda, and the slope that was used.
    """
    points = [(math.log(lmbda), math.log(size)) for lmbda, size in tried]
    goal = math.log(aim)
    nearest = sorted(points, key=lambda point: abs(point[1] - goal))
    if len(nearest) > 1 and abs(nearest[0][0] - nearest[1][0]) > 1e-6:
        measured = (nearest[0][1] - nearest[1][1]) / (nearest[0][0] - nearest[1][0])
        slope = measured if _STEEPEST < measured < _FLATTEST else slope
    target = nearest[0][0] + max(min((goal - nearest[0][1]) / slope, _LARGEST_MOVE), -_LARGEST_MOVE)
    low = max((at for at, size in points if size > math.log(budget)), default=-math.inf)
    high = min((at for at, size in points if size <= math.log(budget)), default=math.inf)
    if math.isfinite(low) and math.isfinite(high):
        target = target if low < target < high else 0.5 * (low + high)
    elif target <= low or target >= high:  # sizes at neighbouring lambdas are not monotonic to the byte
        target = low + _SMALLEST_MOVE * len(tried) if target <= low else high - _SMALLEST_MOVE * len(tried)
    return math.exp(target), slope


def geometric_bisection(fits: Callable[[float], bool], low: float, high: float, tolerance: float) -> tuple[float, float]:
    """Find the smallest value that fits, by bisection of the logarithm.

    Args:
        fits: Whether a value fits; if one fits, so does every larger one.
        low: A positive value that is assumed not to fit.
        high: A larger value that is assumed to fit.
        tolerance: The bisection ends when high <= (1 + tolerance) * low; > 0.

    Returns:
        The final low and high: the largest value found not to fit, and the smallest one found to fit.
    """
    while high > (1.0 + tolerance) * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return low, high
