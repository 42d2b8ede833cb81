"""Which weights follow a trellis, and what that does to plans and files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import opq
import opq.numpy
from opq.codec.verify import verify
from opq.errors import PlanError
from opq.quantization.quantizer import fake_quantize
from opq.rate_distortion import trellis
from opq.rate_distortion.plan import Plan


def matrix(shape=(128, 64), seed=0, kind="laplace", dtype=np.float32):
    return getattr(np.random.default_rng(seed), kind)(size=shape).astype(dtype)


STATE = {
    "conv.weight": matrix((32, 16, 3, 3), 1),
    "pointwise.weight": matrix((128, 64, 1, 1), 2),
    "small.weight": matrix((60, 64), 3),
    "narrow.weight": matrix((4000, 7), 4),
    "matrix.weight": matrix(seed=5),
    "pruned.weight": matrix(seed=6) * (np.random.default_rng(6).random((128, 64)) < 0.8),
    "half.weight": matrix(seed=7, dtype=np.float16),
    "large.weight": (matrix(seed=8) * 5000).astype(np.float16),
}


def roundings(source, **options):
    return {name: layer.rounding for name, layer in opq.plan(source, **options).layers.items()}


def test_matrices_follow_a_trellis():
    """By default matrices of 4,096 elements or more that are not pruned; all other weights have compensated rounding."""
    expected = {name: "trellis" if name in ("matrix.weight", "half.weight") else "compensated" for name in STATE}
    assert roundings(STATE, ratio=8) == roundings(STATE, ratio=8, rounding="trellis") == expected
    assert set(roundings(STATE, ratio=8, rounding="compensated").values()) == {"compensated"}
    assert set(roundings(STATE, ratio=8, rounding="deadzone").values()) == {"deadzone"}


@pytest.mark.parametrize("fields", [{"step": 0.1}, {"bits": 3.0}, {"sparsity": 0.5}])
def test_fixed_weights_have_no_trellis(fields):
    """A weight whose step, bits or sparsity is fixed is rounded as these say."""
    found = roundings(STATE, ratio=8, layers={"matrix.weight": opq.LayerConfig(**fields)})
    assert (found["matrix.weight"], found["half.weight"]) == ("compensated", "trellis")


@pytest.mark.parametrize(("ratio", "rounding"), [(2.0, "compensated"), (8.0, "trellis"), (60.0, "compensated")])
def test_only_useful_steps_have_a_trellis(ratio, rounding):
    """At steps so fine or so coarse that a trellis is of no use, rounding is compensated."""
    found = roundings({"w": matrix((256, 256))}, ratio=ratio)
    assert found == {"w": rounding}


@pytest.mark.parametrize("kind", ["normal", "laplace"])
@pytest.mark.parametrize("ratio", [6, 8, 11, 16])
def test_a_trellis_has_less_error_at_equal_bytes(kind, ratio):
    """At the same size the squared error is at least a tenth lower than with compensated rounding."""
    weight = matrix((256, 256), kind=kind)
    errors = []
    for rounding in ("trellis", "compensated"):
        compressed = opq.compress({"w": weight}, ratio=ratio, rounding=rounding)
        assert compressed.file_bytes <= compressed.dense_bytes / ratio
        errors.append(float(np.square(opq.numpy.load(compressed.data)["w"] - weight).sum()))
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("ratio", [6, 8, 11, 16])
def test_plans_predict_bytes_and_zeros(ratio):
    """A plan predicts the bytes of its file within 3%, and the zeros of each weight within 2% of all weights."""
    state = {"a": matrix((256, 256)), "b": matrix((128, 512), 1, "normal")}
    plan = opq.plan(state, ratio=ratio)
    assert all(layer.is_trellis for layer in plan.layers.values())
    compressed = opq.compress(state, plan)
    assert compressed.file_bytes == pytest.approx(plan.predicted_bytes, rel=0.03)
    for name, layer in plan.layers.items():
        zeros = float((opq.numpy.load(compressed.data)[name] == 0).mean())
        assert (zeros, layer.threshold) == (pytest.approx(layer.sparsity, abs=0.02), 0.0)


def test_files_hold_what_fake_quantize_gives():
    """Values of a file are those of the plan; `verify` accepts the file, and JSON keeps the plan."""
    plan = opq.plan(STATE, ratio=8)
    compressed = opq.compress(STATE, plan)
    for name, value in opq.numpy.load(compressed.data).items():
        assert np.array_equal(value, fake_quantize(STATE[name], plan.layers[name]))
    verify(compressed.data)
    assert Plan.from_json(plan.to_json()) == plan


def test_tied_weights_share_their_section():
    """Equal weights follow a trellis together, and are stored once; none does if one of them is fixed."""
    state = {"a": STATE["matrix.weight"], "b": STATE["matrix.weight"].copy()}
    compressed = opq.compress(state, ratio=8)
    assert len(set(compressed.layout.weight_bytes().values())) == len(compressed.layout.sections) == 1
    assert roundings(state, ratio=8) == {"a": "trellis", "b": "trellis"}
    fixed = roundings(state, ratio=8, layers={"b": opq.LayerConfig(step=2.0)})
    assert fixed == {"a": "compensated", "b": "compensated"}


def test_directions_have_no_trellis():
    """The direction of a weight norm has none, because each of its rows keeps a code; a plan that says so is refused."""
    state = {"lin.weight_v": STATE["matrix.weight"], "lin.weight_g": np.ones((128, 1), np.float32)}
    plan = opq.plan(state, ratio=8)
    assert plan.layers["lin.weight_v"].rounding == "compensated"
    layer = replace(plan.layers["lin.weight_v"], rounding="trellis")
    with pytest.raises(PlanError, match="rounding must not be 'trellis', because it is the direction"):
        opq.compress(state, replace(plan, layers={"lin.weight_v": layer}))


@given(st.floats(trellis.FINEST_STEP, trellis.COARSEST_STEP), st.floats(1e-3, 1e3))
def test_steps_are_converted_both_ways(step, scale):
    """`uniform_step` is the inverse of `codebook_step`, which is between a half and 0.8 of the uniform step."""
    found = trellis.codebook_step(step * scale, scale)
    assert trellis.uniform_step(found, scale) == pytest.approx(step * scale)
    assert 0.5 * step * scale < found < 0.8 * step * scale


@pytest.mark.parametrize("kind", ["normal", "laplace"])
@pytest.mark.parametrize("step", [0.05, 0.5, 1.0, 2.0])
def test_the_codebook_step_gives_the_error_of_the_uniform_step(kind, step):
    """The squared error of a trellis is that of rounding to the uniform step, within 4%."""
    weight = matrix((256, 256), kind=kind)
    scale = float(np.abs(weight).mean())
    half = float(np.float32(trellis.codebook_step(step * scale, scale)))
    plan = opq.LayerPlan(weight.shape, half, 0.0, 0.5, 0.0, 0.0, rounding="trellis")
    uniform = step * scale * np.rint(weight / (step * scale))
    error = float(np.square(fake_quantize(weight, plan) - weight).mean())
    assert error == pytest.approx(float(np.square(uniform - weight).mean()), rel=0.04)
