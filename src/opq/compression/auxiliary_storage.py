"""Which tensors that are not weights may lose precision, and how much.

A tensor may be stored in float16, or on a grid of 8 bits, only if it is a parameter that has not the shape of a weight (at most
one dimension larger than 1, or fewer than 64 elements) or a statistic of a batch norm. Buffers stay exact, because a network
can depend on each of their bits: the phases of a rotary embedding grow with the position. So do weights that `exclude` names.

The vectors of a batch norm are judged together, by their effect: the root mean square change of each channel's output under the
stored statistics, relative to the mean of the channel's own output and that of all channels. A mean that is large beside the
deviation would otherwise lose most of its digits' worth. Other vectors are judged alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from opq.batch_norm import PARTS, BatchNormVectors, prefixes
from opq.checkpoints import State
from opq.codec.auxiliary import restore, store
from opq.codec.entry import Entry
from opq.compression.tensor_roles import has_weight_shape, scales_of_codes

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

Vectors = dict[str, NDArray[np.float64]]


def storages(state: State, names: Iterable[str], requested: str) -> dict[str, str]:
    """How each of these tensors is stored.

    Args:
        state: The checkpoint, with folded batch norms if they are to be folded.
        names: Names of its tensors that are not weights.
        requested: The setting, "exact", "float16" or "uint8". A tensor gets this storage or a more exact one.

    Returns:
        {name: "exact", "float16" or "uint8"}, for all of `names`.
    """
    found = dict.fromkeys(names, "exact")
    if requested == "exact":
        return found
    choices = ["uint8", "float16"] if requested == "uint8" else ["float16"]
    scales = scales_of_codes(state)
    lossy = {name for name in found if name not in scales and _may_lose_precision(state, name)}
    grouped: set[str] = set()
    for prefix in prefixes(found):
        parts = [part for part in PARTS if prefix + part in lossy]
        if set(_STATISTICS) <= set(parts) and len({state.describe(prefix + part)[1] for part in parts}) == 1:
            found.update(_batch_norm_storages(state, prefix, parts, choices))
            grouped.update(prefix + part for part in parts)
    for name in lossy - grouped:
        found[name] = choices[0] if choices[0] == "float16" or _is_close(state[name]) else "float16"
    return found


def _may_lose_precision(state: State, name: str) -> bool:
    kind, shape = state.describe(name)
    if kind not in ("float32", "float64") or math.prod(shape) < 2 or has_weight_shape(shape):
        return False
    if name.rpartition(".")[2] in _STATISTICS:
        return True
    is_parameter = state.is_parameter(name)
    return _PARAMETER.search(name) is not None if is_parameter is None else is_parameter


def _batch_norm_storages(state: State, prefix: str, parts: list[str], choices: list[str]) -> dict[str, str]:
    """The coarsest storages of the vectors of a batch norm whose effect is small enough."""
    eps = state.epsilons.get(prefix.removesuffix("."), _USUAL_EPS)
    vectors = {part: state[prefix + part] for part in parts}
    shift_exact = {part: "exact" if part in ("running_mean", "bias") else "float16" for part in parts}
    for chosen in chain((dict.fromkeys(parts, choice) for choice in choices), [shift_exact]):
        limit = LARGEST_EFFECT["uint8" if "uint8" in chosen.values() else "float16"]
        stored = {part: _stored(vector, chosen[part]) for part, vector in vectors.items()}
        if _effect(vectors, stored, eps) <= limit:
            return {prefix + part: storage for part, storage in chosen.items()}
    return dict.fromkeys((prefix + part for part in parts), "exact")


def _effect(before: Mapping[str, NDArray[np.generic]], after: Mapping[str, NDArray[np.generic]], eps: float) -> float:
    """The largest change of a channel's output; infinite if a value is not finite."""
    with np.errstate(all="ignore"):
        old, new = _wide(before, eps), _wide(after, eps)
        deviation = np.sqrt(np.maximum(old.variance, 0.0))
        shift = new.bias + new.slope * (old.mean - new.mean) - old.bias
        change = np.hypot((new.slope - old.slope) * deviation, shift)
        output = np.hypot(old.slope * deviation, old.bias)
        effect = np.where(change == 0.0, 0.0, change / (0.5 * (output + output.mean())))
    return float(effect.max()) if np.isfinite(effect).all() else np.inf


def _wide(vectors: Mapping[str, NDArray[np.generic]], eps: float) -> BatchNormVectors:
    wide = {part: vector.astype(np.float64) for part, vector in vectors.items()}
    mean = wide["running_mean"]
    return BatchNormVectors(
        wide.get("weight", np.ones_like(mean)), wide.get("bias", np.zeros_like(mean)), mean, wide["running_var"], eps
    )


def _stored(array: NDArray[np.generic], storage: str) -> NDArray[np.generic]:
    how, bounds, stored = store(array, storage)
    return restore(stored, Entry("", array.shape, array.dtype.name, how, 0, bounds=bounds))


def _is_close(array: NDArray[np.generic]) -> bool:
    """Whether a grid of 8 bits keeps this vector's values."""
    if not np.isfinite(array).all():
        return False
    values = array.astype(np.float64)
    error = np.abs(_stored(array, "uint8").astype(np.float64) - values)
    magnitudes = np.abs(values)
    if (values >= 0.0).all():
        return bool((error <= LARGEST_RELATIVE * magnitudes).all())
    return bool(error.max() <= LARGEST_LINEAR * np.median(magnitudes[values != 0.0]))
