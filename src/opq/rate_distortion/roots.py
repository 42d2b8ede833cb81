"""Roots of increasing functions of one variable by Brent's method."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from scipy.optimize import brentq


def find_root(rising: Callable[[float], float], low: float, high: float, *, tolerance: float) -> float:
    """The root of a function in an interval.

    Args:
        rising: An increasing function with different signs at `low` and `high`.
        low: Lower end of the interval.
        high: Upper end of the interval.
        tolerance: Largest absolute error of the root.
    """
    return float(brentq(rising, low, high, xtol=tolerance, rtol=1e-12))


def bracket_root(rising: Callable[[float], float], low: float, high: float, *, tolerance: float) -> float:
    """As `find_root`, for any interval: it is moved and widened until it contains the root."""
    rising = cache(rising)  # find_root evaluates the ends again
    width = high - low
    while rising(low) > 0.0:
        low, high = low - width, low
        width *= 2.0
    while rising(high) < 0.0:
        low, high = high, high + width
        width *= 2.0
    return find_root(rising, low, high, tolerance=tolerance)
