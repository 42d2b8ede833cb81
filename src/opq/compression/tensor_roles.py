"""What each tensor of a checkpoint is: a weight, which is quantized, or exact, with the reason why.

The rule, in order. A tensor stays exact if it is

* not float16, bfloat16, float32 or float64;
* without two dimensions larger than 1 (biases, gains, layer scales, class tokens, mean and deviation of inputs). But such
  a tensor of two dimensions or more and at least 65,536 elements, such as an embedding of width 1, is a weight;
* of fewer than 64 elements;
* a buffer of the module, where the source is a module;
* beside an integer, float8, float6 or float4 weight: then it holds the scales of that weight;
* the gain of weight_norm, the mask of a pruned weight, or part of a parametrization other than weight_norm and spectral_norm;
* of at most 8 distinct values (masks, tables of 0 and -inf). A small sample is read first; nearly all weights show more there.

Every other tensor is a weight. A tensor that is given as codes is a weight whatever its values are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.checkpoints import State
from opq.checkpoints.reparametrized_state import gain_of, pruning_mask_of
from opq.codec.file_writer import in_order
from opq.config import CompressionConfig
from opq.quantization.statistics import blocks

SMALLEST_WEIGHT = 64
"""Smallest number of elements of a weight."""

LARGE_VECTOR = 65_536
"""Smallest number of elements of a weight in whose shape, of two dimensions or more, at most one size is above 1."""

FEW_VALUES = 8
"""A tensor of at most this many distinct values is not a weight."""

_FIRST_ROWS = 256
"""About how many elements are read first to count distinct values."""

_PARAMETRIZED = re.compile(r"(^|.*\.)parametrizations\.[^.]+\.")
_WEIGHT = re.compile(r"weight(?!.*mask)|^w_q$", re.IGNORECASE)


@dataclass(frozen=True)
class TensorRoles:
    """Which tensors of a checkpoint are weights, and why the others are not.

    Args:
        weights: Names of the weights, in order.
        exact: {name of every other tensor: why it is not a weight}, in order.
    """

    weights: tuple[str, ...]
    exact: Mapping[str, str]

    def selected(self, config: CompressionConfig) -> TensorRoles:
        """The roles under a config, whose `include` and `exclude` make weights exact.

        Raises:
            SelectionError: A glob of `include` matches no weight, or one of `exclude` matches no tensor.
        """
        chosen = config.select(self.weights, self.exact)
        dropped = dict.fromkeys(set(self.weights).difference(chosen), "left out by include or exclude")
        exact = {**self.exact, **dropped}
        return TensorRoles(tuple(chosen), {name: exact[name] for name in in_order(exact)})


def tensor_roles(state: State) -> TensorRoles:
    """Apply the rule of this module to the tensors of a checkpoint.

    Args:
        state: The checkpoint. Of nearly all weights only some rows are read.
    """
    quantized = _quantized_weights(state)
    weights, exact = [], {}
    for name in in_order(state):
        reason = _why_exact(state, name, quantized)
        if reason is None:
            weights.append(name)
        else:
            exact[name] = reason
    return TensorRoles(tuple(weights), exact)


def lossless_roles(state: State) -> TensorRoles:
    """As `tensor_roles` for lossless compression, which changes no value: every matrix is searched for levels."""
    weights, exact = [], {}
    for name in in_order(state):
        kind, shape = state.describe(name)
        if kind in dtypes.COMPRESSIBLE and len(shape) >= 2 and math.prod(shape) > 0:
            weights.append(name)
        else:
            exact[name] = "not a matrix of floating point"
    return TensorRoles(tuple(weights), exact)


def shape_without_weight(shape: tuple[int, ...]) -> str | None:
    """Why a tensor of floating point of this shape is not a weight; None if it can be one."""
    size = math.prod(shape)
    if sum(side > 1 for side in shape) < 2 and not (len(shape) >= 2 and size >= LARGE_VECTOR):
        return "fewer than two dimensions larger than 1"
    return f"fewer than {SMALLEST_WEIGHT} elements" if size < SMALLEST_WEIGHT else None


def scales_of_codes(state: State) -> frozenset[str]:
    """The tensors of floating point that belong to integer, float8, float6 or float4 weights."""
    quantized = _quantized_weights(state)
    return frozenset(name for name in state if quantized.own(name))


def _why_exact(state: State, name: str, quantized: _QuantizedWeights) -> str | None:
    """Why a tensor is not a weight; None if it is one."""
    kind, shape = state.describe(name)
    if kind not in dtypes.COMPRESSIBLE:
        return f"{kind} is not quantized"
    if quantized.own(name):
        return "scales of an integer or float8 weight"
    if (reason := shape_without_weight(shape)) is not None:
        return reason
    if state.is_parameter(name) is False:
        return "a buffer of the module"
    if name.endswith("_mask") and pruning_mask_of(state, name.removesuffix("_mask") + "_orig") == name:
        return "mask of a pruned weight"
    if (known := _PARAMETRIZED.match(name)) and not _is_known_parametrization(state, name, known.group()):
        return "part of a parametrization that opq does not know"
    if state.compressed(name) is None and _has_few_values(state, name, shape):
        return f"at most {FEW_VALUES} distinct values"
    return None


def _is_known_parametrization(state: State, name: str, prefix: str) -> bool:
    """Whether a tensor is the direction of a weight_norm, or the original of a spectral_norm alone."""
    if name != f"{prefix}original" or f"{prefix}0._u" not in state:
        return gain_of(state, name) is not None
    return not any(key.startswith(f"{prefix}1.") for key in state)


@dataclass(frozen=True)
class _QuantizedWeights:
    """The integer and float8 weights of a checkpoint.

    Args:
        names: Their names, and those of all other integer and float8 tensors.
        owners: Names of the layers that hold such a weight.
    """

    names: frozenset[str]
    owners: frozenset[str]

    def own(self, name: str) -> bool:
        """Whether a floating-point tensor belongs to one of them: `a.scales` to `a.qweight`, `a.w_scale_inv` to `a.w`."""
        if name.rpartition(".")[2] != "weight" and _owner(name) in self.owners:
            return True
        ends = [at for at, letter in enumerate(name) if letter in "._"]
        return any(name[:at] in self.names for at in ends)


def _quantized_weights(state: State) -> _QuantizedWeights:
    kinds = {name: state.describe(name)[0] for name in state}
    names = [name for name, kind in kinds.items() if kind.startswith(("int", "uint", "float4_", "float6_", "float8_"))]
    weights = [name for name in names if _is_weight_name(name)]
    return _QuantizedWeights(frozenset(names), frozenset(map(_owner, weights)))


def _is_weight_name(name: str) -> bool:
    """Whether a tensor is named as a weight or a part of one: `weight`, `qweight`, `weight_packed`, `weight._data`."""
    *_, before, last = ("", *name.split("."))
    return before == "weight" or _WEIGHT.search(last) is not None


def _owner(name: str) -> str:
    """The layer of a tensor: `a` for `a.scales`, `a.weight` and `a.weight.absmax`."""
    return name.rpartition(".")[0].removesuffix(".weight")


def _has_few_values(state: State, name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor has at most FEW_VALUES distinct values; blocks of rows are read until it has more."""
    width = max(math.prod(shape[1:]), 1)
    first = min(-(-_FIRST_ROWS // width), shape[0])
    middle = max(shape[0] // 2 - first // 2, 0)
    found: set[int] = set()
    for start, stop in ((0, first), (middle, middle + first), *blocks(shape[0], width)):
        found.update(_distinct(state.rows(name, start, stop), FEW_VALUES + 1))
        if len(found) > FEW_VALUES:
            return False
    return True


def _distinct(rows: NDArray[np.generic], enough: int) -> Iterable[int]:
    """Distinct bit patterns of an array; once there are `enough`, some of them are left out."""
    words = np.ascontiguousarray(rows).reshape(-1).view(f"u{rows.dtype.itemsize}")
    found: set[int] = set()
    for start in range(0, len(words), 2**16):
        found.update(np.unique(words[start : start + 2**16]).tolist())
        if len(found) >= enough:
            break
    return found
