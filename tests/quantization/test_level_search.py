"""Weights of few distinct values: found, and given back bit for bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from opq.errors import WeightError
from opq.quantization.compressed_tensor import LARGEST_TABLE, CompressedTensor
from opq.quantization.float_order import from_ordinals, to_ordinals
from opq.quantization.level_search import find_levels

KINDS = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=7)


@st.composite
def few_valued(draw):
    """A weight drawn from up to nine values, among them negative zeros, subnormal and huge numbers."""
    kind = draw(st.sampled_from(KINDS))
    values = st.floats(width=16, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1e-7, 3.0])
    pool = np.array(draw(st.lists(values, min_size=1, max_size=9))).astype(kind)
    return pool[draw(arrays.arrays(np.int64, SHAPES, elements=st.integers(0, len(pool) - 1)))]


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(few_valued())
def test_every_way_gives_the_weight_back(weight):
    """Grid or table, each value comes back bit for bit, and code 0 is +0 alone."""
    for tensor in find_levels(weight):
        assert same_bits(tensor.values(), weight)
        assert ((tensor.codes == 0) == ((weight == 0) & ~np.signbit(weight))).all()
        assert tensor.dtype == weight.dtype.name


@given(few_valued())
def test_few_values_are_found(weight):
    """A finite weight of twice as many elements as distinct values has codes; a table holds those that are not zero."""
    distinct = np.unique(to_ordinals(weight))
    ways = find_levels(weight)
    if 2 * len(distinct) <= weight.size:
        assert ways
        for tensor in ways:
            assert tensor.levels is None or same_bits(tensor.levels, from_ordinals(distinct[distinct != 0], weight.dtype))


@given(
    st.floats(2.0**-60, 2.0**60, width=32),
    arrays.arrays(np.int16, (40, 3), elements=st.integers(-20, 20) | st.integers(-128, 127), fill=st.just(0)),
)
def test_a_grid_is_found(step, codes):
    """What was quantized elsewhere, a step times integers of 8 bits, is codes and a step that give it back."""
    codes[0, 0] = 1
    weight = codes.astype(np.float32) * np.float32(step)
    if len(np.unique(weight)) * 2 <= weight.size:
        (grid, *_) = find_levels(weight)
        assert grid.levels is None
        assert same_bits(grid.values(), weight)


def test_what_cannot_be_few_is_not():
    """Random values, NaN and infinities have no codes here; 65,536 levels are the most."""
    random = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)
    assert find_levels(random) == []
    for bad in (np.nan, np.inf):
        assert find_levels(np.where(random > 0, 1.0, bad).astype(np.float32)) == []
    ramp = np.exp(np.arange(1, LARGEST_TABLE + 2) / 2**14)
    order = np.random.default_rng(0).permutation(3 * LARGEST_TABLE)
    assert find_levels(np.append(np.tile(ramp[1:], 3)[order], ramp[0])) == []
    (table,) = find_levels(np.tile(ramp[1:], 3)[order])
    assert len(table.levels) == LARGEST_TABLE


def test_pruned_weights_keep_their_negative_zeros():
    """W * mask leaves negative zeros; they are a level of their own, so that every bit comes back."""
    weight = np.array([[-0.0, 0.0, 0.5, -0.0], [0.0, -0.5, -0.0, 0.5]], dtype=np.float32)
    (table,) = find_levels(weight)
    assert same_bits(table.levels, np.array([-0.5, -0.0, 0.5], dtype=np.float32))
    assert table.codes.tolist() == [[-1, 0, 1, -1], [0, -2, -1, 1]]
    assert same_bits(table.values(), weight)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_ordinals_are_the_order_of_numbers(kind, data):
    """Ordinals rise as numbers do, tell +0 from -0, and lead back to the same bits."""
    dtype = np.dtype(kind)
    raw = data.draw(arrays.arrays(f"u{dtype.itemsize}", 20))
    numbers = raw.view(dtype)
    ordinals = to_ordinals(numbers)
    assert same_bits(from_ordinals(ordinals, dtype), numbers)
    with np.errstate(invalid="ignore"):  # signalling NaNs among the numbers
        wide = numbers.astype(np.float64)
    less = wide[:, None] < wide[None, :]
    assert (ordinals[:, None] < ordinals[None, :])[less].all()
    assert to_ordinals(np.array([0.0, -0.0]).astype(dtype)).tolist() == [0, -1]


@pytest.mark.parametrize(
    ("codes", "step", "levels", "problem"),
    [
        ([0], None, None, "a step or levels"),
        ([0], 1.0, [1.0], "a step or levels"),
        ([0], None, [], "1 to 65,536 values"),
        ([0], None, [[1.0]], "1 to 65,536 values"),
        ([0], None, [2.0, 1.0], "ascending"),
        ([0], None, [1.0, 1.0], "ascending"),
        ([0], None, [0.0, 1.0], "0.0 is none"),
        ([0], None, [np.inf], "finite"),
        ([0], None, [np.nan], "finite"),
        ([2], None, [-1.0, 1.0], "codes must lie in -1 to 1"),
        ([-2], None, [-1.0, 1.0], "codes must lie in -1 to 1"),
    ],
)
def test_a_codebook_that_is_none_is_refused(codes, step, levels, problem):
    """A weight has a step or a table, and codes within it."""
    table = None if levels is None else np.array(levels, dtype=np.float32)
    with pytest.raises(WeightError, match=problem):
        CompressedTensor(np.array(codes, dtype=np.int32), step, "float32", table)


def test_nominal_bits_of_a_table_are_its_width():
    """Each kept code pays for telling one level of all from another, in whole bits, and a single level one bit."""
    for count, width in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (255, 8), (256, 8), (257, 9)):
        levels = np.arange(1.0, count + 1)
        tensor = CompressedTensor(np.array([0, 1, count], dtype=np.int32), None, "float64", levels)
        assert tensor.code_bits == 2 * width
