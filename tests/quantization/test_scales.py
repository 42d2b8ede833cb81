"""Scales of rows and columns: the steps that they give, and the codebook of these steps."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from opq import dtypes
from opq.errors import WeightError
from opq.quantization import codebook
from opq.quantization.codebook import ScaledCodebook, UniformCodebook, codebook_of
from opq.quantization.compressed_tensor import CompressedTensor
from opq.rate_distortion import scales

SCALES = st.integers(-127, 127)
STEPS = st.floats(2.0**-60, 2.0**60, width=32)


def axes(size):
    """Scales of `size` rows or columns, or none."""
    return st.none() | hnp.arrays(np.int8, size, elements=SCALES)


@st.composite
def cases(draw, step=STEPS):
    """A shape of at least one dimension, a step, and scales of its rows and columns."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=5))
    return shape, draw(step), draw(axes(shape[0])), draw(axes(math.prod(shape[1:])))


def step_at(step, exponent):
    """The documented step of an element, in exact integer arithmetic as far as possible."""
    multipliers = [round(2.0 ** (23 + k / 8)) for k in range(8)]
    assert [float(np.float32(2.0 ** (k / 8))) * 2**23 for k in range(8)] == multipliers
    return float(np.float32(step * multipliers[exponent % 8] / 2**23)) * 2.0 ** math.floor(exponent / 8)


@given(cases())
def test_steps_follow_the_definition(case):
    """Each step is the float32 product of the step and 2^(e mod 8 / 8), times the exact power of two of e div 8."""
    shape, step, rows, columns = case
    like = scales.steps_like(step, rows, columns, shape)
    assert like is step if rows is columns is None else like.dtype == np.float32
    found = np.broadcast_to(like, shape).reshape(shape[0], -1)
    for i in range(shape[0]):
        for j in range(found.shape[1]):
            e = (0 if rows is None else int(rows[i])) + (0 if columns is None else int(columns[j]))
            assert float(found[i, j]) == step_at(step, e)


@given(cases(), st.integers(-3, 3))
def test_eight_eighths_are_a_factor_of_two(case, octaves):
    """Scales that are 8 higher give twice the steps, exactly; scales of 0 give the step itself."""
    shape, step, rows, columns = case
    rows = np.zeros(shape[0], dtype=int) if rows is None else rows.astype(int)
    moved = scales.steps(step, rows + 8 * octaves, columns)
    np.testing.assert_array_equal(moved, scales.steps(step, rows, columns) * 2.0**octaves)
    assert scales.steps(step, np.zeros(3, dtype=int), None).tolist() == [[step]] * 3


@given(STEPS, st.integers(-240, 240))
def test_a_higher_scale_is_a_larger_step(step, exponent):
    """Steps rise with the scale, so that the lowest and the highest decide whether all are normal."""
    low, high = scales.steps(step, np.array([exponent, exponent + 1]), None)[:, 0]
    assert 1.08 < float(high) / float(low) < 1.1


@given(hnp.arrays(np.float64, st.integers(1, 30), elements=st.just(0.0) | st.floats(1e-30, 1e30)))
def test_measured_scales_are_the_nearest_ones(means):
    """A row's scale is the integer nearest to 8 log2 of its mean over the geometric mean, within 127; 0 for a row of zeros."""
    found = scales.measured_rows(means)
    assert found.dtype == np.int8
    alive = means > 0.0
    assert not found[~alive].any()
    if alive.any():
        wanted = 8.0 * (np.log2(means[alive]) - np.log2(means[alive]).mean())
        assert (np.abs(found[alive] - wanted.clip(-127, 127)) <= 0.5 + 1e-9).all()


@given(cases(st.floats(2.0**-10, 2.0**10, width=32)), st.sampled_from(sorted(dtypes.COMPRESSIBLE)), st.integers(0, 99))
def test_values_are_products(case, kind, seed):
    """The value of a code is its own step times it, rounded to float32 (float64), then to the dtype; in blocks or at once."""
    shape, step, rows, columns = case
    codes = np.random.default_rng(seed).integers(-(2**20), 2**20, shape, dtype=np.int32)
    tensor = CompressedTensor(codes, codebook_of(step, rows, columns), kind)
    work = np.float64 if kind == "float64" else np.float32
    with np.errstate(over="ignore"):
        exact = codes * np.float64(scales.steps_like(step, rows, columns, shape))
        expected = exact.astype(work).astype(dtypes.NUMPY[kind])
    assert tensor.values().tobytes() == expected.tobytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codebook, "_BLOCK", 4)
        assert tensor.values().tobytes() == expected.tobytes()
        finite = np.isfinite(expected.astype(np.float64)).all()
        assert tensor.codebook.represents(codes, kind) == finite
    for start in range(shape[0]):
        part = tensor.channels(start, shape[0])
        assert part.values().tobytes() == expected[start:].tobytes()


@given(cases())
def test_scales_of_zero_are_no_scales(case):
    """An axis whose scales are all 0 has none, and without any the codebook is that of the step alone."""
    shape, step, rows, columns = case
    found = codebook_of(step, rows, columns)
    kept = [None if axis is None or not axis.any() else axis.tolist() for axis in (rows, columns)]
    if kept == [None, None]:
        assert found == UniformCodebook(step)
    else:
        assert [None if axis is None else axis.tolist() for axis in (found.rows, found.columns)] == kept
    none = codebook_of(step, np.zeros(shape[0], dtype=np.int8), None)
    assert none == UniformCodebook(step)


def test_values_that_vanish_or_overflow_are_not_represented():
    """A codebook represents codes if each value, at its own row and column, is finite and not zero."""
    codes = np.array([[0, 3], [1, 0]], dtype=np.int32)
    for rows, represented in (([0, 0], True), ([120, 0], False), ([0, -127], False), ([0, 8], True)):
        assert codebook_of(2.0**-14, rows, np.array([1, 120])).represents(codes, "float16") is represented
    assert codebook_of(1.0, [1, 127], None).represents(np.array([[5], [0]], dtype=np.int32), "float16")


@pytest.mark.parametrize(
    ("rows", "columns", "problem"),
    [
        (None, None, "must be int8 scales in one dimension, not all 0"),
        (np.zeros(2, dtype=np.int8), None, "not all 0"),
        (np.ones(2, dtype=np.int8), np.zeros(3, dtype=np.int8), "not all 0"),
        (np.ones(2, dtype=np.int16), None, "must be int8"),
        (np.ones((2, 1), dtype=np.int8), None, "in one dimension"),
        (np.array([-128, 1], dtype=np.int8), None, r"rows must lie in \[-127, 127\], got -128 to 1"),
    ],
)
def test_malformed_scales_are_refused(rows, columns, problem):
    """Scales that are no scales are a WeightError that names the rule."""
    with pytest.raises(WeightError, match=problem):
        ScaledCodebook(1.0, rows, columns)


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ((3, 3), "rows must be 3 integers, got 2"),
        ((2, 4), "columns must be 4 integers, got 3"),
        ((2,), "columns must be 1 integers, got 3"),
        ((), "rows need at least one dimension"),
    ],
)
def test_scales_of_another_shape_are_refused(shape, problem):
    """A weight with other numbers of rows or columns than scales is a WeightError."""
    found = codebook_of(1.0, [1, 2], [3, 4, 5])
    CompressedTensor(np.zeros((2, 3, 1), dtype=np.int32), found, "float32")
    with pytest.raises(WeightError, match=problem):
        CompressedTensor(np.zeros(shape, dtype=np.int32), found, "float32")
