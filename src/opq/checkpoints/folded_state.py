"""A checkpoint whose batch norms have their statistics folded into weight and bias, which does not change the network.

The mean becomes 0, and the variance a constant, 1 - eps rounded to the dtype. So two of the four vectors take almost no bytes.
The arithmetic is in float64 and is rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.batch_norm import PARTS, BatchNormVectors, prefixes
from opq.checkpoints.state import State, StateView
from opq.errors import PlanError

Vectors = dict[str, NDArray[np.generic]]


class FoldedBatchNormState(StateView):
    """A state dict with folded batch norms; all other tensors are unchanged.

    A batch norm is recognized by names with a common prefix: `running_mean`, `running_var`, and `weight` or `bias` or both, all
    one-dimensional and of equal length. Without a weight the variance is kept, and without a bias the mean, because nothing
    could compensate for them. A batch norm is also unchanged if a value is not finite, or would become so; if variance + eps is
    not positive; or if some of its vectors, but not all, are shared with another module.

    Args:
        state: The checkpoint.
        eps: The eps of batch norms that are not in `state.epsilons`.

    Raises:
        PlanError: `eps` is None, and a batch norm is not in `state.epsilons`.
    """

    def __init__(self, state: State, eps: float | None) -> None:
        super().__init__(state)
        self._replaced: Vectors = {}
        owners: dict[object, list[str]] = {}
        for name in state:
            owners.setdefault(state.memory(name) or name, []).append(name.rpartition(".")[0])
        for prefix in prefixes(state):
            vectors = {part: state[prefix + part] for part in PARTS if prefix + part in state}
            sharers = [owners[state.memory(prefix + part) or prefix + part] for part in vectors]
            known = {self.epsilons.get(sharer, eps) for sharer in sharers[0]}
            if _is_batch_norm(vectors) and all(sharing == sharers[0] for sharing in sharers) and len(known) == 1:
                if (module_eps := known.pop()) is None:
                    raise PlanError(
                        "it was made for batch norms that differ in eps, which a state dict does not have; compress the module"
                    )
                self._replaced.update({prefix + part: vector for part, vector in fold_statistics(vectors, module_eps).items()})

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        return self._replaced[name] if name in self._replaced else self._state[name]

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """As State.rows."""
        return self._replaced[name][start:stop] if name in self._replaced else self._state.rows(name, start, stop)


def fold_statistics(vectors: Mapping[str, NDArray[np.generic]], eps: float) -> Vectors:
    """The vectors of a batch norm with folded statistics.

    Args:
        vectors: {part, as in opq.batch_norm.PARTS: (channels,)}.
        eps: The batch norm's eps.

    Returns:
        The same parts in the same dtypes; {} if the batch norm must stay unchanged.
    """
    with np.errstate(all="ignore"):
        before = batch_norm_of(vectors, eps)
        mean, variance = before.mean, before.variance
        constant = np.full_like(mean, 1.0 - eps).astype(vectors["running_var"].dtype) if "weight" in vectors else variance
        after = before.with_statistics(np.zeros_like(mean) if "bias" in vectors else mean, constant.astype(np.float64))
        changed = {"weight": after.weight, "bias": after.bias, "running_mean": after.mean, "running_var": after.variance}
        rounded: Vectors = {part: changed[part].astype(vectors[part].dtype) for part in vectors}
    finite = all(np.isfinite(vector).all() for vector in (*vectors.values(), *rounded.values()))
    return rounded if finite and (variance + eps > 0.0).all() else {}


def batch_norm_of(vectors: Mapping[str, NDArray[np.generic]], eps: float) -> BatchNormVectors:
    """The batch norm of these vectors in float64.

    Args:
        vectors: {part, as in opq.batch_norm.PARTS: (channels,)}; without a weight it is 1, without a bias 0.
        eps: Its eps.
    """
    wide = {part: vector.astype(np.float64) for part, vector in vectors.items()}
    mean = wide["running_mean"]
    weight, bias = wide.get("weight", np.ones_like(mean)), wide.get("bias", np.zeros_like(mean))
    return BatchNormVectors(weight, bias, mean, wide["running_var"], eps)


def _is_batch_norm(vectors: Mapping[str, NDArray[np.generic]]) -> bool:
    shapes = {vector.shape for vector in vectors.values()}
    floats = all(dtypes.name_of(vector.dtype) in dtypes.COMPRESSIBLE for vector in vectors.values())
    is_affine = "running_mean" in vectors and len(vectors) > 2
    return is_affine and floats and len(shapes) == 1 and len(next(iter(shapes))) == 1
