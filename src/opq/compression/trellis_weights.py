"""Which weights follow a trellis (`opq.quantization.trellis`).

Measured (docs/log.md), a trellis takes .1 to .17 bit less per weight for the same squared error. It is for matrices: kernels need
errors that compensate each other. Small weights have none, because the coder learns contexts of two quantizers, and
the start of each row is not free; nor have pruned weights, whose zeros leave the trellis no choice.
"""

from __future__ import annotations

from opq import dtypes
from opq.rate_distortion.layers import LayerStatistics

FEWEST_ELEMENTS = 2**12
"""The smallest number of elements of a weight that follows a trellis."""

FEWEST_COLUMNS = 8
"""The smallest number of columns."""

MOST_ZEROS = 0.1
"""The largest fraction of elements that are zero."""

_STEPS_IN_DTYPE = 16.0
"""The largest value of the dtype over the largest mean magnitude of a row must be at least this: codes need room."""


def may_follow_trellis(statistics: LayerStatistics, dtype: str) -> bool:
    """Whether a weight may follow a trellis, by its shape, zeros and magnitudes.

    Args:
        statistics: Statistics of the weight itself.
        dtype: Name of its dtype.
    """
    shape = statistics.shape
    return (
        len(shape) == 2
        and statistics.count >= FEWEST_ELEMENTS
        and shape[1] >= FEWEST_COLUMNS
        and statistics.zeros <= MOST_ZEROS * statistics.count
        and 0.0 < _STEPS_IN_DTYPE * float(statistics.channel_scales.max()) <= dtypes.LARGEST[dtype]
    )
