"""What codes will cost, from statistics alone.

The entropy of the codes' magnitude classes, from the measured magnitudes, is what a coder without context would take. Ours
takes less, by what neighbouring weights say of each other; how much less is found by coding excerpts of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opq.codec.code_stream import encode_codes
from opq.rate_distortion.layers import LayerStatistics
from opq.thread_map import thread_map

SMALLEST_GAIN = 0.05
"""Least share of the contextless bits that a forecast counts on."""

_DIRECT = 16
_GROUP = np.arange(4 * 20)
# Magnitudes below 16 are a class each; above, a class has the same leading three bits, its lower bits alike as good as random.
_CLASS_BITS = np.concatenate([np.zeros(_DIRECT), _GROUP // 4 + 2.0])
_CLASS_START: NDArray[np.int64] = np.concatenate([np.arange(_DIRECT), (4 + _GROUP % 4) << (_GROUP // 4 + 2)])


def contextless_bits(statistics: LayerStatistics, threshold: float, step: float, offset: float) -> float:
    """Bits of the codes of a weight with these statistics, each by itself; arguments as in LayerPlan, in weight units."""
    magnitudes = statistics.magnitudes
    sampled, largest = len(magnitudes), float(magnitudes[-1])
    if largest <= threshold:
        return 0.0
    # Class k > 0 begins at border k - 1; only those that the largest magnitude reaches.
    last = max(int(_CLASS_START.searchsorted(largest / step + offset, side="right")) - 1, 1)
    borders = np.maximum((_CLASS_START[1 : last + 1] - offset) * step, threshold)
    borders[0] = threshold
    # In the magnitudes' own type: NumPy would else turn all of them to float64, which takes longer than the search.
    places = magnitudes.searchsorted(borders.astype(magnitudes.dtype), side="right")
    counts = np.empty(last + 1)
    counts[0], counts[1:-1], counts[-1] = places[0], places[1:] - places[:-1], sampled - places[-1]
    used = counts[counts > 0.0]
    entropy = sampled * math.log2(sampled) - float(used @ np.log2(used))
    raw = sampled - float(counts[0]) + float(counts @ _CLASS_BITS[: last + 1])
    return (entropy + raw) * statistics.count / sampled


@dataclass(frozen=True)
class ContextGain:
    """What the coder takes of a weight's contextless bits: `gain` of them, and `start` bits more for learning the weight."""

    gain: float = 1.0
    start: float = 0.0

    def __post_init__(self) -> None:
        """No weight is taken to cost nothing: an excerpt that ends in zeros tells little of what follows."""
        object.__setattr__(self, "gain", max(self.gain, SMALLEST_GAIN))


def context_gain(excerpts: Sequence[NDArray[np.int32]]) -> ContextGain:
    """The saving for weights whose codes are like these, each of two channels or more; no saving where there are none.

    Each is coded with every other channel and with all. What the other half adds, when the coder has learned, gives the gain;
    what all take beyond it is the start.
    """
    rows = np.array(list(thread_map(_taken_and_contextless, excerpts))).reshape(-1, 4)
    half, end, contextless_half, contextless = rows.sum(axis=0)
    if contextless <= contextless_half:
        return ContextGain()
    gain = (end - half) / (contextless - contextless_half)
    return ContextGain(float(gain), max(float(end - gain * contextless) / len(rows), 0.0))


def _taken_and_contextless(codes: NDArray[np.int32]) -> tuple[float, float, float, float]:
    """Bits taken of every other channel and of all of an excerpt, and the contextless bits of both."""
    half = codes[::2]  # alike in what they hold, as a first and a second half need not be
    bits = contextless_code_bits(codes).reshape(len(codes), -1)
    return 8.0 * len(encode_codes(half)), 8.0 * len(encode_codes(codes)), float(bits[::2].sum()), float(bits.sum())


def contextless_code_bits(codes: NDArray[np.int32]) -> NDArray[np.float64]:
    """Bits of each code, in order, as the shares of their classes have it."""
    magnitudes = np.abs(codes.reshape(-1))
    classes = _CLASS_START.searchsorted(magnitudes, side="right") - 1
    counts = np.bincount(classes)
    with np.errstate(divide="ignore"):
        bits = np.log2(len(classes)) - np.log2(counts) + _CLASS_BITS[: len(counts)]
    bits[1:] += 1.0
    return np.asarray(bits[classes], dtype=np.float64)
