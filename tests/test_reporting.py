"""Reports of a file: what its bytes are used for, and sizes under other compressors."""

from __future__ import annotations

import gzip
import lzma
import re
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from thoroughness import examples

import opq
import opq.numpy
from opq.codec.file_reader import OpqFile
from opq.natural_order import natural_key
from opq.reporting.inspection import KINDS
from opq.text_table import file_summary, format_table, html_text, size_text

TENSORS = st.dictionaries(
    st.sampled_from(["a.weight", "b.weight", "b.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "x", "n"]),
    st.sampled_from([(8, 4), (3, 3, 2, 2), (40,), (), (0,)]),
    min_size=1,
)


@examples(60)
@given(TENSORS, st.sampled_from([1, 4, 100]), st.integers(0, 9))
def test_bytes_by_kind_add_up(shapes, values, seed):
    """The kinds add up to the file, and so do tensors and header. Codes and levels are the bytes of the weights."""
    random = np.random.default_rng(seed)
    state = {name: random.integers(0, values, shape) * np.float32(0.37) for name, shape in shapes.items()}
    data = opq.numpy.save(state, lossless=True)
    found = opq.inspect(data)
    assert tuple(found.bytes_by_kind) == KINDS
    assert sum(found.bytes_by_kind.values()) == len(data)
    assert found.bytes_by_kind["header"] + found.bytes_by_kind["checksums"] == found.header_bytes
    assert all(size >= 0 for size in found.bytes_by_kind.values())
    weights = sum(tensor.bytes for tensor in found.tensors if tensor.kind == "weight")
    assert found.bytes_by_kind["codes"] + found.bytes_by_kind["levels"] == weights
    assert all(tensor.bytes >= 0 for tensor in found.tensors)


def test_kinds_follow_names(network):
    """Tensors beside a running_var belong to a batch norm; other biases are biases; the rest is other."""
    state = {**network, "position_ids": np.arange(50), "excluded.weight": np.ones((3, 3)), "bias": np.ones(3)}
    data = opq.numpy.save(state, ratio=6, exclude=["excluded*"])
    kinds = {tensor.name: tensor.byte_kind for tensor in opq.inspect(data).tensors}
    for name in state:
        if "_bn." in name:
            assert kinds[name] == "batch-norm"
    assert (kinds["fc.weight"], kinds["fc.bias"], kinds["bias"]) == ("codes", "biases", "biases")
    assert kinds["position_ids"] == kinds["excluded.weight"] == "other auxiliary"


def test_the_bytes_of_a_pack_are_divided_by_entropy():
    """A constant tensor gets few bytes of its pack, a random one nearly all."""
    random = np.random.default_rng(0)
    state = {"constant": np.full(1000, 0.1), "random": random.normal(size=1000), "w": random.normal(size=(4, 4))}
    sizes = {tensor.name: tensor.bytes for tensor in opq.inspect(opq.numpy.save(state, lossless=True)).tensors}
    assert sizes["constant"] < 20
    assert sizes["random"] > 6000


def test_the_error_of_each_auxiliary_tensor_is_bounded(network):
    """Each value of an auxiliary tensor is within the larger of the reported errors; weights have none."""
    data = opq.numpy.save(network, ratio=6, auxiliary="uint8")
    found, back = opq.inspect(data), opq.numpy.load(data)
    assert {tensor.storage for tensor in found.tensors} == {"codes", "exact", "float16", "relative8"}
    for tensor in found.tensors:
        if tensor.kind == "weight":
            assert tensor.absolute_error is tensor.relative_error is None
        else:
            error = np.abs(back[tensor.name].astype(np.float64) - network[tensor.name])
            bound = np.maximum(tensor.absolute_error, tensor.relative_error * np.abs(network[tensor.name]))
            assert (error <= bound).all()
    assert "0." in str(found)


def test_levels_are_shown():
    """A weight with a table of levels shows their number instead of a step; bits are the width of a level's index."""
    state = {"t.weight": np.resize(np.array([-0.7, 0.0, 0.1, 0.3], dtype=np.float32), (30, 40))}
    found = opq.inspect(opq.numpy.save(state, lossless=True))
    (tensor,) = found.tensors
    assert (tensor.storage, tensor.levels, tensor.step, tensor.bits) == ("levels", 3, None, 2.0)
    assert tensor.sparsity == pytest.approx(0.25)
    assert found.nominal_ratio == pytest.approx(32 / (0.75 * 2))
    assert "3 levels" in str(found)


def test_a_comparison_has_the_sizes_of_the_compressors(network):
    """Each size is that of the compressor itself, for the checkpoint of `opq expand` and for the integers of the codes."""
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


def test_without_zstd_the_table_says_how_to_install_it(network, monkeypatch):
    """Zstd is an extra: without it its sizes are missing, and the table names the extra."""
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    found = opq.compare(opq.numpy.save(network, ratio=6))
    assert found.dense["zstd -19"] is found.codes["zstd -19"] is None
    assert "pip install 'opq[zstd]'" in str(found)


@pytest.mark.skipif(find_spec("zstandard") is None, reason="the package zstandard is not installed")
def test_with_zstd_it_is_compared(network):
    """If zstandard is installed, the reported sizes are those of its output."""
    import zstandard

    data = opq.numpy.save(network, ratio=6)
    found = opq.compare(data)
    dense = safetensors.numpy.save(opq.numpy.load(data))
    assert found.dense["zstd -19"] == len(zstandard.ZstdCompressor(level=19).compress(dense))
    assert "not installed" not in str(found)


def test_a_file_without_weights_compares():
    """Auxiliary tensors alone have no codes and no entropy."""
    found = opq.compare(opq.numpy.save({"a": np.arange(9)}, lossless=True))
    assert (found.code_bytes, found.integer_bytes, found.entropy_bytes) == (0, 0, 0.0)


@pytest.mark.parametrize("options", [{"ratio": 8}, {"sparsity": 0.73, "bits": 3.3}, {"lossless": True}])
def test_a_tied_weight_counts_once(options):
    """The dense bytes, weights and bits of a tied weight count once, in compress and in inspect."""
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


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9994, "9.99 kB"),
        (9995, "10.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (46_830_000, "46.8 MB"),
        (2_340_000, "2.34 MB"),
        (10**9, "1.00 GB"),
        (25 * 10**12, "25000 GB"),
    ],
)
def test_sizes_have_three_digits_and_a_decimal_unit(size, text):
    """Sizes have three digits, also near the limits between units, where rounding could give a fourth digit."""
    assert size_text(size) == text


