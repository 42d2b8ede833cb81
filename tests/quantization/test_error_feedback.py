"""Compensated rounding: errors within an output row compensate each other."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opq.errors import PlanError
from opq.quantization.chunked import code_pieces
from opq.quantization.error_feedback import ACROSS, NEAR, SHARED, squared_error_factor
from opq.quantization.quantizer import dequantize, fake_quantize, mask, quantize
from opq.rate_distortion.layer_plan import LayerPlan

SHAPES = [
    (8, 24),
    (6, 5, 3, 3),
    (12, 1, 3, 3),
    (4, 40, 1, 1),
    (3, 4, 5),
    (2, 3, 2, 3, 3),
    (5, 2, 17, 17),
    (1, 1),
    (7, 1),
    (3, 33),
]
shapes = st.sampled_from(SHAPES)


def draw(shape, seed, kind=np.float32):
    return np.random.default_rng(seed).laplace(scale=0.1, size=shape).astype(kind)


def scales_of(shape, seed):
    """Scales of the rows and columns of a weight, within an octave."""
    rng = np.random.default_rng(seed)
    return {
        axis: tuple(rng.integers(-8, 9, size).tolist())
        for axis, size in (("rows", shape[0]), ("columns", math.prod(shape[1:])))
    }


def plan_for(shape, step, **fields):
    step = float(np.float32(step))
    return LayerPlan(shape, step, 0.5 * step, 0.5, 0.0, 0.0, rounding="compensated", **fields)


def prior(shape):
    """The second moments of a whole row that opq.quantization.error_feedback documents."""
    kernel = np.indices(shape[2:] or (1,)).reshape(max(len(shape) - 2, 1), -1)
    distance = np.abs(kernel[:, :, None] - kernel[:, None, :]).sum(0)
    within = (1.0 - SHARED) * NEAR ** distance.astype(float) + SHARED
    size = shape[1] * len(within)
    return np.kron(np.eye(shape[1]), within) + ACROSS * np.ones((size, size))


@given(shapes, st.integers(0, 99), st.floats(0.01, 0.5), st.sampled_from(["float32", "float64", "float16"]))
def test_torch_gives_the_same_codes(shape, seed, step, kind):
    """PyTorch gives the codes that NumPy gives, for every dtype and shape, with and without scales."""
    torch = pytest.importorskip("torch")
    weight, plan = draw(shape, seed, kind), plan_for(shape, step, **(scales_of(shape, seed) if seed % 2 else {}))
    codes = quantize(torch.from_numpy(weight), plan)
    assert codes.dtype == torch.int32
    assert np.array_equal(quantize(weight, plan), codes.numpy())


@given(shapes, st.integers(0, 99), st.floats(0.01, 0.5), st.data())
def test_rows_are_rounded_independently(shape, seed, step, data):
    """A row gets the same codes alone and in the weight, so that a weight can be rounded some rows at a time."""
    weight, plan = draw(shape, seed), plan_for(shape, step, **(scales_of(shape, seed) if seed % 2 else {}))
    whole = quantize(weight, plan)
    row = data.draw(st.integers(0, shape[0] - 1))
    alone = replace(plan, shape=(1, *shape[1:]), rows=plan.rows and plan.rows[row : row + 1])
    assert np.array_equal(quantize(weight[row : row + 1], alone), whole[row : row + 1])
    start = data.draw(st.integers(0, weight.size - 1))
    stop = data.draw(st.integers(start + 1, weight.size))
    pieces = code_pieces(lambda first, last: weight[first:last], plan)
    assert np.array_equal(pieces(start, stop), whole.reshape(-1)[start:stop])


SHARES = [((64, 32, 3, 3), 0.7), ((256, 1, 3, 3), 0.7), ((64, 256), 0.95), ((64, 48, 1, 1), 0.97)]


@pytest.mark.parametrize(("shape", "share"), SHARES)
def test_the_output_error_is_lower(shape, share):
    """Under the documented second moments the output error is lower than that of rounding to nearest."""
    weight, plan = draw(shape, 0), plan_for(shape, 0.1)

    def cost(plan):
        error = (fake_quantize(weight, plan) - weight).reshape(len(weight), -1).astype(float)
        return float(np.einsum("ri,ij,rj->", error, prior(shape), error))

    assert cost(plan) < share * cost(replace(plan, rounding="deadzone"))


@pytest.mark.parametrize("shape", [(64, 32, 3, 3), (64, 256), (64, 16, 5)])
def test_the_squared_error_factor_is_the_measured_one(shape):
    """The factor is the squared error over that of rounding to nearest at a fine step, within 10%."""
    weight, plan = draw(shape, 0), plan_for(shape, 0.01)
    nearest = replace(plan, rounding="deadzone")
    compensated, alone = (float(np.square(fake_quantize(weight, p) - weight).sum()) for p in (plan, nearest))
    assert compensated / alone == pytest.approx(squared_error_factor(shape), rel=0.1)


@given(shapes, st.integers(0, 99), st.floats(0.01, 2.0))
def test_zeros_stay_zero_and_the_mask_is_nonzero_codes(shape, seed, step):
    """A pruned weight keeps its zeros; `mask` is True for codes that are not 0."""
    weight, plan = draw(shape, seed), plan_for(shape, step)
    weight[np.random.default_rng(seed).random(shape) < 0.5] = 0.0
    codes = quantize(weight, plan)
    assert not codes[weight == 0.0].any()
    assert np.array_equal(mask(weight, plan), codes != 0)
    assert np.array_equal(fake_quantize(weight, plan), dequantize(codes, plan.step, weight.dtype))


@given(shapes, st.integers(0, 99), st.floats(-40.0, 40.0))
def test_scaling_by_a_power_of_two_keeps_the_codes(shape, seed, exponent):
    """Weight and step times a power of two give the same codes."""
    factor = 2.0 ** round(exponent)
    weight, plan = draw(shape, seed), plan_for(shape, 0.05)
    scaled = replace(plan, step=plan.step * factor, threshold=plan.threshold * factor)
    assert np.array_equal(quantize(weight, plan), quantize(weight * np.float32(factor), scaled))


@given(shapes, st.integers(0, 99), st.floats(0.01, 0.5))
def test_scales_round_the_weight_over_its_steps(shape, seed, step):
    """With scales the codes are those of the weight over its own steps, rounded with step 1."""
    weight, plan = draw(shape, seed), plan_for(shape, step, **scales_of(shape, seed))
    assert np.array_equal(quantize(weight, plan), quantize(weight / np.float32(plan.steps), plan_for(shape, 1.0)))


def test_a_narrow_dtype_holds_every_value():
    """Compensation never gives a value that float16 cannot hold."""
    weight = np.random.default_rng(0).uniform(-65000, 65000, (32, 64)).astype(np.float16)
    assert np.isfinite(fake_quantize(weight, plan_for(weight.shape, 9000.0))).all()
    assert np.isfinite(fake_quantize(weight, plan_for(weight.shape, 9000.0, **scales_of(weight.shape, 0)))).all()


def test_num_kept_and_max_codes_are_refused():
    """A plan with num_kept or max_codes cannot have compensated rounding; neither can a plan have an unknown rounding."""
    for fields in ({"num_kept": 3}, {"max_codes": (1, 1)}):
        with pytest.raises(PlanError, match="num_kept and max_codes must be null with compensated rounding"):
            plan_for((2, 4), 0.1, **fields)
    with pytest.raises(PlanError, match="rounding must be one of 'trellis', 'compensated', 'deadzone', got 'nearest'"):
        LayerPlan((2, 4), 1.0, 0.5, 0.5, 0.0, 0.0, rounding="nearest")
