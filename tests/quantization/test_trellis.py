"""Trellis-coded quantization: the codes of least squared error among those that the states allow."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from thoroughness import examples

from opq.errors import WeightError
from opq.quantization import trellis
from opq.quantization.chunked import code_pieces
from opq.quantization.codebook import LevelTable, UniformCodebook, codebook_of
from opq.quantization.compressed_tensor import CompressedTensor, compress_tensor
from opq.quantization.quantizer import fake_quantize, mask, quantize
from opq.rate_distortion.layer_plan import LayerPlan

shapes = st.tuples(st.integers(1, 9), st.integers(1, 40))


def draw(shape, seed, kind=np.float32):
    return np.random.default_rng(seed).laplace(scale=0.1, size=shape).astype(kind)


def plan_for(shape, step, **fields):
    return LayerPlan(shape, float(np.float32(step)), 0.0, 0.5, 0.0, 0.0, rounding="trellis", **fields)


def scales_of(shape, seed):
    rng = np.random.default_rng(seed)
    return {axis: tuple(rng.integers(-8, 9, size).tolist()) for axis, size in zip(("rows", "columns"), shape, strict=True)}


def plan_with_scales(shape, step, seed):
    return plan_for(shape, step, **(scales_of(shape, seed) if seed % 2 else {}))


def states_of(row):
    """The state before each code of a row, by the documented machine; None where a code is not of the state's quantizer."""
    s2 = s1 = s0 = 0
    found = []
    for n in map(abs, row.tolist()):
        found.append((s2, s1, s0) if n == 0 or n % 2 == s0 else None)
        s2, s1, s0 = s1, s0, ((n + s0) // 2 ^ s1 ^ s2) & 1
    return found


@given(shapes, st.integers(0, 99), st.floats(0.01, 0.5))
def test_codes_follow_the_states(shape, seed, step):
    """In every row a code is even in quantizer 0, and odd or 0 in quantizer 1. The first state is 0."""
    codes = quantize(draw(shape, seed), plan_with_scales(shape, step, seed))
    assert codes.dtype == np.int32
    assert all(None not in states_of(row) for row in codes)


@given(st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=5))
@examples(60)
def test_no_allowed_codes_have_less_error(row):
    """Of all codes that the states allow, and that keep zeros, none have less squared error."""
    weight = np.array([row], dtype=np.float32)
    found = quantize(weight, plan_for(weight.shape, 1.0))

    def error(codes):
        return float(np.square(weight[0].astype(np.float64) - codes).sum())

    near = [sorted(range(-9, 10), key=lambda n, w=w: abs(n - w))[:6] if w else [0] for w in row]
    best = min(error(np.array(codes)) for codes in product(*near) if None not in states_of(np.array(codes)))
    assert error(found[0]) <= best + 1e-4


@given(shapes, st.integers(0, 99), st.floats(0.01, 0.5), st.sampled_from(["float32", "float64", "float16"]))
def test_torch_gives_the_same_codes(shape, seed, step, kind):
    """PyTorch gives the codes that NumPy gives, for every dtype, with and without scales."""
    torch = pytest.importorskip("torch")
    weight, plan = draw(shape, seed, kind), plan_with_scales(shape, step, seed)
    codes = quantize(torch.from_numpy(weight), plan)
    assert codes.dtype == torch.int32
    assert np.array_equal(quantize(weight, plan), codes.numpy())


@pytest.mark.parametrize("step", [0.25, 1.0])
def test_torch_breaks_ties_alike(step):
    """Weights at the borders of codes have the same codes in PyTorch and NumPy."""
    torch = pytest.importorskip("torch")
    weight = np.random.default_rng(0).integers(-12, 13, (40, 60)).astype(np.float32) / 4
    plan = plan_for(weight.shape, step)
    assert np.array_equal(quantize(weight, plan), quantize(torch.from_numpy(weight), plan).numpy())


@given(shapes, st.integers(0, 99), st.floats(0.01, 0.5), st.data())
def test_rows_are_quantized_independently(shape, seed, step, data):
    """A row gets the same codes alone, in the weight, and in pieces of it."""
    weight, plan = draw(shape, seed), plan_with_scales(shape, step, seed)
    whole = quantize(weight, plan)
    row = data.draw(st.integers(0, shape[0] - 1))
    alone = replace(plan, shape=(1, shape[1]), rows=plan.rows and plan.rows[row : row + 1])
    assert np.array_equal(quantize(weight[row : row + 1], alone), whole[row : row + 1])
    start = data.draw(st.integers(0, weight.size - 1))
    stop = data.draw(st.integers(start + 1, weight.size))
    pieces = code_pieces(lambda first, last: weight[first:last], plan)
    assert np.array_equal(pieces(start, stop), whole.reshape(-1)[start:stop])


def test_blocks_do_not_matter(monkeypatch):
    """Rows that are quantized together, in any number, have the same codes."""
    weight = draw((50, 90), 0)
    whole = quantize(weight, plan_for(weight.shape, 0.05))
    monkeypatch.setattr(trellis, "_ROWS", 7)
    monkeypatch.setattr(trellis, "_ELEMENTS", 300)
    assert np.array_equal(quantize(weight, plan_for(weight.shape, 0.05)), whole)


