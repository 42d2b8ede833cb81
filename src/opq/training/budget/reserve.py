"""Prune a prepared network to a smaller file before training, so that its codes have room to grow."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opq.training.attach import PreparedWeight, current_codes
from opq.training.budget.code_reduction import section_bytes


def prune(weights: list[PreparedWeight], dense: Mapping[str, Tensor], excess: float) -> None:
    """Remove kept weights of the least magnitudes from the masks until the codes take `excess` bytes less.

    Only codes of 1 are pruned, in order of the dense magnitude in steps; if that does not suffice, all of them are.

    Args:
        weights: The prepared weights; their masks are changed in place.
        dense: {name: values before quantization} of the weights that may be pruned.
        excess: Bytes that the codes of all weights must lose; nothing changes if it is 0 or less.
    """
    weights = [weight for weight in weights if weight.names[0] in dense]
    if excess <= 0.0 or not weights:
        return
    codes = current_codes(weights)
    code_bytes = section_bytes(codes) - excess
    flat = np.concatenate([array.reshape(-1) for array in codes])
    magnitudes = np.concatenate([_in_steps(weight, dense[weight.names[0]]) for weight in weights])
    order = np.argsort(np.where(np.abs(flat) == 1, magnitudes, np.inf), kind="stable")[: np.count_nonzero(np.abs(flat) == 1)]
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        if section_bytes(_pruned(codes, order[:middle])) <= code_bytes:
            high = middle
        else:
            low = middle
    for weight, array in zip(weights, _pruned(codes, order[:high]), strict=True):
        weight.codebook.mask.copy_(torch.from_numpy(array != 0))


def _in_steps(weight: PreparedWeight, values: Tensor) -> NDArray[np.float64]:
    magnitudes = weight.codebook.magnitudes(values.detach()).double() / weight.codebook.step.double()
    flat: NDArray[np.float64] = magnitudes.cpu().numpy().reshape(-1)
    return flat


def _pruned(codes: list[NDArray[np.int32]], places: NDArray[np.int64]) -> list[NDArray[np.int32]]:
    """The codes, 0 at the indices `places` into all weights concatenated."""
    flat = np.concatenate([array.reshape(-1) for array in codes])
    flat[places] = 0
    ends = np.cumsum([array.size for array in codes])[:-1]
    return [part.reshape(array.shape) for part, array in zip(np.split(flat, ends), codes, strict=True)]
