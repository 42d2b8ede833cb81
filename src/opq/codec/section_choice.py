"""Which weights of a file have fast sections."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from opq.codec.stored_section import Section
from opq.config import Speed

GROWTH: dict[Speed, tuple[float, float]] = {"small": (0.0, 0.0), "balanced": (0.02, 0.005), "fast": (math.inf, math.inf)}
"""How much larger than an adaptive section a fast one may be, and than all adaptive sections all sections, as fractions."""


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
