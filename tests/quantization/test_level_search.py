"""Weights of few distinct values as codes with a step or a table of levels."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from opq.errors import WeightError
from opq.quantization.codebook import LARGEST_TABLE, LevelTable, UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor
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
def test_every_representation_is_lossless(weight):
    """With a step or with a table each value comes back bit for bit, and only +0 has code 0."""
    for tensor in find_levels(weight):
        assert same_bits(tensor.values(), weight)
        assert ((tensor.codes == 0) == ((weight == 0) & ~np.signbit(weight))).all()
        assert tensor.dtype == weight.dtype.name


@given(few_valued())
def test_few_values_are_found(weight):
    """A finite weight of twice as many elements as distinct values has codes; a table holds those that are not zero."""
    distinct = np.unique(to_ordinals(weight))
    found = find_levels(weight)
    if 2 * len(distinct) <= weight.size:
        assert found
        for tensor in found:
            if isinstance(tensor.codebook, LevelTable):
                assert same_bits(tensor.codebook.levels, from_ordinals(distinct[distinct != 0], weight.dtype))


@given(
    st.floats(2.0**-60, 2.0**60, width=32),
    arrays.arrays(np.int16, (40, 3), elements=st.integers(-20, 20) | st.integers(-128, 127), fill=st.just(0)),
)
def test_a_step_is_found(step, codes):
    """A weight that is a step times integers of 8 bits gets a step and codes that restore it."""
    codes[0, 0] = 1
    weight = codes.astype(np.float32) * np.float32(step)
    if len(np.unique(weight)) * 2 <= weight.size:
        (grid, *_) = find_levels(weight)
        assert isinstance(grid.codebook, UniformCodebook)
        assert same_bits(grid.values(), weight)


def test_weights_of_many_values_have_no_codes():
    """Random values, NaN and infinities have no codes; a table has at most 65,536 levels."""
    random = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)
    assert find_levels(random) == []
    for bad in (np.nan, np.inf):
        assert find_levels(np.where(random > 0, 1.0, bad).astype(np.float32)) == []
    ramp = np.exp(np.arange(1, LARGEST_TABLE + 2) / 2**14)
    order = np.random.default_rng(0).permutation(3 * LARGEST_TABLE)
    assert find_levels(np.append(np.tile(ramp[1:], 3)[order], ramp[0])) == []
    (table,) = find_levels(np.tile(ramp[1:], 3)[order])
    assert len(table.codebook.levels) == LARGEST_TABLE


def test_negative_zero_is_a_level():
    """A weight times a mask has negative zeros; they are a level, so that every bit comes back."""
    weight = np.array([[-0.0, 0.0, 0.5, -0.0], [0.0, -0.5, -0.0, 0.5]], dtype=np.float32)
    (table,) = find_levels(weight)
    assert same_bits(table.codebook.levels, np.array([-0.5, -0.0, 0.5], dtype=np.float32))
    assert table.codes.tolist() == [[-1, 0, 1, -1], [0, -2, -1, 1]]
    assert same_bits(table.values(), weight)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_ordinals_keep_the_order_of_numbers(kind, data):
    """Ordinals rise with the numbers, distinguish +0 from -0, and convert back to the same bits."""
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
    ("codes", "levels", "problem"),
    [
        ([0], [], "1 to 65,536 floats"),
        ([0], [[1.0]], "1 to 65,536 floats"),
        ([0], [2.0, 1.0], "ascending"),
        ([0], [1.0, 1.0], "ascending"),
        ([0], [0.0, 1.0], r"without 0\.0"),
        ([0], [np.inf], "finite"),
        ([0], [np.nan], "finite"),
        ([2], [-1.0, 1.0], r"codes must lie in \[-1, 1\], got"),
        ([-2], [-1.0, 1.0], r"codes must lie in \[-1, 1\], got"),
    ],
)
def test_an_invalid_table_is_refused(codes, levels, problem):
    """Levels are finite, ascending, distinct and without +0, and codes lie within them."""
    with pytest.raises(WeightError, match=problem):
        CompressedTensor(np.array(codes, dtype=np.int32), LevelTable(np.array(levels, dtype=np.float32)), "float32")


def test_a_table_of_integers_is_refused():
    """Levels are floats of the dtype of the weight."""
    with pytest.raises(WeightError, match="1 to 65,536 floats"):
        LevelTable(np.array([1, 2]))
    with pytest.raises(WeightError, match="levels must be float32, got float64"):
        CompressedTensor(np.array([0], dtype=np.int32), LevelTable(np.array([1.0, 2.0])), "float32")


@pytest.mark.parametrize("step", [0.0, -1.0, np.nan, np.inf, 0.1, 1e39, 1e-50])
def test_an_invalid_step_is_refused(step):
    """A step is positive, finite and a float32 number."""
    with pytest.raises(WeightError, match="step must be positive and a float32 number"):
        UniformCodebook(step)


def test_codes_are_int32_and_dtypes_are_floats():
    """Other codes and dtypes are refused."""
    with pytest.raises(WeightError, match="codes must be int32, got int64"):
        CompressedTensor(np.array([0]), UniformCodebook(1.0), "float32")
    with pytest.raises(WeightError, match="dtype must be one of bfloat16, float16, float32, float64, got 'int8'"):
        CompressedTensor(np.array([0], dtype=np.int32), UniformCodebook(1.0), "int8")


def test_nominal_bits_of_a_table_are_its_width():
    """Each nonzero code takes ceil(log2(number of levels)) bits, and at least one."""
    for count, width in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (255, 8), (256, 8), (257, 9)):
        levels = np.arange(1.0, count + 1)
        tensor = CompressedTensor(np.array([0, 1, count], dtype=np.int32), LevelTable(levels), "float64")
        assert tensor.nominal_bits == 2 * width
        assert tensor.num_kept == 2


@given(few_valued(), st.data())
def test_codes_are_read_in_any_pieces(weight, data):
    """`read_codes` gives any range of the codes in row-major order."""
    for tensor in find_levels(weight):
        read, flat = tensor.read_codes(), tensor.codes.reshape(-1)
        start = data.draw(st.integers(0, flat.size))
        stop = data.draw(st.integers(start, flat.size))
        assert same_bits(read(start, stop), flat[start:stop])
