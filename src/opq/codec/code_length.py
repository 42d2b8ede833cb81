"""Predict the bits of codes from statistics, without encoding the weight.

The zero-order entropy of magnitude classes, computed from the measured magnitudes, is the size with a coder without contexts.
The contexts of this coder, which are neighbouring weights, save a part of it. That part is measured by encoding excerpts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opq.codec.code_stream import encode_codes
from opq.rate_distortion.layers import LayerStatistics
from opq.thread_map import thread_map

SMALLEST_GAIN = 0.05
"""The smallest gain that a prediction assumes."""

_DIRECT = 16
_GROUP = np.arange(4 * 20)
# Each magnitude below 16 is a class. Above, magnitudes with the same leading three bits are a class; their lower bits are
# stored raw.
_CLASS_BITS = np.concatenate([np.zeros(_DIRECT), _GROUP // 4 + 2.0])
_CLASS_START: NDArray[np.int64] = np.concatenate([np.arange(_DIRECT), (4 + _GROUP % 4) << (_GROUP // 4 + 2)])


def contextless_bits(statistics: LayerStatistics, threshold: float, step: float, offset: float) -> float:
    """Predict the bits of a weight's codes without contexts: entropy of classes, raw bits, and signs.

    Args:
        statistics: Statistics of the weight.
        threshold: Pruning threshold in weight units, >= 0.
        step: Quantization step in weight units, > 0.
        offset: Rounding offset, 0..1.

    Returns:
        Bits of the whole weight; 0.0 if all codes are 0.
    """
    magnitudes = statistics.magnitudes
    sampled, largest = len(magnitudes), float(magnitudes[-1])
    if largest <= threshold:
        return 0.0
    # Class k > 0 begins at borders[k - 1]; classes above the largest magnitude are left out.
    last = max(int(_CLASS_START.searchsorted(largest / step + offset, side="right")) - 1, 1)
    borders = np.maximum((_CLASS_START[1 : last + 1] - offset) * step, threshold)
    borders[0] = threshold
    # Borders in the dtype of the magnitudes: otherwise NumPy converts all of them to float64, which is slower than the search.
    ends = magnitudes.searchsorted(borders.astype(magnitudes.dtype), side="right")
    counts = np.empty(last + 1)
    counts[0], counts[1:-1], counts[-1] = ends[0], ends[1:] - ends[:-1], sampled - ends[-1]
    entropy = zero_order_entropy(counts)
    raw = sampled - float(counts[0]) + float(counts @ _CLASS_BITS[: last + 1])
    return (entropy + raw) * statistics.count / sampled


def zero_order_entropy(counts: NDArray[Any]) -> float:
    """Zero-order entropy of a sequence of symbols: n log2(n) - sum of c log2(c), with n the sum of all counts c.

    Args:
        counts: How often each symbol occurs, >= 0.

    Returns:
        Bits of the whole sequence; 0.0 if it is empty.
    """
    used = counts[counts > 0]
    total = float(used.sum())
    return total * math.log2(total) - float(used @ np.log2(used)) if total else 0.0


@dataclass(frozen=True)
class ContextGain:
    """Effect of contexts: a weight takes gain * (contextless bits) + start bits.

    Args:
        gain: At least SMALLEST_GAIN, to which smaller values are raised.
        start: Bits that the adaptive models need to adapt to the weight, >= 0.
    """

    gain: float = 1.0
    start: float = 0.0

    def __post_init__(self) -> None:
        """Raise a small gain, because an excerpt that ends in zeros does not show what the rest of the weight costs."""
        object.__setattr__(self, "gain", max(self.gain, SMALLEST_GAIN))


def context_gain(excerpts: Sequence[NDArray[np.int32]]) -> ContextGain:
    """Measure the effect of contexts on excerpts of similar weights.

    Each excerpt is encoded twice: every second channel, and all channels. The bits of the additional channels determine the
    gain, because the models have adapted by then. The start is what all channels take beyond this gain.

    Args:
        excerpts: int32 codes, each of at least two channels.

    Returns:
        The mean effect; ContextGain() if there is no excerpt.
    """
    rows = np.array(list(thread_map(_coded_and_contextless_bits, excerpts))).reshape(-1, 4)
    coded_half, coded, contextless_half, contextless = rows.sum(axis=0)
    if contextless <= contextless_half:
        return ContextGain()
    gain = (coded - coded_half) / (contextless - contextless_half)
    return ContextGain(float(gain), max(float(coded - gain * contextless) / len(rows), 0.0))


def _coded_and_contextless_bits(codes: NDArray[np.int32]) -> tuple[float, float, float, float]:
    """Coded bits of every second channel and of all channels of an excerpt, and the contextless bits of both."""
    half = codes[::2]  # every second channel is a better sample than the first half
    bits = contextless_code_bits(codes).reshape(len(codes), -1)
    return 8.0 * len(encode_codes(half)), 8.0 * len(encode_codes(codes)), float(bits[::2].sum()), float(bits.sum())


def contextless_code_bits(codes: NDArray[np.int32]) -> NDArray[np.float64]:
    """Bits of each code without contexts.

    Args:
        codes: int32, any shape with at least one element.

    Returns:
        (codes.size,) float64, in row-major order: -log2 of the frequency of its class, plus raw bits and sign.
    """
    magnitudes = np.abs(codes.reshape(-1))
    classes = _CLASS_START.searchsorted(magnitudes, side="right") - 1
    counts = np.bincount(classes)
    with np.errstate(divide="ignore"):
        bits = np.log2(len(classes)) - np.log2(counts) + _CLASS_BITS[: len(counts)]
    bits[1:] += 1.0
    return np.asarray(bits[classes], dtype=np.float64)
