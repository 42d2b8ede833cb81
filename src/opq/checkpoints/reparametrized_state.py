"""A checkpoint whose pruned and weight-normalized weights have the values that the network uses.

`torch.nn.utils.prune` keeps a weight as NAME_orig and NAME_mask, and uses their product. `weight_norm` keeps it as a gain g and
a direction v, as NAME_g and NAME_v or as parametrizations.NAME.original0 and original1, and uses g v/|v|, which does
not depend on the length of v.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.checkpoints.state import State, StateView
from opq.quantization.compressed_tensor import CompressedTensor
from opq.quantization.statistics import blocks


class ReparametrizedState(StateView):
    """A checkpoint in which weights are multiplied by their masks and normalized. The network computes the same function.

    NAME_orig becomes NAME_orig * NAME_mask. A direction v becomes |g| v/|v|, so that its errors count as those of the weight.
    A row of v that is all zero stays so. The arithmetic is in float64 and is rounded once.

    Args:
        state: The checkpoint.
        names: Names of the weights; only they are changed.
    """

    def __init__(self, state: State, names: Collection[str]) -> None:
        super().__init__(state)
        self._masks = {name: mask for name in names if (mask := pruning_mask_of(state, name)) is not None}
        self._gains = {name: gain for name in names if (gain := gain_of(state, name)) is not None}
        self._factors: dict[str, NDArray[np.float64]] = {}

    @property
    def changed(self) -> list[str]:
        """Names of the tensors that are changed."""
        return [*self._masks, *self._gains]

    def compressed(self, name: str) -> CompressedTensor | None:
        """As State.compressed."""
        return None if name in self._masks or name in self._gains else self._state.compressed(name)

    def nonzero_over(self, name: str) -> tuple[int, ...] | None:
        """As State.nonzero_over: the axes of a direction over which its norm is taken."""
        return _norm_axes(self._state, name, self._gains[name]) if name in self._gains else None

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        if name in self._masks or name in self._gains:
            return self.rows(name, 0, self.describe(name)[1][0])
        return self._state[name]

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """As State.rows."""
        rows = self._state.rows(name, start, stop)
        if name in self._masks:
            mask = self._state.rows(self._masks[name], start, stop)
            return (rows.astype(np.float64) * mask.astype(np.float64)).astype(rows.dtype)
        if name in self._gains:
            factor = self._factor(name)
            factor = factor[start:stop] if factor.ndim and factor.shape[0] > 1 else factor
            return (rows.astype(np.float64) * factor).astype(rows.dtype)
        return rows

    def memory(self, name: str) -> object:
        """As State.memory; None for a changed weight, because another weight with its memory may have another mask or gain."""
        return None if name in self._masks or name in self._gains else self._state.memory(name)

    def _factor(self, name: str) -> NDArray[np.float64]:
        """What a direction is multiplied with: |g|/|v|, shaped as g."""
        if name not in self._factors:
            shape, axes = self.describe(name)[1], _norm_axes(self._state, name, self._gains[name])
            gain = np.abs(self._state[self._gains[name]].astype(np.float64))
            squares = np.zeros([1 if axis in axes else size for axis, size in enumerate(shape)])
            for start, stop in blocks(shape[0], int(np.prod(shape[1:]))):
                part = np.square(self._state.rows(name, start, stop).astype(np.float64)).sum(axis=axes, keepdims=True)
                if 0 in axes:
                    squares += part
                else:
                    squares[start:stop] = part
            norm = np.sqrt(squares)
            self._factors[name] = np.broadcast_to(gain, norm.shape) / np.where(norm > 0.0, norm, 1.0)
        return self._factors[name]


def pruning_mask_of(state: State, name: str) -> str | None:
    """The name of the mask of a weight that `torch.nn.utils.prune` pruned; None if `name` is no such weight."""
    stem = name.removesuffix("_orig")
    mask = f"{stem}_mask"
    if stem == name or mask not in state or state.describe(mask)[1] != state.describe(name)[1]:
        return None
    return mask if state.describe(name)[1] else None


def gain_of(state: State, name: str) -> str | None:
    """The name of the gain of a direction of `weight_norm`; None if `name` is no direction."""
    for direction, gain in (("_v", "_g"), ("original1", "original0")):
        stem = name.removesuffix(direction)
        is_place = ".parametrizations." in f".{stem}" or direction == "_v"
        if stem != name and is_place and stem + gain in state and _is_gain(state, stem + gain, name):
            return stem + gain
    return None


def _is_gain(state: State, gain: str, direction: str) -> bool:
    """Whether a tensor has one number for the direction, or one for each slice along one axis of it."""
    (kind, shape), (direction_kind, full) = state.describe(gain), state.describe(direction)
    if not {kind, direction_kind} <= dtypes.COMPRESSIBLE or len(full) < 2:
        return False
    wide = [axis for axis, size in enumerate(shape) if size != 1]
    return not wide or (len(shape) == len(full) and len(wide) == 1 and shape[wide[0]] == full[wide[0]])


def _norm_axes(state: State, name: str, gain: str) -> tuple[int, ...]:
    """The axes of a direction over which its norm is taken: all but the one that the gain keeps."""
    full, kept = state.describe(name)[1], state.describe(gain)[1]
    return tuple(axis for axis, _ in enumerate(full) if not (len(kept) == len(full) and kept[axis] != 1))
