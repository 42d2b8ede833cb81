"""Lossless: every tensor comes back bit for bit, and what was clustered or quantized elsewhere takes far fewer bytes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import opq
import opq.numpy
from opq.codec.file_reader import OpqFile
from opq.quantization.compressed_tensor import CompressedTensor

KINDS = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]


@st.composite
def tensors(draw):
    """Weights of few and of many values, NaN and infinities, and tensors that are no weights."""
    kind = draw(st.sampled_from(KINDS))
    pool = np.array(draw(st.lists(st.floats(width=16), min_size=1, max_size=40))).astype(kind)
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    return pool[draw(arrays.arrays(np.int64, shape, elements=st.integers(0, len(pool) - 1)))]


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@settings(max_examples=200)
@given(st.dictionaries(st.text("ab.", max_size=4), tensors(), min_size=1, max_size=5))
def test_every_bit_comes_back(state):
    """Whatever the tensors, the file holds their very bits, and is whole."""
    data = opq.numpy.save(state, lossless=True)
    found = opq.numpy.load(data)
    assert set(found) == set(state)
    assert all(same_bits(found[name], array) for name, array in state.items())
    opq.verify(data)


def clustered(seed: int, shape=(64, 32, 3, 3), count=32, kind=np.float32) -> np.ndarray:
    random = np.random.default_rng(seed)
    pool = np.append(random.laplace(size=count - 1), 0.0).astype(kind)
    return pool[random.integers(0, count, shape)]


def storages(data: bytes) -> dict[str, str]:
    with OpqFile(data) as file:
        return {entry.name: entry.storage for entry in file.entries}


def test_each_weight_becomes_what_costs_least():
    """Clustered weights become levels, quantized ones codes, two values with a wide gap a table, random ones stay exact."""
    random = np.random.default_rng(0)
    state = {
        "clustered": clustered(1),
        "int8": random.integers(-128, 128, (64, 300)).astype(np.float32) * np.float32(0.0123),
        "ternary": random.choice(np.array([-0.7, 0.0, 0.7], dtype=np.float32), (50, 60)),
        "uneven": random.choice(np.array([-0.7, 0.0, 0.3], dtype=np.float32), (50, 60)),
        "spread": random.choice(np.array([1.0, 2.0, 4000.0, 4001.0], dtype=np.float32), (50, 60)),
        "random": random.normal(size=(40, 50)).astype(np.float32),
        "nan": np.where(random.random((50, 50)) < 0.5, np.nan, 1.0),
        "bias": np.repeat(np.float32(0.5), 64),
    }
    data = opq.numpy.save(state, lossless=True)
    assert storages(data) == {
        "clustered": "levels",
        "int8": "codes",
        "ternary": "codes",
        "uneven": "levels",
        "spread": "levels",
        "random": "exact",
        "nan": "exact",
        "bias": "exact",
    }
    spent = {tensor.name: tensor.bytes for tensor in opq.inspect(data).tensors}
    assert spent["clustered"] < 5.1 / 32 * state["clustered"].nbytes + 4 * 32
    assert spent["int8"] < 8.3 / 32 * state["int8"].nbytes
    assert spent["uneven"] < 1.75 / 32 * state["uneven"].nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_a_lossless_file_compresses_again_to_itself(kind):
    """What was read from a lossless file gives that file again."""
    state = {"a": clustered(1, kind=kind), "b": clustered(2, (100, 40), 7, kind), "c": np.arange(9.0)}
    data = opq.numpy.save(state, lossless=True)
    assert opq.numpy.save(opq.numpy.load(data), lossless=True) == data


def test_codes_and_levels_may_be_given():
    """A CompressedTensor in the state dict is stored as it is: its codes, its table, levels that no code uses included."""
    levels = np.array([-0.9, -0.0, 0.1, 3.0], dtype=np.float32)
    codes = np.random.default_rng(0).integers(-1, 2, (30, 40)).astype(np.int32)
    given = {"table": CompressedTensor(codes, None, "float32", levels), "grid": CompressedTensor(codes, 0.5, "bfloat16")}
    with OpqFile(opq.compress({**given, "bias": np.ones(3)}, lossless=True).data) as file:
        for name, tensor in given.items():
            assert same_bits(file[name].codes, codes)
            assert file[name].step == tensor.step
            assert same_bits(file.array(name), tensor.values())
        assert same_bits(file["table"].levels, levels)
    assert opq.compress({"w": given["table"]}, sparsity=0.1, bits=4).plan.layers["w"].shape == (30, 40)  # its values


def test_tied_weights_are_stored_once():
    """Two weights of the same values share their section."""
    one = opq.numpy.save({"a": clustered(1)}, lossless=True)
    assert len(opq.numpy.save({"a": clustered(1), "b": clustered(1)}, lossless=True)) < len(one) + 30


def test_selection_holds():
    """Excluded weights are stored as auxiliary tensors, and what is asked of a selection is asked here."""
    state = {"a.weight": clustered(1), "b.weight": clustered(2)}
    assert storages(opq.numpy.save(state, lossless=True, exclude=["a.*"])) == {"a.weight": "exact", "b.weight": "levels"}
    with pytest.raises(opq.SelectionError):
        opq.numpy.save(state, lossless=True, include=["c.*"])


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 5},
        {"size": "3kB"},
        {"sparsity": 0.5, "bits": 4},
        {"auxiliary": "half"},
        {"auxiliary": "exact"},
        {"batch_norm": "canonical"},
        {"sensitivity": {"a": 3.0}},
        {"overrides": {"a": {"step": 1.0}}},
    ],
)
def test_what_contradicts_lossless_is_refused(options):
    """A target, or anything that would change a bit, is a TargetError that names it."""
    with pytest.raises(opq.TargetError, match=f"not with {min(options)}"):
        opq.numpy.save({"a": clustered(1)}, lossless=True, **options)


def test_there_is_no_lossless_plan():
    """Planning without a target is refused, and a misspelt option too."""
    with pytest.raises(opq.TargetError, match="nothing to plan"):
        opq.plan({"a": clustered(1)}, lossless=True)
    with pytest.raises(opq.TargetError, match="unknown option"):
        opq.compress({"a": clustered(1)}, lossless=True, loss=0)
    assert opq.compress({"a": clustered(1)}, lossless=True).plan is None


@pytest.mark.data
def test_deep_compression_keeps_its_codebooks(data_folder):
    """SqueezeNet as Deep Compression published it: its very values, in less than the 675,763 bytes it was published in."""
    with np.load(data_folder / "weights" / "squeezenet_v1.0_deep_compression_decoded.npz") as archive:
        state = dict(archive)
    data = opq.numpy.save(state, lossless=True)
    found = opq.numpy.load(data)
    assert all(same_bits(found[name], array) for name, array in state.items())
    assert len(data) <= 0.78 * 675_763


def test_codes_that_no_file_may_hold_are_refused():
    """Values beyond their dtype, and dtypes that no weight has."""
    with pytest.raises(opq.WeightError, match=r"step 1000\.0 times its largest code is beyond float16"):
        opq.compress({"w": CompressedTensor(np.full((4, 4), 100, np.int32), 1000.0, "float16")}, lossless=True)
    with pytest.raises(opq.WeightError, match=r"dtype must be one of bfloat16, .*, got 'int8'"):
        CompressedTensor(np.ones((4, 4), np.int32), 1.0, "int8")
