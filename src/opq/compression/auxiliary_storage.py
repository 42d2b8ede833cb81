"""Which tensors that are not weights may lose precision, and how much.

A tensor may be stored in float16, or on a grid of 8 bits, only if it is a parameter that has not the shape of a weight (at most
one dimension larger than 1, or fewer than 64 elements) or a statistic of a batch norm. Buffers stay exact, because a network
can depend on each of their bits: the phases of a rotary embedding grow with the position. So do weights that `exclude` names.

The vectors of a batch norm are checked together, by their effect: the root mean square change of each channel's output for
inputs of the stored mean and variance, relative to the mean of the channel's own output and that of all channels. Rounding a
mean that is large beside the deviation would otherwise shift the output by several deviations. Other vectors are checked one by
one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from opq.batch_norm import PARTS, prefixes
from opq.checkpoints import State
from opq.checkpoints.folded_state import batch_norm_of
from opq.codec.auxiliary import rounded
from opq.compression.tensor_roles import scales_of_codes, shape_without_weight
from opq.rate_distortion.plan import AuxiliaryPlan

LARGEST_EFFECT: Mapping[str, float] = {"float16": 2.0**-9, "uint8": 2.0**-6}
"""Largest change of a channel's output by its batch norm, relative to the output."""

LARGEST_LINEAR, LARGEST_RELATIVE = 2.0**-8, 2.0**-9
"""Largest errors of other vectors on a grid of 8 bits: relative to the median magnitude; to each value on the relative grid."""

_PARAMETER = re.compile(
    r"(^|[._])(weight|bias|gamma|beta|scale|gain|alpha|weight_g|original0|running_mean|running_var)(_[a-z]+_l\d+(_reverse)?|_[ih]h|\d*)$"
)
"""Names of parameters and batch-norm statistics in a checkpoint without its module."""

_STATISTICS = ("running_mean", "running_var")
_USUAL_EPS = 1e-5
"""Of batch norms whose modules are not available, although the plan says that they differ."""

Vectors = Mapping[str, NDArray[np.generic]]


def storages(state: State, names: Iterable[str], auxiliary: AuxiliaryPlan) -> dict[str, str]:
    """How each of these tensors is stored.

    Args:
        state: The checkpoint, with folded batch norms if they are to be folded.
        names: Names of its tensors that are not weights.
        auxiliary: Its storage is the coarsest that a tensor gets; its eps is that of batch norms without modules.

    Returns:
        {name: "exact", "float16" or "uint8"}, for all of `names`.
    """
    found = dict.fromkeys(names, "exact")
    if auxiliary.storage == "exact":
        return found
    choices = ["uint8", "float16"] if auxiliary.storage == "uint8" else ["float16"]
    usual_eps = _USUAL_EPS if auxiliary.eps is None else auxiliary.eps
    scales = scales_of_codes(state)
    lossy = {name for name in found if name not in scales and _may_lose_precision(state, name)}
    grouped: set[str] = set()
    for prefix in prefixes(found):
        parts = [part for part in PARTS if prefix + part in lossy]
        if set(_STATISTICS) <= set(parts) and len({state.describe(prefix + part)[1] for part in parts}) == 1:
            eps = state.epsilons.get(prefix.removesuffix("."), usual_eps)
            found.update(_batch_norm_storages({part: state[prefix + part] for part in parts}, prefix, choices, eps))
            grouped.update(prefix + part for part in parts)
    for name in lossy - grouped:
        found[name] = choices[0] if choices[0] == "float16" or _is_close(state[name]) else "float16"
    return found


def _may_lose_precision(state: State, name: str) -> bool:
    kind, shape = state.describe(name)
    if kind not in ("float32", "float64") or math.prod(shape) < 2 or shape_without_weight(shape) is None:
        return False
    if name.rpartition(".")[2] in _STATISTICS:
        return True
    is_parameter = state.is_parameter(name)
    return _PARAMETER.search(name) is not None if is_parameter is None else is_parameter


def _batch_norm_storages(vectors: Vectors, prefix: str, choices: list[str], eps: float) -> dict[str, str]:
    """The coarsest storages of the vectors of a batch norm whose effect is small enough."""
    shift_exact = {part: "exact" if part in ("running_mean", "bias") else "float16" for part in vectors}
    for chosen in chain((dict.fromkeys(vectors, choice) for choice in choices), [shift_exact]):
        limit = LARGEST_EFFECT["uint8" if "uint8" in chosen.values() else "float16"]
        if _effect(vectors, {part: rounded(vector, chosen[part]) for part, vector in vectors.items()}, eps) <= limit:
            return {prefix + part: storage for part, storage in chosen.items()}
    return {prefix + part: "exact" for part in vectors}


def _effect(before: Vectors, after: Vectors, eps: float) -> float:
    """The largest change of a channel's output; infinite if a value is not finite."""
    with np.errstate(all="ignore"):
        old, new = batch_norm_of(before, eps), batch_norm_of(after, eps)
        deviation = np.sqrt(np.maximum(old.variance, 0.0))
        shift = new.bias + new.slope * (old.mean - new.mean) - old.bias
        change = np.hypot((new.slope - old.slope) * deviation, shift)
        output = np.hypot(old.slope * deviation, old.bias)
        effect = np.where(change == 0.0, 0.0, change / (0.5 * (output + output.mean())))
    return float(effect.max()) if np.isfinite(effect).all() else np.inf


def _is_close(array: NDArray[np.generic]) -> bool:
    """Whether a grid of 8 bits keeps this vector's values."""
    if not np.isfinite(array).all():
        return False
    values = array.astype(np.float64)
    error = np.abs(rounded(array, "uint8").astype(np.float64) - values)
    magnitudes = np.abs(values)
    if (values >= 0.0).all():
        return bool((error <= LARGEST_RELATIVE * magnitudes).all())
    return bool(error.max() <= LARGEST_LINEAR * np.median(magnitudes[values != 0.0]))
