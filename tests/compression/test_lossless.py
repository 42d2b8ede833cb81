"""Lossless compression: every tensor comes back bit for bit; clustered and quantized weights take far fewer bytes."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from thoroughness import examples

import opq
import opq.numpy
from opq.codec.file_reader import OpqFile
from opq.errors import ConfigError
from opq.quantization.codebook import LevelTable, UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor
from opq.quantization.level_search import may_have_levels

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


@pytest.mark.slow
@examples(200)
@given(st.dictionaries(st.text("ab.", max_size=4), tensors(), min_size=1, max_size=5))
def test_every_bit_comes_back(state):
    """Any tensors come back bit for bit, and the file passes `verify`."""
    data = opq.compress(state, lossless=True).data
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


def test_each_weight_gets_the_smallest_storage():
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
    data = opq.compress(state, lossless=True).data
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
    """The tensors of a lossless file give the same file again."""
    state = {"a": clustered(1, kind=kind), "b": clustered(2, (100, 40), 7, kind), "c": np.arange(9.0)}
    data = opq.compress(state, lossless=True).data
    assert opq.compress(opq.numpy.load(data), lossless=True).data == data


def test_compressed_tensors_are_stored_unchanged():
    """A CompressedTensor in the state dict keeps its codes and its table, with the levels that no code uses."""
    levels = np.array([-0.9, -0.0, 0.1, 3.0], dtype=np.float32)
    codes = np.random.default_rng(0).integers(-1, 2, (30, 40)).astype(np.int32)
    given = {
        "table": CompressedTensor(codes, LevelTable(levels), "float32"),
        "grid": CompressedTensor(codes, UniformCodebook(0.5), "bfloat16"),
    }
    with OpqFile(opq.compress({**given, "bias": np.ones(3)}, lossless=True).data) as file:
        for name, tensor in given.items():
            assert same_bits(file[name].codes, codes)
            assert type(file[name].codebook) is type(tensor.codebook)
            assert same_bits(file.array(name), tensor.values())
        assert same_bits(file["table"].codebook.levels, levels)
        assert file["grid"].codebook == UniformCodebook(0.5)
    assert opq.compress({"w": given["table"]}, sparsity=0.1, bits=4).plan.layers["w"].shape == (30, 40)  # its values


def test_tied_weights_are_stored_once():
    """Two weights of equal values share a section."""
    one = opq.compress({"a": clustered(1)}, lossless=True).data
    assert len(opq.compress({"a": clustered(1), "b": clustered(1)}, lossless=True).data) < len(one) + 30


def test_include_and_exclude_select():
    """Excluded weights are stored as auxiliary tensors; a glob without a match is a SelectionError."""
    state = {"a.weight": clustered(1), "b.weight": clustered(2)}
    assert storages(opq.compress(state, lossless=True, exclude=["a.*"]).data) == {"a.weight": "exact", "b.weight": "levels"}
    with pytest.raises(opq.SelectionError):
        opq.compress(state, lossless=True, include=["c.*"])


@pytest.mark.parametrize(
    "options",
    [
        {"auxiliary": "float16"},
        {"batch_norm": "folded"},
        {"batch_norm_eps": 1e-3},
        {"rounding": "deadzone"},
        {"layers": {"a": opq.LayerConfig(step=1.0)}},
    ],
)
def test_lossless_accepts_a_selection_only(options):
    """A setting that would change a bit is a ConfigError that names it."""
    with pytest.raises(ConfigError, match=f"include, exclude and speed only; remove {min(options)}"):
        opq.compress({"a": clustered(1)}, lossless=True, **options)


@pytest.mark.parametrize("options", [{"ratio": 5}, {"size": "3kB"}, {"sparsity": 0.5, "bits": 4}])
def test_lossless_excludes_other_targets(options):
    """A second target is a TargetError."""
    with pytest.raises(opq.TargetError, match="exactly one target must be given"):
        opq.compress({"a": clustered(1)}, lossless=True, **options)


def test_there_is_no_lossless_plan():
    """`plan` refuses a lossless target; an unknown keyword is a TypeError."""
    with pytest.raises(opq.TargetError, match=r"a plan cannot be lossless"):
        opq.plan({"a": clustered(1)}, lossless=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'loss'; did you mean 'lossless'"):
        opq.compress({"a": clustered(1)}, lossless=True, loss=0)
    assert opq.compress({"a": clustered(1)}, lossless=True).plan is None


@pytest.mark.data
def test_a_deep_compression_checkpoint_is_lossless(data_folder):
    """SqueezeNet by Deep Compression keeps its values, in at most 78% of the 675,763 bytes of its published file."""
    with np.load(data_folder / "weights" / "squeezenet_v1.0_deep_compression_decoded.npz") as archive:
        state = dict(archive)
    data = opq.compress(state, lossless=True).data
    found = opq.numpy.load(data)
    assert all(same_bits(found[name], array) for name, array in state.items())
    assert len(data) <= 0.78 * 675_763


def test_compressed_tensors_beyond_the_format_are_refused():
    """Values beyond their dtype, codes beyond 2^24 - 1, and other dtypes are WeightErrors."""
    grid = CompressedTensor(np.full((4, 4), 100, np.int32), UniformCodebook(1.0), "float32")
    with pytest.raises(opq.WeightError, match=r"'w'.*the value of its largest code is infinite in float16"):
        opq.compress({"w": replace(grid, codebook=UniformCodebook(1000.0), dtype="float16")}, lossless=True)
    with pytest.raises(opq.WeightError, match=r"dtype must be one of bfloat16, .*, got 'int8'"):
        replace(grid, dtype="int8")
    with pytest.raises(opq.WeightError, match=r"'w'.*codes must be at most 16,777,215 in magnitude"):
        opq.compress(
            {"w": CompressedTensor(np.full((4, 4), -(2**24), np.int32), UniformCodebook(1.0), "float32")}, lossless=True
        )


def test_a_sample_tells_few_values_from_many():
    """Weights of up to thousands of values may have levels; normal ones, also of bfloat16 in float32, have none."""
    random = np.random.default_rng(0)
    normal = random.normal(size=2**18).astype(np.float32)
    assert not any(may_have_levels(normal.astype(kind)) for kind in (np.float32, np.float64, ml_dtypes.bfloat16))
    assert not may_have_levels(normal.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert may_have_levels(normal[:100])
    for count in (2, 16, 256, 4000):
        assert may_have_levels(np.unique(normal)[random.integers(0, 10 * count, 2**18) // 10 * 60])
    for bits, kind in ((4, ml_dtypes.bfloat16), (8, np.float16), (8, np.float32)):
        assert may_have_levels((np.rint(normal * 2 ** (bits - 3)) * np.float32(0.01)).astype(kind))
