"""Lossless compression: weights with few distinct values as codes, everything else as auxiliary tensors."""

from __future__ import annotations

import numpy as np

from opq.checkpoints import State
from opq.codec.byte_planes import estimate_pack
from opq.codec.weight_section import encode_weight
from opq.compression.analysis import choose_roles
from opq.compression.compressed_model import CompressedModel, encode_state
from opq.config import CompressionConfig
from opq.errors import WeightError
from opq.progress import Progress
from opq.quantization.codebook import UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor
from opq.quantization.level_search import find_levels, may_have_levels
from opq.quantization.quantizer import LARGEST_CODE
from opq.rate_distortion.plan import AuxiliaryPlan
from opq.thread_map import thread_map

_STEP_BYTES = 4
"""Bytes of a step in the header."""


def compress_losslessly(state: State, config: CompressionConfig, report: Progress) -> CompressedModel:
    """Compress a checkpoint so that every tensor is restored bit for bit.

    Each weight is stored in the smallest of three ways: codes with a step, codes with a table of levels, or byte planes.

    Args:
        state: The checkpoint; CompressedTensors keep their codes.
        config: Selects the weights.
        report: Called after each weight.

    Returns:
        The compressed network, in memory.

    Raises:
        SourceError, SelectionError: See `choose_roles`.
        WeightError: A CompressedTensor of the source cannot be stored.
    """
    names = choose_roles(state, config).weights
    candidates = zip(names, thread_map(lambda name: _as_codes(state, name), names), strict=True)
    weights = {name: tensor for name, tensor in candidates if tensor is not None}
    return encode_state(state, weights, AuxiliaryPlan(), speed=config.speed, pack_speed=config.speed, report=report)


def _as_codes(state: State, name: str) -> CompressedTensor | None:
    """The weight as codes; None if byte planes take fewer bytes."""
    compressed = state.compressed(name)
    if compressed is not None:
        _check_codes(name, compressed)
        return compressed
    weight = state[name]
    if not may_have_levels(weight):
        return None
    sizes = [(len(encode_weight(tensor).adaptive), tensor) for tensor in find_levels(weight)]
    if not sizes:
        return None
    size, tensor = min(sizes, key=lambda pair: pair[0] + _STEP_BYTES * isinstance(pair[1].codebook, UniformCodebook))
    return tensor if size < estimate_pack([weight]) else None


def _check_codes(name: str, tensor: CompressedTensor) -> None:
    largest = np.abs(tensor.codes.astype(np.int64)).max(initial=0)
    if largest > LARGEST_CODE:
        raise WeightError(name, tensor.shape, f"codes must be at most {LARGEST_CODE:,} in magnitude, got {largest:,}")
    if not np.isfinite(tensor.values()).all():
        raise WeightError(
            name, tensor.shape, f"the value of its largest code is infinite in {tensor.dtype}; use a smaller step"
        )