@given(shapes, st.integers(0, 99), st.floats(0.01, 2.0))
def test_zeros_stay_zero_and_the_mask_is_nonzero_codes(shape, seed, step):
    """A weight that is 0 keeps the code 0; `mask` is True for codes that are not 0. Codes have the signs of weights."""
    weight, plan = draw(shape, seed), plan_for(shape, step)
    weight[np.random.default_rng(seed).random(shape) < 0.5] = 0.0
    codes = quantize(weight, plan)
    assert not codes[weight == 0.0].any()
    assert np.array_equal(mask(weight, plan), codes != 0)
    assert (np.sign(codes) * np.sign(weight) >= 0).all()


@given(shapes, st.integers(0, 99), st.floats(-40.0, 40.0))
def test_scaling_by_a_power_of_two_keeps_the_codes(shape, seed, exponent):
    """Weight and step times a power of two give the same codes."""
    factor = 2.0 ** round(exponent)
    weight, plan = draw(shape, seed), plan_for(shape, 0.05)
    scaled = replace(plan, step=plan.step * factor)
    assert np.array_equal(quantize(weight, plan), quantize(weight * np.float32(factor), scaled))


@given(shapes, st.integers(0, 99), st.floats(0.01, 0.5))
def test_scales_quantize_the_weight_over_its_steps(shape, seed, step):
    """With scales the codes are those of the weight over its own steps, quantized with step 1."""
    weight, plan = draw(shape, seed), plan_for(shape, step, **scales_of(shape, seed))
    assert np.array_equal(quantize(weight, plan), quantize(weight / np.float32(plan.steps), plan_for(shape, 1.0)))


@pytest.mark.parametrize("kind", ["normal", "laplace"])
@pytest.mark.parametrize(("step", "share"), [(0.02, 0.80), (0.25, 0.79), (0.5, 0.76)])
def test_the_squared_error_is_less_than_with_two_steps(kind, step, share):
    """Rounding each weight alone to multiples of two steps, which has codes of the same number of bits, has more error."""
    weight = getattr(np.random.default_rng(0), kind)(size=(64, 256)).astype(np.float32)
    plan = plan_for(weight.shape, step)
    errors = [float(np.square(fake_quantize(weight, p) - weight).sum()) for p in (plan, plan.without_trellis)]
    assert errors[0] < (share + 0.02) * errors[1]


def test_a_narrow_dtype_holds_every_value():
    """No value exceeds what float16 holds, and codes are at most max_codes; a step of which it holds few is an error."""
    weight = np.random.default_rng(0).uniform(-65000, 65000, (32, 64)).astype(np.float16)
    for scales in ({}, {"rows": tuple(range(-16, 0)) + (0,) * 16}):
        assert np.isfinite(fake_quantize(weight, plan_for(weight.shape, 9000.0, **scales))).all()
    with pytest.raises(WeightError, match="too large for a trellis in its dtype"):
        quantize(weight, plan_for(weight.shape, 25000.0))


def test_the_largest_codes_are_below_24_bits():
    """Weights at the largest code have codes that the coder can hold; larger ones are an error."""
    weight = np.array([[2.0**24 - 3, 3.0 - 2.0**24, 2.0**24 - 4, 5.0] * 3], dtype=np.float32)
    codes = quantize(weight, plan_for(weight.shape, 1.0))
    assert 2**24 - 6 <= np.abs(codes).max() < 2**24
    with pytest.raises(WeightError, match="the code must be at most 16777215"):
        quantize(weight * 2, plan_for(weight.shape, 1.0))


@given(shapes, st.integers(0, 99), st.floats(0.01, 0.5))
def test_indices_and_states_determine_codes(shape, seed, step):
    """The indices are the k of each quantizer, of which states give the codes again."""
    tensor = compress_tensor(draw(shape, seed), plan_for(shape, step))
    assert tensor.trellis
    assert tensor.channels(0, 1).trellis
    for row, indices in zip(tensor.codes, tensor.indices, strict=True):
        again = [(2 * abs(k) - s[2]) * np.sign(k) for k, s in zip(indices.tolist(), states_of(row), strict=True)]
        assert row.tolist() == again
    assert "trellis=True" in repr(tensor)


def test_nominal_bits_are_those_of_indices():
    """A code of fixed width stores k, which takes a bit less than the code."""
    codes = np.array([[0, 8, -8, 0, 7]], dtype=np.int32)
    tensors = [CompressedTensor(codes, UniformCodebook(1.0), "float32", trellis) for trellis in (False, True)]
    assert [tensor.nominal_bits for tensor in tensors] == [12.0, 9.0]
    assert tensors[1].indices.tolist() == [[0, 4, -4, 0, 4]]


def test_without_a_trellis_codes_are_multiples_of_two_steps():
    """Each value goes to the nearest multiple of two steps, of two as near to that of the even code; scales stay."""
    codes = np.array([[0, 2, -4, 1, -1, 3, -3, 5, 7]], dtype=np.int32)
    tensor = CompressedTensor(codes, codebook_of(0.5, [3], None), "float32", trellis=True)
    alone = tensor.without_trellis
    assert alone.codes.tolist() == [[0, 1, -2, 0, 0, 2, -2, 2, 4]]
    assert (alone.codebook.step, alone.codebook.rows.tolist(), alone.trellis) == (1.0, [3], False)
    assert alone.without_trellis is alone


def test_levels_have_no_trellis():
    """A table of levels cannot be combined with a trellis."""
    with pytest.raises(WeightError, match="levels cannot follow the trellis"):
        CompressedTensor(np.zeros((2, 2), np.int32), LevelTable(np.array([1.0], np.float32)), "float32", trellis=True)
