"""Codes and values under a plan, the same for NumPy and for torch."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from opq.errors import PlanError, WeightError
from opq.quantization.chunked import code_pieces
from opq.quantization.compressed_tensor import compress_tensor
from opq.quantization.quantizer import LARGEST_CODE, dequantize, fake_quantize, mask, quantize
from opq.rate_distortion.layer_plan import LayerPlan

shapes = hnp.array_shapes(min_dims=0, max_dims=4, max_side=6)
values = st.floats(-8.0, 8.0, width=32)
weights = hnp.arrays(np.float32, shapes, elements=values)


def make_plan(shape, step, threshold=0.0, rounding_offset=0.5, num_kept=None, max_codes=None, **scales):
    return LayerPlan(shape, float(np.float32(step)), threshold, rounding_offset, 0.0, 0.0, num_kept, max_codes, **scales)


def scales(size):
    """Scales of `size` rows or columns, or none."""
    return st.none() | st.lists(st.integers(-16, 16), min_size=size, max_size=size).map(tuple)


@st.composite
def cases(draw, dtype=np.float32):
    """A weight and a plan for it, of the joint mode, with or without scales, or of the two-stage mode."""
    weight = draw(weights).astype(dtype)
    step = draw(st.floats(0.01, 4.0))
    if draw(st.booleans()):
        offset = draw(st.floats(0.01, 0.6))
        found = {}
        if weight.ndim:
            found = {"rows": draw(scales(len(weight))), "columns": draw(scales(weight[0].size))}
        return weight, make_plan(weight.shape, step, float(np.float32(step)) * (1.0 - offset), offset, **found)
    channels = weight.shape[0] if weight.ndim else 1
    limits = tuple(draw(st.lists(st.integers(1, 50), min_size=channels, max_size=channels)))
    return weight, make_plan(weight.shape, step, num_kept=draw(st.integers(0, weight.size)), max_codes=limits)


def reference_codes(weight, plan):
    """The definition, applied to one weight at a time, in float32 as specified."""
    kept = np.asarray(mask(weight, plan)).reshape(-1)
    rows = weight.astype(np.float32).reshape(-1)
    steps = np.broadcast_to(np.float32(plan.steps), weight.shape).reshape(-1)
    limits = np.repeat(
        plan.max_codes or (LARGEST_CODE,) * (weight.shape[0] if weight.ndim else 1),
        weight.size // (weight.shape[0] if weight.ndim else 1),
    )
    codes = []
    for w, step, keep, limit in zip(rows, steps, kept, limits, strict=True):
        level = min(np.floor(np.abs(w) / step + np.float32(plan.rounding_offset)), np.float32(limit))
        codes.append(int(np.sign(w) * max(np.float32(1.0), level)) if keep else 0)
    return np.array(codes, dtype=np.int32).reshape(weight.shape)


@given(cases())
def test_codes_follow_the_definition(case):
    """Code = sign(w) max(1, floor(|w|/step + offset)), clipped at max_codes, if kept; 0 if pruned."""
    weight, plan = case
    codes = quantize(weight, plan)
    assert codes.dtype == np.int32
    np.testing.assert_array_equal(codes, reference_codes(weight, plan))


@given(cases())
def test_zero_means_pruned(case):
    """A code is zero if and only if the mask is False or the weight is zero."""
    weight, plan = case
    np.testing.assert_array_equal(quantize(weight, plan) != 0, mask(weight, plan) & (weight != 0))


@pytest.mark.slow
@given(weights, st.integers(0, 1296))
def test_num_kept_is_met_exactly(weight, kept):
    """The mask keeps num_kept weights, the largest magnitudes, and of equal ones the first."""
    kept = min(kept, weight.size)
    chosen = np.asarray(mask(weight, make_plan(weight.shape, 1.0, num_kept=kept)))
    assert chosen.sum() == kept
    magnitude = np.abs(weight)
    if 0 < kept < weight.size:
        border = magnitude[chosen].min()
        assert border >= magnitude[~chosen].max()
        ties = chosen.reshape(-1)[magnitude.reshape(-1) == border]
        assert (np.diff(ties.astype(int)) <= 0).all()


@given(weights, st.floats(0.0, 8.0, width=32))
def test_the_threshold_itself_is_pruned(weight, threshold):
    """Without a count, magnitudes at or under the threshold are pruned, and no others."""
    np.testing.assert_array_equal(mask(weight, make_plan(weight.shape, 1.0, threshold)), np.abs(weight) > threshold)


@given(cases())
def test_quantizing_is_idempotent(case):
    """A quantized weight gets the same codes again."""
    weight, plan = case
    once = fake_quantize(weight, plan)
    fields = {"max_codes": plan.max_codes, "rows": plan.rows, "columns": plan.columns}
    again = quantize(once, make_plan(weight.shape, plan.step, plan.step / 2.0, **fields))
    np.testing.assert_array_equal(again, quantize(weight, plan))


@given(cases())
def test_the_error_of_kept_weights_is_at_most_a_step(case):
    """Without max_codes a kept weight changes by at most a step; its sign never changes."""
    weight, plan = case
    value = fake_quantize(weight, plan)
    kept = np.asarray(mask(weight, plan))
    assert (np.sign(value[kept]) == np.sign(weight[kept])).all()
    if plan.max_codes is None:
        assert (np.abs(value - weight) <= np.float32(plan.steps) * 1.0001)[kept].all()


@given(cases(), st.sampled_from(["float16", "bfloat16", "float32", "float64"]))
def test_values_have_the_dtype_of_the_weight(case, name):
    """Values have the weight's dtype, and are step * code rounded to float32 (float64), then to that dtype."""
    weight, plan = case
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    weight = weight.astype(dtype)
    value = fake_quantize(weight, plan)
    assert value.dtype == dtype
    work = np.float64 if name == "float64" else np.float32
    expected = (quantize(weight, plan).astype(work) * np.asarray(plan.steps, dtype=work)).astype(dtype)
    assert value.tobytes() == expected.tobytes()
    tensor = compress_tensor(weight, plan)
    assert (tensor.dtype, tensor.shape) == (name, weight.shape)
    assert tensor.values().tobytes() == value.tobytes()