def test_a_file_is_summarized_in_a_line():
    """The part about weights is left out if there are none."""
    assert file_summary(2_340_000, 46_830_000, 1.6, 0.553) == (
        "2.34 MB, 20.0x smaller than 46.8 MB (1.60 bits per weight, 55% zeros)"
    )
    assert file_summary(500, 1000, None, None) == "500 B, 2.0x smaller than 1.00 kB"
    assert file_summary(1020, 1000, None, None) == "1.02 kB, 1.02x larger than 1.00 kB"


def test_tables_escape_what_is_not_printable():
    """Names come from files; control sequences of a terminal are escaped, and HTML is too in notebooks."""
    assert format_table(("name", "bytes"), [("a\x1b[2J", "1"), ("é", "20")]) == (
        "name      bytes\n--------  -----\na\\x1b[2J      1\né            20"
    )
    assert html_text("<b>") == "<pre>&lt;b&gt;</pre>"


def test_tables_fit_a_terminal():
    """Tables of weights, of plans and of reasons have no line of more than 80 characters, and are in natural order."""
    random = np.random.default_rng(0)
    names = [f"encoder.a_rather_long_name_of_a_block.{n}.attention.qkv.weight" for n in (10, 9, 1)]
    state = {name: random.laplace(size=(40, 60)).astype(np.float32) for name in names}
    state |= {name.replace("weight", "bias"): np.zeros(60, np.float32) for name in names}
    found, plan = opq.inspect(opq.numpy.save(state, ratio=6)), opq.plan(state, ratio=6)
    for text in (str(found), str(plan)):
        assert max(map(len, text.splitlines())) <= 80
        shown = [line.split()[0] for line in text.splitlines() if "attention.qkv.weight" in line]
        assert [re.search(r"\.(\d+)\.", name)[1] for name in shown] == ["1", "9", "10"]
    assert "(3 other tensors)" in str(found)
    every = found.table(every=True)
    assert [line.split()[0] for line in every.splitlines() if line.startswith("encoder")] == sorted(state, key=natural_key)
