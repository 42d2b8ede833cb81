"""The error of auxiliary tensors that are stored as float16."""

from __future__ import annotations

import numpy as np


def within_float16(found, original) -> bool:
    """Whether each value of an array or torch tensor is within 2^-11 of the original value, or within 2^-25."""
    found, original = (np.asarray(values).astype(np.float64) for values in (found, original))
    return bool((np.abs(found - original) <= np.maximum(2.0**-11 * np.abs(original), 2.0**-25)).all())
