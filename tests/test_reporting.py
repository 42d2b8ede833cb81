"""Where every byte went, and what other compressors make of the same tensors."""

from __future__ import annotations

import gzip
import lzma
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import opq
import opq.numpy
from opq.codec.file_reader import OpqFile
from opq.reporting.inspect import KINDS

TENSORS = st.dictionaries(
    st.sampled_from(["a.weight", "b.weight", "b.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "x", "n"]),
    st.sampled_from([(8, 4), (3, 3, 2, 2), (40,), (), (0,)]),
    min_size=1,
)


@settings(max_examples=60)
@given(TENSORS, st.sampled_from([1, 4, 100]), st.integers(0, 9))
def test_the_ledger_adds_up(shapes, values, seed):
    """Kinds add up to the file, and so do tensors and header; codes and levels are the weights', what is left the others'."""
    random = np.random.default_rng(seed)
    state = {name: random.integers(0, values, shape) * np.float32(0.37) for name, shape in shapes.items()}
    data = opq.numpy.save(state, lossless=True)
    found = opq.inspect(data)
    assert tuple(found.ledger) == KINDS
    assert sum(found.ledger.values()) == len(data)
    assert found.ledger["header"] + found.ledger["checksums"] == found.header_bytes
    assert all(size >= 0 for size in found.ledger.values())
    weights = sum(tensor.bytes for tensor in found.tensors if tensor.kind == "weight")
    assert found.ledger["codes"] + found.ledger["levels"] == weights
    assert all(tensor.bytes >= 0 for tensor in found.tensors)


def test_kinds_follow_names(network):
    """What stands beside running_var is a batch-norm's, its counter too; a bias elsewhere is a bias; the rest is other."""
    state = {**network, "position_ids": np.arange(50), "excluded.weight": np.ones((3, 3)), "bias": np.ones(3)}
    data = opq.numpy.save(state, ratio=6, exclude=["excluded*"])
    kinds = {tensor.name: tensor.spent_on for tensor in opq.inspect(data).tensors}
    for name in state:
        if "_bn." in name:
            assert kinds[name] == "batch-norm"
    assert (kinds["fc.weight"], kinds["fc.bias"], kinds["bias"]) == ("codes", "biases", "biases")
    assert kinds["position_ids"] == kinds["excluded.weight"] == "other auxiliary"


def test_a_pack_is_split_by_what_its_tensors_take():
    """Constants take next to nothing of their pack, random values nearly all."""
    random = np.random.default_rng(0)
    state = {"constant": np.full(1000, 0.1), "random": random.normal(size=1000), "w": random.normal(size=(4, 4))}
    spent = {tensor.name: tensor.bytes for tensor in opq.inspect(opq.numpy.save(state, lossless=True)).tensors}
    assert spent["constant"] < 20
    assert spent["random"] > 6000


def test_errors_are_told_for_each_tensor(network):
    """Of auxiliary tensors what they err by at most, which holds; of weights nothing."""
    data = opq.numpy.save(network, ratio=6, auxiliary="8bit")
    found, back = opq.inspect(data), opq.numpy.load(data)
    assert {tensor.storage for tensor in found.tensors} == {"codes", "exact", "half", "relative8"}
    for tensor in found.tensors:
        if tensor.kind == "weight":
            assert tensor.absolute_error is tensor.relative_error is None
        else:
            error = np.abs(back[tensor.name].astype(np.float64) - network[tensor.name])
            assert (error <= tensor.absolute_error + tensor.relative_error * np.abs(network[tensor.name])).all()
    assert "0." in str(found)


def test_levels_are_shown():
    """A weight with levels says how many, one with a step which; bits are what tells one level from all others."""
    state = {"t.weight": np.resize(np.array([-0.7, 0.0, 0.1, 0.3], dtype=np.float32), (30, 40))}
    found = opq.inspect(opq.numpy.save(state, lossless=True))
    (tensor,) = found.tensors
    assert (tensor.storage, tensor.levels, tensor.step, tensor.bits) == ("levels", 3, None, 2.0)
    assert tensor.sparsity == pytest.approx(0.25)
    assert found.nominal_ratio == pytest.approx(32 / (0.75 * 2))
    assert "3 levels" in str(found)


def test_a_comparison_is_what_the_compressors_give(network):
    """Every figure is that of the compressor itself, on the checkpoint `opq expand` writes and on the codes' integers."""
    data = opq.numpy.save(network, ratio=6)
    found = opq.compare(data)
    dense = safetensors.numpy.save(opq.numpy.load(data))
    with OpqFile(data) as file:
        codes = [file[name].codes for name in sorted(network) if network[name].ndim > 1]
        sections = sum(file.section_bytes(entry.section) for entry in file.entries if entry.is_weight)
    integers = b"".join(array.astype(np.int8 if np.abs(array).max() < 128 else np.int16).tobytes() for array in codes)
    assert (found.opq_bytes, found.code_bytes) == (len(data), sections)
    assert (found.dense_bytes, found.integer_bytes) == (len(dense), len(integers))
    assert found.dense["gzip -9"] == len(gzip.compress(dense, 9))
    assert found.codes["gzip -9"] == len(gzip.compress(integers, 9))
    assert found.codes["xz -6"] == len(lzma.compress(integers, preset=6))
    assert found.opq_bytes < min(size for size in found.dense.values() if size)
    entropy = 0.0
    for array in codes:
        shares = np.unique(array, return_counts=True)[1] / array.size
        entropy -= array.size * float(shares @ np.log2(shares)) / 8
    assert found.entropy_bytes == pytest.approx(entropy)
    assert all(name in str(found) for name in ("gzip -9", "zstd -19", "xz -6", "entropy"))


def test_without_zstd_it_says_how_to_have_it(network, monkeypatch):
    """Zstd is an extra: without it its figures are missing, and the table tells how to install it."""
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    found = opq.compare(opq.numpy.save(network, ratio=6))
    assert found.dense["zstd -19"] is found.codes["zstd -19"] is None
    assert "pip install 'opq[zstd]'" in str(found)


@pytest.mark.skipif(find_spec("zstandard") is None, reason="the package zstandard is not installed")
def test_with_zstd_it_is_compared(network):
    """Where it is installed, its figures are its own."""
    import zstandard

    data = opq.numpy.save(network, ratio=6)
    found = opq.compare(data)
    dense = safetensors.numpy.save(opq.numpy.load(data))
    assert found.dense["zstd -19"] == len(zstandard.ZstdCompressor(level=19).compress(dense))
    assert "not installed" not in str(found)


def test_a_file_without_weights_compares():
    """Auxiliary tensors alone have no codes, and no entropy of them."""
    found = opq.compare(opq.numpy.save({"a": np.arange(9)}, lossless=True))
    assert (found.code_bytes, found.integer_bytes, found.entropy_bytes) == (0, 0, 0.0)


@pytest.mark.parametrize("options", [{"ratio": 8}, {"sparsity": 0.73, "bits": 3.3}, {"lossless": True}])
def test_a_tied_weight_counts_once(options):
    """Under however many names it stands, its dense bytes, weights and bits count once, in compressing as in inspecting."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"tokens": torch.nn.Embedding(300, 64), "head": torch.nn.Linear(64, 300, bias=False)})
    if "lossless" in options:
        torch.nn.init.trunc_normal_(model["tokens"].weight).data.round_().add_(
            0.0
        )  # few distinct values, so that they become codes
    single = torch.nn.ModuleDict({"tokens": model["tokens"]})
    model["head"].weight = model["tokens"].weight
    both, one = opq.compress(model, **options), opq.compress(single, **options)
    assert both.dense_bytes == one.dense_bytes == 4 * 300 * 64
    found, alone = opq.inspect(both.data), opq.inspect(one.data)
    assert found.file_ratio == both.file_ratio
    assert (found.weights, found.dense_bytes) == (alone.weights, alone.dense_bytes)
    assert found.sparsity == pytest.approx(alone.sparsity, abs=0.01)
    assert both.file_bytes <= one.file_bytes + 40
    if both.plan is not None:
        assert both.plan.dense_bytes == both.dense_bytes
        assert both.plan.layers["head.weight"] == both.plan.layers["tokens.weight"]
    if "ratio" in options:
        assert 8 <= both.file_ratio < 8.1
