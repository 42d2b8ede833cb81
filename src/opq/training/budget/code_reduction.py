"""Reduce the codes of a trained network to a byte budget. Masks and steps stay; some codes are lowered by one.

Lowering the code k >= 2 of a latent value v adds the squared error (|v| - (k-1) step)^2 - (|v| - k step)^2, which is small if v
lies near the border to the next lower cell. It saves about log2(n_(k-1) / n_k) bits, where n_k counts the codes of magnitude k
in the weight. Codes are lowered in order of error in squared steps per saved bit until the budget is met, since the plan chose
each step so that errors of one step cost alike. If lowering every code by one does not suffice, all codes are scaled down
first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from opq.codec.code_stream import encode_codes
from opq.compression.compressed_model import CompressedModel
from opq.errors import TargetError
from opq.rate_distortion.rate_control import geometric_bisection
from opq.thread_map import thread_map
from opq.training.attach import PreparedWeight, current_codes, prepared_weights
from opq.training.batches import Loader
from opq.training.bn_statistics import refresh_batch_norm
from opq.training.device import device_of

_SMALLEST_SAVING = 0.05
_TOLERANCE = 0.002
_MAX_ROUNDS = 8
_MANY = 1024
"""Larger magnitudes are counted as this one, because they are rare and cost about the same."""


@dataclass(frozen=True)
class CodeReduction:
    """Number of codes that were lowered to meet a budget.

    Args:
        lowered: Lowered codes.
        num_kept: Nonzero codes, before and after.
    """

    lowered: int
    num_kept: int


def reduce_codes(model: nn.Module, code_bytes: float) -> CodeReduction:
    """Lower codes of a prepared network until they fit. Nothing changes if they fit already.

    Latent values of lowered codes move to the middle of their new cells.

    Args:
        model: The prepared network; its latent values are changed in place.
        code_bytes: Budget of the codes of all weights in bytes.

    Returns:
        The number of lowered codes.

    Raises:
        TargetError: The codes take more bytes even if all kept ones are 1.
    """
    weights = prepared_weights(model)
    before = current_codes(weights)
    codes = _scaled_down(before, code_bytes)
    while (size := section_bytes(codes)) > code_bytes:
        order = _order(weights, codes)
        if not len(order):
            raise TargetError(
                f"the codes take {size:,} bytes, their budget is {code_bytes:,.0f}, and all kept codes are 1 already; "
                "give a larger budget, or train with opq.BudgetScheduler"
            )
        low, high = 0, len(order)  # lowering the first `high` codes suffices, or there are no more
        while high - low > 1:
            middle = (low + high) // 2
            if section_bytes(_lowered(codes, order[:middle])) <= code_bytes:
                high = middle
            else:
                low = middle
        codes = _lowered(codes, order[:high])
    for weight, old, new in zip(weights, before, codes, strict=True):
        _move(weight, torch.from_numpy(new), torch.from_numpy(new != old))
    kept = sum(int(np.count_nonzero(array)) for array in before)
    lowered = sum(int(np.count_nonzero(old != new)) for old, new in zip(before, codes, strict=True))
    return CodeReduction(lowered, kept)


def reduced_to_budget(
    model: nn.Module, encode: Callable[[], CompressedModel], budget: int | None, loader: Loader | None
) -> tuple[CompressedModel, int, CodeReduction]:
    """Encode a prepared network within a byte budget. The network keeps its values.

    Args:
        model: The prepared network.
        encode: Encodes it with its current values.
        budget: Largest size of the file in bytes; None for any size.
        loader: Batches from which batch-norm statistics are estimated again if codes were lowered; None to keep them.

    Returns:
        The file, its bytes before codes were lowered, and the number of lowered codes.

    Raises:
        TargetError: The codes cannot be reduced to the budget.
    """
    file = encode()
    trained_bytes = file.file_bytes
    weights = prepared_weights(model)
    codes = current_codes(weights)
    reduction = CodeReduction(0, sum(int(np.count_nonzero(array)) for array in codes))
    if budget is None or trained_bytes <= budget:
        return file, trained_bytes, reduction
    state = model.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    available = float(budget - trained_bytes + section_bytes(codes))
    try:
        for _ in range(_MAX_ROUNDS):
            model.load_state_dict(before, strict=False)
            reduction = reduce_codes(model, available)
            if loader is not None:
                refresh_batch_norm(model, loader, device_of(model))
            file = encode()
            if file.file_bytes <= budget:
                return file, trained_bytes, reduction
            available -= file.file_bytes - budget + 2  # new batch-norm statistics and the header may take a few bytes more
    finally:
        model.load_state_dict(before, strict=False)
    raise TargetError(
        f"the file takes {file.file_bytes:,} bytes, its budget is {budget:,}; train with opq.BudgetScheduler or a reserve"
    )


def _scaled_down(codes: Sequence[NDArray[np.int32]], code_bytes: float) -> Sequence[NDArray[np.int32]]:
    """The codes, scaled if lowering each by one does not suffice: by the smallest factor that still takes too many bytes."""
    ones = [np.sign(array) for array in codes]
    if section_bytes([array - one * (np.abs(array) > 1) for array, one in zip(codes, ones, strict=True)]) <= code_bytes:
        return codes

    def scaled(share: float) -> list[NDArray[np.int32]]:
        return [np.ceil(np.abs(array) * share).astype(np.int32) * one for array, one in zip(codes, ones, strict=True)]

    smallest = 1.0 / max(int(np.abs(array).max(initial=1)) for array in codes)
    return scaled(geometric_bisection(lambda share: section_bytes(scaled(share)) > code_bytes, smallest, 1.0, _TOLERANCE)[1])


def section_bytes(codes: Sequence[NDArray[np.int32]]) -> int:
    """Bytes of the encoded codes of some weights, int32 arrays of any shape, one section per weight."""
    return sum(thread_map(lambda array: len(encode_codes(array)), codes))


def bits_saved(codes: NDArray[np.int32]) -> NDArray[np.float64]:
    """Approximate the bits that lowering a code by one saves: log2(n_(k-1) / n_k), at least 0.05.

    Args:
        codes: int32, any shape.

    Returns:
        float64 (largest magnitude + 1,), by magnitude k; magnitudes above 1,024 count as 1,024.
    """
    counts = np.bincount(np.minimum(np.abs(codes).reshape(-1), _MANY))
    with np.errstate(divide="ignore", invalid="ignore"):
        saved = np.log2(counts[:-1]) - np.log2(counts[1:])
    saved = np.maximum(np.nan_to_num(saved, nan=0.0, posinf=0.0, neginf=0.0), _SMALLEST_SAVING)
    return np.concatenate([[1.0], saved])


def _order(weights: Sequence[PreparedWeight], codes: Sequence[NDArray[np.int32]]) -> NDArray[np.int64]:
    """Indices, into all weights concatenated, of the codes that can be lowered, by error per saved bit."""
    costs = [_costs(weight, array) for weight, array in zip(weights, codes, strict=True)]
    flat = np.concatenate(costs)
    return np.argsort(flat, kind="stable")[: np.count_nonzero(np.isfinite(flat))]


def _costs(weight: PreparedWeight, codes: NDArray[np.int32]) -> NDArray[np.float64]:
    """Squared error in squared steps, per saved bit, of lowering each code of a weight, flat; infinite for codes of 0 and 1."""
    levels = np.abs(codes).reshape(-1)
    latent = weight.codebook.magnitudes(weight.latent.detach()).double().cpu().numpy().reshape(-1)
    error = 2.0 * latent / float(weight.codebook.step) - (2 * levels - 1)
    saved = bits_saved(codes)
    saved = saved[np.minimum(levels, len(saved) - 1)]
    # Codes that lie more than a step above their latent values must not come before all others.
    return np.where(levels > 1, np.maximum(error, -1.0) / saved, np.inf)


def _lowered(codes: Sequence[NDArray[np.int32]], places: NDArray[np.int64]) -> list[NDArray[np.int32]]:
    """The codes, lowered by one at the indices `places` into all weights concatenated."""
    flat = np.concatenate([array.reshape(-1) for array in codes])
    flat[places] -= np.sign(flat[places])
    ends = np.cumsum([array.size for array in codes])[:-1]
    return [part.reshape(array.shape) for part, array in zip(np.split(flat, ends), codes, strict=True)]


def _move(weight: PreparedWeight, codes: torch.Tensor, moved: torch.Tensor) -> None:
    """Move the latent values at `moved` to the middles of the cells of `codes`."""
    if not moved.any():
        return
    codes, moved = codes.to(weight.latent.device), moved.to(weight.latent.device)
    steps, offset = weight.codebook.steps.double(), weight.codebook.rounding_offset.double()
    middle = (codes.abs() + 0.5 - offset) * steps * codes.sign()
    with torch.no_grad():
        weight.latent.copy_(torch.where(moved, middle.to(weight.latent.dtype), weight.latent))
