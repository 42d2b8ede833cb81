"""Which weights of a file have fast sections, and which packs of auxiliary tensors have fast planes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from opq.codec.byte_planes import encode_fast_pack, encode_pack, estimate_pack
from opq.codec.stored_section import Section
from opq.config import Speed

LARGEST_COMPARED = 2**22
"""The largest number of dense bytes of all packs together for which each pack is encoded in both ways."""

GROWTH: dict[Speed, tuple[float, float]] = {"small": (0.0, 0.0), "balanced": (0.02, 0.005), "fast": (math.inf, math.inf)}
"""How much larger than an adaptive section a fast one may be, and than all adaptive sections all sections, as fractions."""


_SMALL_PACK = 2**16  # dense bytes
_SAMPLE = 2**12
_STRUCTURE = 0.875
"""If an adaptive sample takes less than this fraction of its zero-order entropy, contexts may matter much more than usual."""


@dataclass(frozen=True)
class EncodedWeight:
    """A weight as bytes.

    Args:
        adaptive: Its section with adaptive codes.
        fast: Its section with fast codes; None if there is none.
        nonzero: The number of nonzero codes.
    """

    adaptive: Section
    fast: Section | None
    nonzero: int


def choose_sections(weights: Sequence[EncodedWeight], keys: Sequence[Hashable], speed: Speed) -> list[Section]:
    """The section of each weight. Fast ones are taken in order of their relative growth, while all sections may grow.

    Args:
        weights: The weights.
        keys: Equal for weights that share a section if their adaptive sections are equal.
        speed: As in CompressionConfig.
    """
    found = [(key, weight.adaptive) for key, weight in zip(keys, weights, strict=True)]
    distinct = dict(zip(reversed(found), reversed(weights), strict=True))
    growth, all_growth = GROWTH[speed]
    left = all_growth * sum(len(weight.adaptive) for weight in distinct.values())
    growths = {part: len(w.fast) / len(w.adaptive) - 1.0 for part, w in distinct.items() if w.fast and w.adaptive}
    fast = set()
    for part in _in_order([(own, part) for part, own in growths.items() if own <= growth]):
        left -= len(distinct[part].fast or b"") - len(distinct[part].adaptive)
        if left < 0:
            break
        fast.add(part)
    return [distinct[part].fast or b"" if part in fast else part[1] for part in found]


def _in_order(growths: Sequence[tuple[float, tuple[Hashable, Section]]]) -> Iterator[tuple[Hashable, Section]]:
    """Keys and sections in order of their growth.

    Every order of the weights must give the same file, so what is in the sections decides between equal growths.
    """
    for _, tied in groupby(sorted(growths, key=itemgetter(0)), key=itemgetter(0)):
        parts = [part for _, part in tied]
        yield from sorted(parts, key=lambda part: (bytes(part[1]), repr(part[0]))) if len(parts) > 1 else parts


def choose_pack(arrays: Sequence[NDArray[np.generic]], speed: Speed, *, compared: bool = False) -> bytes:
    """A pack with adaptive planes or with fast ones.

    With "balanced" a fast pack may be 0.5% larger than an adaptive one. Adaptive coding takes ten times as long, so that it is
    tried only for small packs, for packs with structure in a sample, and if `compared`.

    Args:
        arrays: As in `encode_pack`.
        speed: As in CompressionConfig.
        compared: Whether to try both whatever the pack is.
    """
    fast = None if speed == "small" else encode_fast_pack(arrays)
    if fast is None:
        return encode_pack(arrays)
    if speed == "fast":
        return fast
    if not (compared or sum(array.nbytes for array in arrays) < _SMALL_PACK or _has_structure(arrays)):
        return fast
    adaptive = encode_pack(arrays)
    return fast if len(fast) <= (1.0 + GROWTH["balanced"][1]) * len(adaptive) else adaptive


def _has_structure(arrays: Sequence[NDArray[np.generic]]) -> bool:
    largest = max(arrays, key=lambda array: array.nbytes).reshape(-1)
    middle = max(largest.size - _SAMPLE, 0) // 2
    sample = [largest[middle : middle + _SAMPLE]]
    return len(encode_pack(sample)) < _STRUCTURE * estimate_pack(sample)
