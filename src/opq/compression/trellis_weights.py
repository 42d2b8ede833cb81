"""Which weights follow a trellis (`opq.quantization.trellis`).

Measured (docs/log.md), a trellis takes .1 to .17 bit per weight less for the same squared error. It is for matrices: in kernels
errors must compensate each other. Small weights have none, because the coder learns contexts for each of two quantizers and the
first codes of a row have little choice; nor have pruned weights, whose zeros leave no choice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from opq import dtypes
from opq.checkpoints import State
from opq.errors import PlanError
from opq.rate_distortion.layer_plan import LayerPlan
from opq.rate_distortion.layers import LayerStatistics

FEWEST_ELEMENTS = 2**12
"""The smallest number of elements of a weight that follows a trellis."""

FEWEST_COLUMNS = 8
"""The smallest number of columns."""

MOST_ZEROS = 0.1
"""The largest fraction of elements that are zero."""

_STEPS_IN_DTYPE = 16.0
"""The largest value of the dtype over the largest mean magnitude of a row must be at least this: codes need room."""


def trellis_weights(
    state: State, statistics: Mapping[str, LayerStatistics], names: Collection[str], repeats: Mapping[str, str]
) -> set[str]:
    """The weights that may follow a trellis.

    Args:
        state: The checkpoint.
        statistics: {weight: its statistics}, those of the weight itself.
        names: The weights that settings leave free.
        repeats: {weight: an earlier weight with the same values}; of equal weights all or none follow a trellis.
    """
    fit = {name for name in names if state.nonzero_over(name) is None and _fits(statistics[name], state.describe(name)[0])}
    without = {repeats.get(name, name) for name in statistics if name not in fit}
    return {name for name in fit if repeats.get(name, name) not in without}


def _fits(statistics: LayerStatistics, dtype: str) -> bool:
    shape = statistics.shape
    return (
        len(shape) == 2
        and statistics.count >= FEWEST_ELEMENTS
        and shape[1] >= FEWEST_COLUMNS
        and statistics.zeros <= MOST_ZEROS * statistics.count
        and 0.0 < _STEPS_IN_DTYPE * float(statistics.channel_scales.max()) <= dtypes.LARGEST[dtype]
    )


def refuse_trellis_directions(state: State, layers: Mapping[str, LayerPlan]) -> None:
    """Raise PlanError if the plan of a direction has a trellis: a slice that became zero could not get a code.

    Args:
        state: The checkpoint, with reparametrized weights.
        layers: {weight: its plan}.
    """
    for name, layer in layers.items():
        if layer.is_trellis and state.nonzero_over(name) is not None:
            raise PlanError(f"layer {name!r}: rounding must not be 'trellis', because it is the direction of a weight norm")