@given(cases(), st.sampled_from(["float16", "bfloat16", "float32", "float64"]))
def test_torch_gives_the_same_codes(case, name):
    """NumPy and torch give the same codes and bit-equal values, for every dtype."""
    torch = pytest.importorskip("torch")
    weight, plan = case
    array = weight.astype(np.dtype(getattr(ml_dtypes, name, None) or name))
    tensor = torch.from_numpy(np.array(weight)).to(getattr(torch, name)).reshape(weight.shape)
    np.testing.assert_array_equal(quantize(tensor, plan).numpy(), quantize(array, plan))
    np.testing.assert_array_equal(mask(tensor, plan).numpy(), mask(array, plan))
    ours = fake_quantize(tensor, plan)
    assert ours.dtype == tensor.dtype
    assert ours.reshape(-1).view(torch.uint8).numpy().tobytes() == fake_quantize(array, plan).tobytes()


@given(hnp.arrays(np.int32, shapes, elements=st.integers(-LARGEST_CODE, LARGEST_CODE)), st.floats(1e-3, 10.0))
def test_dequantizing_is_one_product(codes, step):
    """Every code up to 2^24 - 1 becomes the float32 nearest to step * code."""
    step = float(np.float32(step))
    exact = codes.astype(np.float64) * step  # 24 bits times 24 bits fit in float64
    np.testing.assert_array_equal(dequantize(codes, step, np.float32), exact.astype(np.float32))


@pytest.mark.parametrize("rounding", ["deadzone", "compensated"])
@given(cases(), st.data())
def test_a_row_times_a_power_of_two_with_its_scale_keeps_the_codes(rounding, case, data):
    """A row times 2^m, with 8 m added to its scale, has the same codes, and values that are 2^m times as large."""
    weight, plan = case
    assume(weight.ndim and plan.num_kept is None)
    plan = replace(plan, rounding=rounding)
    row, octaves = data.draw(st.integers(0, len(weight) - 1)), data.draw(st.integers(-6, 6))
    moved = list(plan.rows or (0,) * len(weight))
    moved[row] += 8 * octaves
    scaled = weight.copy()
    scaled[row] *= 2.0**octaves
    other = replace(plan, rows=tuple(moved))
    np.testing.assert_array_equal(quantize(scaled, other), quantize(weight, plan))
    values = fake_quantize(weight, plan)
    values[row] *= 2.0**octaves
    assert fake_quantize(scaled, other).tobytes() == values.tobytes()


@pytest.mark.parametrize("rounding", ["deadzone", "compensated"])
@given(cases(), st.sampled_from(["float32", "float64", "float16"]), st.data())
def test_a_scale_of_zero_changes_nothing(rounding, case, kind, data):
    """A row whose scale is 0 has the codes that it has without scales; a plan whose scales are all 0 is one without."""
    weight, plan = case
    assume(weight.ndim and plan.num_kept is None)
    weight = weight.astype(kind)
    without = replace(plan, rounding=rounding, rows=None, columns=None)
    zeros = replace(without, rows=(0,) * len(weight), columns=(0,) * weight[0].size)
    assert (zeros, zeros.rows, zeros.columns) == (without, None, None)
    row = data.draw(st.integers(0, len(weight) - 1))
    others = replace(without, rows=tuple(0 if i == row else 5 for i in range(len(weight))))
    np.testing.assert_array_equal(quantize(weight, others)[row], quantize(weight, without)[row])
    np.testing.assert_array_equal(mask(weight, others)[row], mask(weight, without)[row])


