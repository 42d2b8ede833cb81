"""The bits of codes without contexts, against a direct count."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opq.codec.code_length import contextless_bits, contextless_code_bits
from opq.rate_distortion.layers import LayerStatistics


def class_of(magnitude):
    """(class, raw bits) of a magnitude: below 16 each has a class; larger ones with the same leading three bits share one."""
    below = max(magnitude.bit_length() - 3, 0) if magnitude >= 16 else 0
    return (magnitude >> below, below), below


def bits_by_hand(codes):
    """Entropy of the classes of the magnitudes, the bits within a class, and one for each sign."""
    counts = Counter(class_of(abs(code))[0] for code in codes)
    entropy = -sum(count * math.log2(count / len(codes)) for count in counts.values())
    return entropy + sum(class_of(abs(code))[1] + (code != 0) for code in codes)


@given(st.integers(0, 999), st.integers(1, 400), st.floats(0.002, 3.0), st.floats(0.1, 0.9), st.integers(1, 5))
def test_contextless_bits_are_entropy_signs_and_bits_within_classes(seed, size, step, offset, times):
    """Ascending magnitudes give the bits of the codes; a sample counts for the whole weight."""
    weight = np.random.default_rng(seed).laplace(size=size)
    threshold = (1.0 - offset) * step
    levels = np.maximum(np.floor(np.abs(weight) / step + offset), 1.0)
    codes = np.where(np.abs(weight) > threshold, np.sign(weight) * levels, 0.0).astype(int)
    statistics = LayerStatistics((times, size), 1.0, np.ones(times), 0, *[np.sort(np.abs(weight))] * 2, 1, np.zeros(0))
    wanted = times * bits_by_hand(codes.tolist())
    assert contextless_bits(statistics, threshold, step, offset) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@given(st.lists(st.integers(-5000, 5000) | st.integers(-3, 3), min_size=1, max_size=200))
def test_bits_of_each_code_add_up_to_the_same(codes):
    """The bits per code add up to the whole, and equal magnitudes have equal bits."""
    found = contextless_code_bits(np.array(codes, dtype=np.int32))
    assert float(found.sum()) == pytest.approx(bits_by_hand(codes), rel=1e-9, abs=1e-9)
    assert len({(abs(code), float(bits)) for code, bits in zip(codes, found, strict=True)}) == len({abs(c) for c in codes})
