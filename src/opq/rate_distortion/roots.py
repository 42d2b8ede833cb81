"""Roots of rising functions of one variable, by SciPy's Brent method, from brackets that find themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from scipy.optimize import brentq


def find_root(rising: Callable[[float], float], low: float, high: float, *, tolerance: float) -> float:
    """Where `rising` crosses zero in [low, high], to within `tolerance`; its signs at `low` and `high` must differ."""
    return float(brentq(rising, low, high, xtol=tolerance, rtol=1e-12))


def bracket_root(rising: Callable[[float], float], low: float, high: float, *, tolerance: float) -> float:
    """As `find_root`, from an interval that is moved and widened until it holds the root."""
    rising = cache(rising)  # the bracket's ends are asked for again
    width = high - low
    while rising(low) > 0.0:
        low, high = low - width, low
        width *= 2.0
    while rising(high) < 0.0:
        low, high = high, high + width
        width *= 2.0
    return find_root(rising, low, high, tolerance=tolerance)
