"""Which tensors of a checkpoint are weights, and why the others are not."""

from __future__ import annotations

import logging

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import opq
import opq.numpy
from opq import dtypes
from opq.checkpoints import as_state
from opq.compression.tensor_roles import tensor_roles

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    """A float32 weight."""
    return RNG.normal(size=shape).astype(np.float32)


def reasons(source) -> dict[str, str]:
    """{tensor that is no weight: why}."""
    return dict(tensor_roles(as_state(source)).exact)


@given(st.lists(st.sampled_from([1, 1, 2, 3, 8, 24]), max_size=4).map(tuple))
def test_size_decides(shape):
    """Of tensors of many values those with two dimensions larger than 1 and at least 64 elements are weights."""
    is_large = sum(size > 1 for size in shape) >= 2 and np.prod(shape) >= 64
    assert (not reasons({"x": np.random.default_rng(1).normal(size=shape)})) == is_large


@pytest.mark.parametrize("shape", [(65_536, 1), (1, 1, 65_536)])
def test_long_matrices_of_width_one_are_weights(shape):
    """An embedding of width 1 with 65,536 rows is a weight; one with fewer rows, and a vector of any length, are not."""
    values = RNG.normal(size=65_536).astype(np.float32)
    assert not reasons({"x": values.reshape(shape)})
    assert reasons({"x": values[1:].reshape([size - (size > 1) for size in shape])})
    assert reasons({"x": values})


def test_small_kernels_are_weights():
    """A depthwise kernel of 216 elements is a weight; layer scales, class tokens and mean and deviation of inputs are not."""
    state = {"kernel": normal(24, 1, 3, 3), "scale": normal(768, 1, 1), "token": normal(1, 1, 768), "mean": normal(1, 3, 1, 1)}
    assert set(reasons(state)) == {"scale", "token", "mean"}


@given(st.integers(1, 16), st.sampled_from([np.float16, np.float32, np.float64, ml_dtypes.bfloat16]), st.integers(0, 2**16))
def test_few_values_stay_exact(count, dtype, seed):
    """A tensor is a weight if it has more than 8 distinct values, wherever they are."""
    values = np.zeros(5000)
    places = np.random.default_rng(seed).choice(5000, count - 1, replace=False)
    values[places] = np.arange(1, count)
    assert (not reasons({"x": values.astype(dtype).reshape(50, 100)})) == (count > 8)


def test_masks_stay_exact():
    """Masks of 0 and 1, and tables of 0 and -inf, come back bit for bit."""
    state = {"w": normal(64, 64), "mask": np.tril(np.ones((1, 1, 64, 64), np.float32))}
    state["table"] = np.triu(np.full((64, 64), -np.inf, np.float32), 1)
    found = opq.numpy.load(opq.compress(state, ratio=10).data)
    assert all(found[name].tobytes() == state[name].tobytes() for name in ("mask", "table"))


@pytest.mark.parametrize(
    ("weight", "scale"),
    [
        ("a.qweight", "a.scales"), ("a.weight", "a.weight_scale"), ("a.weight", "a.weight_scale_inv"), ("a.W_q", "a.zero"),
        ("a.weight", "a.weight.absmax"), ("a.weight._data", "a.weight._scale"), ("a.gate_up", "a.gate_up_scale_inv"),
        ("qweight", "scales"), ("weight_packed", "weight_scale"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, ml_dtypes.float8_e4m3fn])
def test_scales_stay_exact(weight, scale, dtype):
    """A floating-point tensor that belongs to an integer or float8 weight is no weight."""
    state = {
        weight: np.ones((16, 16), dtype),
        scale: normal(16, 16),
        "a.b.weight": normal(16, 16),
        "weight_net.x": normal(8, 8),
    }
    assert reasons(state)[scale] == "scales of an integer or float8 weight"
    assert "a.b.weight" not in reasons(state)
    assert "weight_net.x" not in reasons(state)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_floats_own_nothing(dtype):
    """Weights of floating point are not the scales of one another: those of a recurrent layer are weights in each dtype."""
    names = ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "a.weight", "a.weight_net.weight")
    assert not reasons({name: normal(16, 16).astype(dtypes.NUMPY[dtype]) for name in names})


def test_integers_that_are_no_weights_own_nothing():
    """An index table, a counter or an integer mask makes no weight beside it exact."""
    state = {"a.relative_position_index": np.ones((9, 9), np.int64), "a.relative_position_bias_table": normal(16, 16)}
    state |= {"a.weight": normal(16, 16), "a.weight_mask": np.ones((16, 16), np.uint8), "a.num_batches_tracked": np.array(3)}
    assert set(reasons(state)) == {"a.relative_position_index", "a.weight_mask", "a.num_batches_tracked"}


def test_exclude_may_name_exact_tensors():
    """`exclude` takes names of tensors that are exact anyway; a glob that matches no tensor is still an error."""
    state = {"w": normal(64, 64), "layer_scale": normal(64, 1, 1)}
    assert list(opq.plan(state, ratio=8, exclude=["layer_scale"]).layers) == ["w"]
    with pytest.raises(opq.SelectionError, match="matches no weight"):
        opq.plan(state, ratio=8, exclude=["layer_skale"])


def test_a_plan_says_why():
    """A plan has a reason for each tensor that is no weight, in its table, and in JSON both ways."""
    state = {"w": normal(64, 64), "v": normal(64, 64), "bias": normal(64), "steps": np.array(3)}
    plan = opq.plan(state, ratio=1.6, exclude=["v"])
    assert {*plan.exact, *plan.layers} == set(state)
    assert plan.exact["v"] == "left out by include or exclude"
    assert all(reason in str(plan) for reason in plan.exact.values())
    assert opq.Plan.from_json(plan.to_json()) == plan


def test_a_weight_that_vanishes_is_named(caplog):
    """A weight that becomes all zero is named in a warning, and its plan has 100% zeros; a weight of zeros is not named."""
    state = {"large": normal(64, 64), "small": 1e-4 * normal(64, 64), "zero": np.zeros((64, 64), np.float32)}
    with caplog.at_level(logging.WARNING, "opq"):
        compressed = opq.compress(state, ratio=12, rounding="deadzone")
    assert [record.args for record in caplog.records] == [("small",)]
    assert compressed.plan.layers["small"].sparsity == 1.0


def test_few_exact_bytes_do_not_make_a_target_unreachable():
    """A target that is too large only because exact tensors take few bytes gives a smaller file."""
    state = {"w": normal(64, 64), "mask": np.tril(np.ones((64, 64), np.float32))}
    assert opq.compress(state, ratio=2).file_ratio > 2.0
