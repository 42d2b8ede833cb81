"""Batch-norms in their canonical form: the same function with fewer numbers.

When evaluating, a batch-norm is y = weight (x - mean) / sqrt(var + eps) + bias: a factor and a term a channel, spread over four
vectors. Here mean becomes 0 and var a constant, 1 - eps as float32 has it, so that two of the four cost next to nothing;
weight' = weight sqrt(var' + eps) / sqrt(var + eps) and bias' = bias - weight mean / sqrt(var + eps), in float64, rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.checkpoints import State
from opq.errors import PlanError
from opq.quantization.compressed_tensor import CompressedTensor

_PARTS = ("weight", "bias", "running_mean", "running_var")

Vectors = dict[str, NDArray[np.generic]]


class FoldedBatchNormState(State):
    """A state dict whose batch-norms are in canonical form; all other tensors as they are.

    A batch-norm is told by its names: `running_mean` and `running_var`, and `weight` or `bias` or both, after the same prefix,
    all of one dimension and length. Without a weight var stays, without a bias mean does, for nothing could make up for them.
    A batch-norm also stays as it is where a value is not finite, or becomes so, where var + eps is not positive, and where some
    of its vectors, but not all, are those of another module as well.
    """

    def __init__(self, state: State, eps: float | None) -> None:
        """Of `state`; `eps` is that of batch-norms for which the state tells none, PlanError where it is None."""
        self._state = state
        self.metadata = state.metadata
        self.epsilons: Mapping[str, float] = state.epsilons
        self._replaced: Vectors = {}
        owners: dict[object, list[str]] = {}
        for name in state:
            owners.setdefault(state.memory(name) or name, []).append(name.rpartition(".")[0])
        for name in state:
            prefix, dot, last = name.rpartition(".")
            if last == "running_var":
                start = prefix + dot
                vectors = {part: state[start + part] for part in _PARTS if start + part in state}
                sharers = [owners[state.memory(start + part) or start + part] for part in vectors]
                declared = {self.epsilons.get(sharer, eps) for sharer in sharers[0]}
                if _is_batch_norm(vectors) and all(sharing == sharers[0] for sharing in sharers) and len(declared) == 1:
                    if (own := declared.pop()) is None:
                        raise PlanError("it was made for batch-norms that differ in eps; compress the module, which tells each")
                    changed = fold_statistics(vectors, own)
                    self._replaced.update({start + part: vector for part, vector in changed.items()})

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """As the state itself has it."""
        return self._state.describe(name)

    def compressed(self, name: str) -> CompressedTensor | None:
        """As the state itself has it."""
        return self._state.compressed(name)

    def memory(self, name: str) -> object:
        """As the state itself has it."""
        return self._state.memory(name)

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        return self._replaced[name] if name in self._replaced else self._state[name]

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """As the state itself has it, but for what is replaced."""
        return self._replaced[name][start:stop] if name in self._replaced else self._state.rows(name, start, stop)

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def fold_statistics(vectors: Mapping[str, NDArray[np.generic]], eps: float) -> Vectors:
    """The vectors of a batch-norm in canonical form, by their names without the prefix; none where it stays as it is."""
    wide = {part: vector.astype(np.float64) for part, vector in vectors.items()}
    mean, variance = wide["running_mean"], wide["running_var"]
    ones, zeros = np.ones_like(mean), np.zeros_like(mean)
    with np.errstate(all="ignore"):
        constant = np.full_like(mean, 1.0 - eps).astype(vectors["running_var"].dtype) if "weight" in wide else variance
        deviation = np.sqrt(variance + eps)
        changed = {
            "weight": wide.get("weight", ones) * np.sqrt(constant.astype(np.float64) + eps) / deviation,
            "bias": wide.get("bias", zeros) - wide.get("weight", ones) * mean / deviation,
            "running_mean": zeros if "bias" in wide else mean,
            "running_var": constant,
        }
        rounded: Vectors = {part: changed[part].astype(vectors[part].dtype) for part in vectors}
    finite = all(np.isfinite(vector).all() for vector in (*wide.values(), *rounded.values()))
    return rounded if finite and (variance + eps > 0.0).all() else {}


def _is_batch_norm(vectors: Mapping[str, NDArray[np.generic]]) -> bool:
    shapes = {vector.shape for vector in vectors.values()}
    floats = all(dtypes.name_of(vector.dtype) in dtypes.COMPRESSIBLE for vector in vectors.values())
    has_freedom = "running_mean" in vectors and len(vectors) > 2
    return has_freedom and floats and len(shapes) == 1 and len(next(iter(shapes))) == 1
