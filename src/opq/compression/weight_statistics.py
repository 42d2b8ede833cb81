"""The statistics of one weight of a checkpoint."""

from __future__ import annotations

import math
from functools import partial

from opq.checkpoints import State
from opq.codec.entry import LARGEST_TENSOR
from opq.errors import WeightError
from opq.quantization.statistics import measure, measure_rows
from opq.rate_distortion.layers import LayerStatistics

_LARGEST_SCALE = 2.0**151
"""The largest step times the largest code. Weights of a larger mean magnitude cannot be quantized."""


def measure_weight(state: State, name: str) -> LayerStatistics:
    """Measure a weight, some rows at a time.

    Args:
        state: The checkpoint.
        name: Name of the weight.

    Raises:
        SourceError: It cannot be read.
        WeightError: It has too many elements, or values that cannot be quantized.
    """
    _, shape = state.describe(name)
    if math.prod(shape) > LARGEST_TENSOR:
        raise WeightError(name, shape, f"it must have at most {LARGEST_TENSOR:,} elements; skip it with exclude=[{name!r}]")
    measured = measure_rows(shape, partial(state.rows, name), name) if shape else measure(state[name], name)
    if measured.laplace_scale > _LARGEST_SCALE:
        raise WeightError.beyond_float32(name, shape, measured.laplace_scale)
    return measured
