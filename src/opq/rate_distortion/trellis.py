"""Trellis-coded weights in planning: the step, the bits and the zeros that a trellis gives in place of uniform rounding.

All are fits to Gaussian and Laplace weights (docs/log.md), in units of their mean magnitude s. Uniform rounding with step d has
the squared error of a trellis with codebook step d/2 (HIGH_RATE + LOW_RATE d/s). The slope of error over bits is then the same
too, so one lambda serves weights of both kinds.
"""

from __future__ import annotations

import math

FINEST_STEP, COARSEST_STEP = 2.0**-12, 2.5
"""Uniform steps that a trellis replaces, in mean magnitudes. With finer ones codes could become too large. With coarser ones,
below about one bit per weight, it gains nothing."""

HIGH_RATE, LOW_RATE = 1.125, 0.18

SPREAD = 0.025
"""A trellis with codebook step h takes 1 + SPREAD (h/s)^2 times the bits of rounding with its two quantizers alone."""

ZERO = 0.62
"""As many weights get the code 0 as have magnitudes of at most ZERO codebook steps."""


def codebook_step(step: float, scale: float) -> float:
    """The codebook step of the trellis whose squared error is that of uniform rounding with step `step`.

    Args:
        step: Uniform step in weight units, FINEST_STEP to COARSEST_STEP times the scale.
        scale: Mean magnitude of the weight, > 0.
    """
    return 0.5 * step * (HIGH_RATE + LOW_RATE * step / scale)


def uniform_step(codebook_step: float, scale: float) -> float:
    """Inverse of `codebook_step`."""
    ratio = 2.0 * codebook_step / scale
    return 2.0 * ratio * scale / (HIGH_RATE + math.sqrt(HIGH_RATE**2 + 4.0 * LOW_RATE * ratio))