@given(cases())
def test_the_threshold_is_scaled_as_the_step_is(case):
    """Magnitudes over (step of the element / step) are pruned up to the threshold, and no others."""
    weight, plan = case
    assume(plan.num_kept is None)
    relative = np.abs(weight) / (np.float32(plan.steps) / np.float32(plan.step))
    np.testing.assert_array_equal(mask(weight, plan), relative > np.float32(plan.threshold))


@given(cases(), st.data())
def test_codes_of_rows_are_those_of_the_weight(case, data):
    """A weight of which only some rows are read has the codes of the whole weight, also with scales."""
    weight, plan = case
    assume(weight.ndim)
    start = data.draw(st.integers(0, weight.size - 1))
    stop = data.draw(st.integers(start + 1, weight.size))
    pieces = code_pieces(lambda first, last: weight[first:last], plan)
    np.testing.assert_array_equal(pieces(start, stop), quantize(weight, plan).reshape(-1)[start:stop])


def test_the_largest_code_is_that_of_each_step():
    """With scales a value is clipped where its own step times the code would leave the dtype."""
    weight = np.full((3, 2), 65504.0, dtype=np.float16)
    plan = make_plan((3, 2), 300.0, 150.0, rows=(0, 20, -20), columns=(0, 7))
    with np.errstate(over="raise"):
        values = fake_quantize(weight, plan).astype(np.float64)
    assert (values > 0.9 * 65504.0 - plan.steps.max()).all()
    np.testing.assert_array_equal(quantize(weight, plan), np.floor(65504.0 / plan.steps.astype(np.float64)))
    with pytest.raises(WeightError, match=r"step \(=76800\) must be at most 65504, the largest float16"):
        quantize(weight, make_plan((3, 2), 300.0, rows=(0, 64, 0)))


@pytest.mark.parametrize(
    ("name", "largest"), [("float16", 65504.0), ("bfloat16", 3.38e38), ("float32", 3.4e38), ("float64", 1.7e308)]
)
def test_values_stay_finite(name, largest):
    """A weight near the largest number of its dtype is rounded down, not to infinity."""
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    weight = np.array([largest, -largest, 0.0], dtype=dtype)
    step = float(np.float32(min(largest / 1.3, 2.0**127)))
    plan = make_plan(weight.shape, step)
    if largest / step > LARGEST_CODE:  # no step that float32 holds is coarse enough: an error, not infinity
        with pytest.raises(WeightError, match="too small for its largest magnitude"):
            fake_quantize(weight, plan)
        weight = np.array([LARGEST_CODE * step, -LARGEST_CODE * step, 0.0], dtype=dtype)
    with np.errstate(over="ignore"):
        value = fake_quantize(weight, plan).astype(np.float64)
    assert np.isfinite(value).all()
    assert np.sign(value).tolist() == [1, -1, 0]


def test_a_step_beyond_the_dtype_is_refused():
    """A step above the largest number of the dtype is a WeightError."""
    with pytest.raises(WeightError, match=r"step \(=.*\) must be at most .*, the largest float"):
        quantize(np.array([6e4], dtype=np.float16), make_plan((1,), 1e5))


def test_a_plan_for_another_shape_is_refused():
    """A weight of another shape than the plan's is a PlanError."""
    with pytest.raises(PlanError, match=r"expected a weight of shape \(2, 3\), got \(3, 2\)"):
        quantize(np.ones((3, 2), dtype=np.float32), make_plan((2, 3), 1.0))


def test_too_small_a_step_is_refused():
    """A code of 2^24 or more is a WeightError, since float32 does not hold every such integer."""
    with pytest.raises(WeightError, match="is too small for its largest magnitude"):
        quantize(np.array([1e6], dtype=np.float32), make_plan((1,), 1e-3))


@given(cases())
def test_nominal_bits_count_the_codebook_of_each_channel(case):
    """Each nonzero code takes ceil(log2(2 m)) bits, m the largest code of its channel."""
    weight, plan = case
    tensor = compress_tensor(weight, plan)
    rows = np.abs(tensor.codes).reshape(weight.shape[0] if weight.ndim else 1, -1)
    expected = sum(np.count_nonzero(row) * np.ceil(np.log2(2.0 * row.max())) for row in rows if row.any())
    assert tensor.nominal_bits == pytest.approx(expected)
    assert tensor.num_kept == np.count_nonzero(tensor.codes)
