"""Keep every bit: weights of few distinct values as codes, everything else as it is."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from opq.checkpoints import State
from opq.codec.byte_planes import estimate_pack
from opq.codec.file_writer import AuxiliaryPack, EncodedWeight, pack_auxiliary
from opq.codec.weight_section import encode_weight
from opq.compression.analysis import choose_weights, in_order
from opq.config import CompressionOptions, check_known
from opq.errors import TargetError, WeightError
from opq.quantization.level_search import find_levels
from opq.quantization.quantizer import LARGEST_CODE
from opq.thread_map import thread_map

_ALLOWED = {"lossless", "include", "exclude"}


def encode_lossless(
    state: State, options: CompressionOptions, report: Callable[[str, int, int], None]
) -> tuple[list[EncodedWeight], list[AuxiliaryPack]]:
    """The tensors of `state`, such that each comes back bit for bit.

    What a weight becomes is told by real cost: codes with a step, codes with a table of levels, or byte planes. Raises
    TargetError for options that have no meaning here, and what `choose_weights` raises.
    """
    check_known(options)
    if others := sorted(key for key, value in options.items() if key not in _ALLOWED and value not in (None, {}, ())):
        raise TargetError(f"lossless keeps every bit: it goes with include and exclude alone, not with {others[0]}")
    names = choose_weights(state, options)
    weights = []
    for done, weight in enumerate(thread_map(lambda name: _encode(state, name), names)):
        if weight is not None:
            weights.append(weight)
        report("encoding", done + 1, len(names))
    coded = {weight.name for weight in weights}
    rest = ((name, state[name]) for name in in_order(state) if name not in coded)
    return weights, pack_auxiliary(rest, "exact")


def _encode(state: State, name: str) -> EncodedWeight | None:
    """The weight as the fewest bytes have it; None where byte planes are fewer than codes."""
    given = state.compressed(name)
    if given is not None:
        if given.step is not None and not (0.0 < given.step < math.inf and float(np.float32(given.step)) == given.step):
            raise WeightError(name, given.shape, f"step must be positive and a float32 number, got {given.step!r}")
        if np.abs(given.codes.astype(np.int64)).max(initial=0) > LARGEST_CODE:
            raise WeightError(name, given.shape, f"codes must be at most {LARGEST_CODE:,} in magnitude")
        if not np.isfinite(given.values()).all():
            raise WeightError(name, given.shape, f"step {given.step!r} times its largest code is beyond {given.dtype}")
        return EncodedWeight(name, given.shape, given.dtype, given.step, encode_weight(given))
    weight = state[name]
    ways = [(encode_weight(tensor), tensor) for tensor in find_levels(weight)]
    if not ways:
        return None
    section, tensor = min(ways, key=lambda way: len(way[0]) + (4 if way[1].step is not None else 0))
    if len(section) >= estimate_pack([weight]):
        return None
    return EncodedWeight(name, tensor.shape, tensor.dtype, tensor.step, section)
