"""Weights of equal values count once, by one rule in plans, files and reports."""

import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from thoroughness import examples

import opq
from opq.checkpoints import as_state
from opq.compression.equal_weights import equal_weights

PICKS = st.lists(st.integers(0, 3), min_size=1, max_size=7)


def pool(dtype="float32", scale=0.1):
    """Four weights of one shape: noise, its negative, and noise that differs from it in the last or in the middle value."""
    weight = np.random.default_rng(0).normal(scale=scale, size=(64, 40)).astype(dtype)
    last, middle = weight.copy(), weight.copy()
    last[-1, -1] += 1
    middle[40, 7] += 1
    return [weight, -weight, last, middle]


def network(picks, form, dtype="float32"):
    """{name: weight} of these members of the pool, which share memory or are copies; or the path of a file of copies."""
    weights = pool(dtype)
    state = {f"layer{place}.weight": weights[pick] for place, pick in enumerate(picks)}
    return state if form == "shared" else {name: weight.copy() for name, weight in state.items()}


@given(
    picks=PICKS, form=st.sampled_from(["shared", "copies", "file"]), dtype=st.sampled_from(["float32", "float16", "float64"])
)
@examples(40)
def test_equal_values_are_found(picks, form, dtype):
    """A weight repeats the first one with its values, in memory and on disk; equal magnitudes or first rows do not suffice."""
    state = network(picks, form, dtype)
    with tempfile.TemporaryDirectory() as folder:
        if form == "file":
            save_file(state, f"{folder}/m.safetensors")
        found = equal_weights(as_state(f"{folder}/m.safetensors" if form == "file" else state), list(state))
    first = {pick: f"layer{picks.index(pick)}.weight" for pick in picks}
    assert found == {f"layer{place}.weight": first[pick] for place, pick in enumerate(picks) if place != picks.index(pick)}


def test_equal_values_of_other_shapes_or_dtypes_are_other_weights():
    """A reshaped or converted copy is stored again, and counts again."""
    weight = np.round(pool()[0] * 8).astype(np.float32)
    state = {"a": weight, "b": weight.reshape(40, 64), "c": weight.astype(np.float16), "d": weight.copy()}
    assert equal_weights(as_state(state), list(state)) == {"d": "a"}


@given(picks=PICKS, form=st.sampled_from(["shared", "copies"]), options=st.sampled_from([0, 1, 2]))
@examples(25)
def test_every_count_of_bytes_is_the_same(picks, form, options):
    """Plan, file and report have the same dense bytes; the ratio is met by them, and a plan predicts the size."""
    state = {**network(picks, form), "bias": np.arange(40, dtype=np.float32)}
    dense = sum(weight.nbytes for weight in pool()[: len(set(picks))]) + 160
    target = ({"ratio": 6}, {"sparsity": 0.5, "bits": 4}, {"ratio": 4, "rounding": "deadzone"})[options]
    compressed, plan = opq.compress(state, **target), opq.plan(state, **target)
    assert plan.dense_bytes == compressed.plan.dense_bytes == compressed.dense_bytes == dense
    found = opq.inspect(compressed.data)
    assert (found.dense_bytes, found.file_ratio) == (dense, compressed.file_ratio)
    assert (found.weights, found.sparsity) == (compressed.num_weights, compressed.sparsity)
    assert plan.predicted_bytes == pytest.approx(compressed.file_bytes, rel=0.05)
    if "ratio" in target:
        assert target["ratio"] <= compressed.file_ratio <= 1.01 * target["ratio"]


def test_lossless_files_count_equal_weights_once():
    """As with a target, for weights that become codes; tensors that stay byte planes are stored, and count, each."""
    levels = np.random.default_rng(0).choice(np.float32([-2, -1, 0.5, 3]), (50, 40))
    noise = pool()[0]
    compressed = opq.compress({"a": levels, "b": levels.copy(), "c": noise, "d": noise.copy()}, lossless=True)
    assert compressed.dense_bytes == opq.inspect(compressed.data).dense_bytes == levels.nbytes + 2 * noise.nbytes


def test_weights_that_became_all_zero_count_each(caplog):
    """Different weights that are pruned completely share their codes, but not their bytes in any ratio."""
    rng = np.random.default_rng(0)
    state = {f"small{k}": rng.normal(scale=1e-4, size=(40, 40)).astype(np.float32) for k in range(3)}
    state["large"] = rng.normal(size=(90, 90)).astype(np.float32)
    compressed = opq.compress(state, ratio=8, cost="squared")
    found = opq.inspect(compressed.data)
    assert [tensor.sparsity for tensor in found.tensors if tensor.name.startswith("small")] == [1.0] * 3
    dense = sum(weight.nbytes for weight in state.values())
    assert compressed.plan.dense_bytes == compressed.dense_bytes == found.dense_bytes == dense
    assert all(f"weight 'small{k}' became all zero" in caplog.text for k in range(3))


def test_settings_that_part_equal_weights_are_named(caplog):
    """If equal weights have different settings, both are stored, and a warning names them."""
    weight = pool()[0]
    state = {"embed.weight": weight, "head.weight": weight}
    opq.compress(state, ratio=4, layers={"*.weight": opq.LayerConfig(sensitivity=2)})
    assert not caplog.records
    opq.compress(state, ratio=4, layers={"head.weight": opq.LayerConfig(sensitivity=2)})
    assert "'embed.weight' and 'head.weight' are equal but have different settings" in caplog.text


def test_masks_tell_weights_of_one_memory_apart():
    """Weights that share memory under different pruning masks are different weights."""
    weight = pool()[0]
    masks = [np.ones_like(weight), np.ones_like(weight)]
    masks[1][::2] = 0.0
    state = {"a.weight_orig": weight, "a.weight_mask": masks[0], "b.weight_orig": weight, "b.weight_mask": masks[1]}
    assert opq.plan(state, ratio=4).dense_bytes == 4 * weight.nbytes
    state["b.weight_mask"] = masks[0].copy()
    assert opq.plan(state, ratio=4).dense_bytes == 3 * weight.nbytes
