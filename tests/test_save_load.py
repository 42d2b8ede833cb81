"""Saving and loading: opq.save, opq.load, opq.numpy and opq.torch; and how results print."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from float16_errors import within_float16

import opq
import opq.numpy


def test_numpy_round_trip(network, tmp_path):
    """Loaded tensors have the saved names, shapes, dtypes and metadata: all at once, from bytes, and one at a time."""
    path = tmp_path / "n.opq"
    compressed = opq.numpy.save_file(network, path, metadata={"epoch": "3"}, ratio=8)
    assert path.read_bytes() == compressed.data == opq.numpy.save(network, metadata={"epoch": "3"}, ratio=8)
    loaded = opq.numpy.load_file(path)
    assert {k: (v.shape, v.dtype) for k, v in loaded.items()} == {k: (v.shape, v.dtype) for k, v in network.items()}
    from_bytes = opq.numpy.load(path.read_bytes())
    with opq.numpy.safe_open(path) as file:
        assert file.keys() == sorted(network)
        assert file.metadata() == {"epoch": "3"}
        for name in file.keys():  # noqa: SIM118 - not a dict
            assert file.get_tensor(name).tobytes() == loaded[name].tobytes() == from_bytes[name].tobytes()
        with pytest.raises(KeyError):
            file.get_tensor("nobody")


def test_a_plan_can_be_saved_with(network):
    """save_file follows a plan as compress does."""
    plan = opq.plan(network, ratio=8)
    assert opq.numpy.save(network, config=plan) == opq.compress(network, plan).data
    with pytest.raises(TypeError, match="'ratio'"):
        opq.numpy.save(network, config=plan, ratio=8)


def test_a_target_is_needed(network, tmp_path):
    """Saving without a target or plan is an error, and writes nothing."""
    with pytest.raises(opq.TargetError):
        opq.numpy.save_file(network, tmp_path / "n.opq")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("tensors", "metadata"), [({"\ud800": 1}, {}), ({}, {"a": "\ud800"}), ({}, {"a": 1})])
def test_names_and_metadata_that_are_not_text_are_refused(tensors, metadata, network):
    """Names and metadata that are not text, or that UTF-8 cannot encode, raise SourceError."""
    state = {**network, **dict.fromkeys(tensors, network["fc.bias"])}
    with pytest.raises(opq.SourceError, match="not text"):
        opq.numpy.save(state, metadata, ratio=8)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_file_is_read_from_any_bytes(kind, network):
    """Bytes, a bytearray and a memoryview of a file are read alike."""
    data = opq.numpy.save(network, ratio=8)
    with opq.OpqFile(kind(data)) as file:
        assert len(file) == len(network)


def test_one_tensor_is_read_without_the_others(network, tmp_path):
    """Damage to a section is found when its tensor is read, and not before."""
    data = bytearray(opq.numpy.save(network, ratio=8))
    with opq.OpqFile(bytes(data)) as file:
        last = max(file.entries, key=lambda entry: entry.section)
    data[-1] ^= 1
    (tmp_path / "n.opq").write_bytes(data)
    with opq.numpy.safe_open(tmp_path / "n.opq") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            if name == last.name:
                with pytest.raises(opq.FormatError, match=f"{name}.*checksum"):
                    file.get_tensor(name)
            else:
                file.get_tensor(name)


def make_model(torch, dtype):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3),
        torch.nn.BatchNorm2d(32),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 32, 3),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 10),
    )
    return model.to(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_torch_round_trip(dtype, tmp_path):
    """The weights of a loaded model are bit-equal to fake_quantize under the plan. Vectors of float32 and float64 have the
    error of float16; all other tensors are unchanged.
    """
    torch = pytest.importorskip("torch")
    import opq.torch

    model = make_model(torch, getattr(torch, dtype))
    path = tmp_path / "m.opq"
    compressed = opq.torch.save_model(model, path, ratio=5, rounding="deadzone")
    other = make_model(torch, getattr(torch, dtype))
    assert opq.torch.load_model(other, path) == (set(), [])
    for name, tensor in model.state_dict().items():
        loaded = other.state_dict()[name]
        assert loaded.dtype == tensor.dtype
        if name in compressed.plan.layers:
            assert torch.equal(loaded, opq.functional.fake_quantize(tensor, compressed.plan.layers[name]))
        elif tensor.dtype in (torch.float32, torch.float64):
            assert within_float16(loaded, tensor)
        else:
            assert torch.equal(loaded, tensor)
    with opq.torch.safe_open(path) as file:
        assert torch.equal(file.get_tensor("0.weight"), other[0].weight)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in opq.torch.load(path.read_bytes()).items())


def test_torch_and_numpy_load_the_same_bytes(tmp_path):
    """Both load the same bits, for zero-dimensional, empty, bool and bfloat16 tensors too."""
    torch = pytest.importorskip("torch")
    import opq.torch

    tensors = {
        "w": torch.randn(20, 30).to(torch.bfloat16),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
        "steps": torch.tensor(7),
    }
    opq.torch.save_file(tensors, tmp_path / "t.opq", sparsity=0.5, bits=4)
    arrays = opq.numpy.load_file(tmp_path / "t.opq")
    for name, tensor in opq.torch.load_file(tmp_path / "t.opq").items():
        assert (tensor.dtype, tensor.shape) == (tensors[name].dtype, tensors[name].shape)
        assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == arrays[name].tobytes()


def test_tied_parameters_of_a_model_are_stored_once(tmp_path):
    """Both names of a tied parameter are in the file, share a section, and load."""
    torch = pytest.importorskip("torch")
    import opq.torch

    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(200, 32), "head": torch.nn.Linear(32, 200, bias=False)})
    model["head"].weight = model["embed"].weight
    opq.torch.save_model(model, tmp_path / "m.opq", ratio=15)
    with opq.OpqFile(tmp_path / "m.opq") as file:
        assert len({entry.section for entry in file.entries}) == 1
    missing, unexpected = opq.torch.load_model(model, tmp_path / "m.opq")
    assert not missing
    assert not unexpected


@pytest.mark.parametrize("kept", ["embed.weight", "head.weight"])
def test_a_tied_weight_needs_one_of_its_names(kept, tmp_path):
    """`load_model` returns what safetensors' does: a name is missing only if no name of the file fills its memory."""
    torch = pytest.importorskip("torch")
    import opq.torch

    def tied():
        model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(20, 32), "head": torch.nn.Linear(32, 20, bias=False)})
        model["head"].weight = model["embed"].weight
        return model

    given = torch.randn(20, 32)
    opq.torch.save_file({kept: given}, tmp_path / "m.opq", lossless=True)
    model = tied()
    assert opq.torch.load_model(model, tmp_path / "m.opq") == (set(), [])
    assert torch.equal(opq.load(tied(), tmp_path / "m.opq")["head"].weight, given)
    model["head"].weight = torch.nn.Parameter(torch.zeros(20, 32))
    with pytest.raises(RuntimeError, match="Missing key"):
        opq.torch.load_model(model, tmp_path / "m.opq")


def test_loading_into_another_model_is_strict_by_default(tmp_path):
    """Missing and unexpected names are an error of torch, or are returned with strict=False."""
    torch = pytest.importorskip("torch")
    import opq.torch

    opq.torch.save_file({"weight": torch.randn(40, 30), "extra": torch.ones(2)}, tmp_path / "m.opq", sparsity=0.5, bits=4)
    model = torch.nn.Linear(30, 40)
    with pytest.raises(RuntimeError, match="Missing key"):
        opq.torch.load_model(model, tmp_path / "m.opq")
    assert opq.torch.load_model(model, tmp_path / "m.opq", strict=False) == ({"bias"}, ["extra"])


def test_a_missing_file_is_a_source_error(tmp_path):
    """A missing file and a folder are a SourceError."""
    for path in (tmp_path / "none.opq", tmp_path):
        with pytest.raises(opq.SourceError, match="cannot read"):
            opq.numpy.load_file(path)


def test_inspection_counts_every_byte(network):
    """Header and tensors add up to the file; ratios and fractions follow their definitions."""
    data = opq.numpy.save(network, ratio=8)
    found = opq.inspect(data)
    assert found.header_bytes + sum(tensor.bytes for tensor in found.tensors) == len(data) == found.file_bytes
    dense = sum(array.nbytes for array in network.values())
    weights = {name: array for name, array in opq.numpy.load(data).items() if array.ndim >= 2}
    count = sum(array.size for array in weights.values())
    kept = sum(np.count_nonzero(array) for array in weights.values())
    assert (found.dense_bytes, found.weights) == (dense, count)
    assert found.file_ratio == pytest.approx(dense / len(data))
    assert found.bits_per_weight == pytest.approx(8 * len(data) / count)
    assert found.sparsity == pytest.approx(1 - kept / count)
    rows = {tensor.name: tensor for tensor in found.tensors}
    assert {name for name, row in rows.items() if row.kind == "weight"} == set(weights)
    widths = sum(row.bits * (1 - row.sparsity) * weights[row.name].size for row in rows.values() if row.kind == "weight")
    assert found.nominal_ratio == pytest.approx(32 * count / widths)
    assert rows["fc.bias"].sparsity is rows["fc.bias"].step is rows["fc.bias"].bits is None
    assert all(name in found.table(every=True) for name in rows)


def test_verification_counts_tensors(network):
    """A valid file is verified; the counts are those of its tensors."""
    found = opq.verify(opq.numpy.save(network, ratio=8))
    assert (found.weights, found.auxiliary) == (4, len(network) - 4)


def to_sources(network, tmp_path):
    """The same network as every kind of source of opq.save: arrays, torch tensors, a checkpoint's path, and a module."""
    torch = pytest.importorskip("torch")
    safetensors.numpy.save_file(network, tmp_path / "net.safetensors")
    tensors = {name: torch.from_numpy(array.copy()) for name, array in network.items()}
    module = torch.nn.Module()
    module.state_dict = lambda: tensors
    return [network, tensors, tmp_path / "net.safetensors", str(tmp_path / "net.safetensors"), module]


def test_a_file_is_replaced_only_if_asked(network, tmp_path):
    """With `overwrite=False` an existing file is an error, and stays."""
    path = tmp_path / "net.opq"
    opq.save(network, path, ratio=6, overwrite=False, progress=False)
    before = path.read_bytes()
    with pytest.raises(opq.OutputError, match="it exists"):
        opq.save(network, path, ratio=20, overwrite=False, progress=False)
    assert path.read_bytes() == before
    opq.save(network, path, ratio=20, progress=False)
    assert path.read_bytes() != before


def test_one_line_saves_any_source(network, tmp_path):
    """opq.save writes the file of opq.compress for arrays, tensors, a path and a module, and returns the compressed network."""
    expected = opq.compress(network, ratio=20).data
    for source in to_sources(network, tmp_path):
        compressed = opq.save(source, tmp_path / "net.opq", ratio=20)
        assert (tmp_path / "net.opq").read_bytes() == compressed.data == expected
    opq.save(network, tmp_path / "net.opq", opq.CompressionConfig(target=opq.Ratio(20)), metadata={"a": "b"})
    with opq.OpqFile(tmp_path / "net.opq") as file:
        assert file.metadata == {"a": "b"}
    with pytest.raises(opq.OutputError):
        opq.save(network, tmp_path / "no folder" / "net.opq", ratio=20)


def test_one_line_loads_a_module_or_tensors(tmp_path):
    """opq.load(model, path) loads the module in place and returns it; opq.load(path) returns {name: tensor}."""
    torch = pytest.importorskip("torch")
    model = make_model(torch, torch.float32)
    opq.save(model, tmp_path / "m.opq", ratio=5)
    other = make_model(torch, torch.float32)
    assert opq.load(other, tmp_path / "m.opq") is other
    tensors = opq.load(tmp_path / "m.opq")
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in other.state_dict().items())
    assert opq.load(str(tmp_path / "m.opq"), device="meta")["0.weight"].device.type == "meta"
    with pytest.raises(RuntimeError, match="Missing key"):
        opq.load(torch.nn.Linear(3, 4), tmp_path / "m.opq")
    for wrong in ((other,), (tmp_path / "m.opq", tmp_path / "m.opq")):
        with pytest.raises(TypeError, match="a network and a file"):
            opq.load(*wrong)


def test_opq_numpy_needs_no_torch(network, tmp_path):
    """opq.numpy loads a file where torch cannot be imported; opq.load names opq.numpy.load_file instead."""
    opq.numpy.save_file(network, tmp_path / "n.opq", ratio=8)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import opq, opq.numpy\n"
        "print(len(opq.numpy.load_file(sys.argv[1])))\n"
        "try:\n    opq.load(sys.argv[1])\nexcept opq.MissingExtraError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "n.opq")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{len(network)}\n")
    assert "opq.numpy.load_file" in done.stdout
    assert "pip install 'opq[torch]'" in done.stdout


SLICES = [
    np.s_[:],
    np.s_[2:5],
    np.s_[-1],
    np.s_[1, 2],
    np.s_[::2, 1:],
    np.s_[..., 0],
    np.s_[[0, 3]],
    np.s_[3:3],
    np.s_[None, 0],
]


@pytest.mark.parametrize("index", SLICES, ids=str)
def test_a_slice_equals_the_slice_of_the_tensor(index, tmp_path):
    """Slices of weights and auxiliary tensors are those of the tensor, in NumPy and torch."""
    random = np.random.default_rng(0)
    state = {name: random.normal(size=(6, 5, 4)).astype(np.float32) for name in ("weight", "excluded")}
    opq.numpy.save_file(state, tmp_path / "n.opq", sparsity=0.5, bits=4, exclude=["excluded"])
    with opq.numpy.safe_open(tmp_path / "n.opq", framework="np") as file:
        for name in state:
            part, tensor = file.get_slice(name), file.get_tensor(name)
            assert (part.get_shape(), part.get_dtype()) == ([6, 5, 4], "F32")
            np.testing.assert_array_equal(part[index], tensor[index])
    torch = pytest.importorskip("torch")
    from opq import torch as opq_torch

    with opq_torch.safe_open(tmp_path / "n.opq", framework="pt", device="cpu") as file:
        for name in state:
            assert torch.equal(file.get_slice(name)[index], file.get_tensor(name)[index])


def test_safe_open_has_the_interface_of_safetensors(network, tmp_path):
    """Keys, metadata, shapes and dtypes are those that safetensors.safe_open gives for the expanded checkpoint."""
    network["scalar"] = np.float64(2.0)
    network["flags"] = np.array([True, False])
    opq.numpy.save_file(network, tmp_path / "n.opq", metadata={"epoch": "3"}, ratio=8)
    opq.expand(tmp_path / "n.opq", tmp_path / "n.safetensors")
    with (
        opq.numpy.safe_open(tmp_path / "n.opq", framework="np") as opened,
        safetensors.safe_open(tmp_path / "n.safetensors", framework="np") as reference,
    ):
        assert sorted(opened.keys()) == sorted(opened.offset_keys()) == sorted(reference.keys())
        assert opened.metadata() == reference.metadata()
        for name in reference.keys():  # noqa: SIM118 - not a dict
            np.testing.assert_array_equal(opened.get_tensor(name), reference.get_tensor(name))
            for method in ("get_shape", "get_dtype"):
                assert getattr(opened.get_slice(name), method)() == getattr(reference.get_slice(name), method)()
        with pytest.raises(KeyError):
            opened.get_slice("nobody")


def test_safe_open_refuses_other_frameworks(network, tmp_path):
    """The error names the accepted frameworks; NumPy has no device except the CPU."""
    opq.numpy.save_file(network, tmp_path / "n.opq", ratio=8)
    with pytest.raises(ValueError, match="framework must be one of 'numpy', 'np', got 'pt'"):
        opq.numpy.safe_open(tmp_path / "n.opq", framework="pt")
    with pytest.raises(ValueError, match="device must be 'cpu'"):
        opq.numpy.safe_open(tmp_path / "n.opq", device="cuda")
    pytest.importorskip("torch")
    from opq import torch as opq_torch

    with pytest.raises(ValueError, match="framework must be one of 'pt', 'torch', 'pytorch', got 'np'"):
        opq_torch.safe_open(tmp_path / "n.opq", framework="np")
    with opq_torch.safe_open(tmp_path / "n.opq", device="meta") as file:
        assert file.get_tensor("fc.weight").device.type == "meta"


def test_functional_works_on_single_weights(network):
    """opq.functional holds five functions, whose results fit together."""
    assert opq.functional.__all__ == ["dequantize", "fake_quantize", "mask", "measure", "quantize"]
    plan = opq.plan(network, ratio=8, rounding="deadzone").layers["fc.weight"]
    weight = network["fc.weight"]
    codes = opq.functional.quantize(weight, plan)
    rounded = opq.functional.fake_quantize(weight, plan)
    np.testing.assert_array_equal(opq.functional.dequantize(codes, plan.step, weight.dtype), rounded)
    np.testing.assert_array_equal(opq.functional.mask(weight, plan), rounded != 0)
    assert opq.functional.measure(weight).count == weight.size


def test_results_print_as_small_tables(network):
    """str() of a result is a line or a table, which notebooks show too; repr() is one line."""
    compressed = opq.compress(network, ratio=8)
    assert str(compressed).startswith(f"{compressed.file_bytes / 1000:.1f} kB, 8.0x smaller than ")
    found = opq.inspect(compressed.data)
    comparison = opq.compare(compressed.data)
    for result, columns in (
        (found, "weight "),
        (comparison, " "),
        (opq.plan(network, ratio=8), "weight "),
    ):
        assert str(result).startswith(columns)
        assert "<pre>" in result._repr_html_()
    assert str(found).endswith(f"\n{compressed}\nnominal ratio {found.nominal_ratio:.1f}")
    assert repr(found).startswith("<Inspection: 20 tensors, ")
    assert repr(comparison).startswith(f"<Comparison: opq {compressed.file_bytes:,} bytes, gzip -9 ")


@pytest.mark.slow
def test_no_result_has_a_long_repr(network, tmp_path):
    """A repr has at most 300 characters, however many tensors there are, so that notebooks and debuggers stay readable."""
    state = {f"{copy}.{name}": array for copy in range(10) for name, array in network.items()}
    compressed = opq.compress(state, ratio=8)
    plan = compressed.plan
    with opq.OpqFile(compressed.data) as file:
        results = [
            compressed,
            plan,
            opq.plan(state, sparsity=0.5, bits=3).layers["0.layer2.conv.weight"],
            opq.inspect(file_bytes := compressed.data),
            opq.inspect(file_bytes).tensors[0],
            opq.compare(file_bytes),
            opq.verify(file_bytes),
            opq.expand(file_bytes, tmp_path / "n.safetensors"),
            opq.rd_curve(state)[0],
            file,
            file["0.fc.weight"],
            opq.functional.measure(state["0.fc.weight"]),
        ]
    long = {type(result).__name__: len(repr(result)) for result in results if len(repr(result)) > 300}
    assert long == {}


@pytest.mark.slow
def test_no_result_of_a_network_has_a_long_repr():
    """As above, for results that require torch."""
    torch = pytest.importorskip("torch")
    model = make_model(torch, torch.float32)
    batches = [(torch.randn(8, 3, 6, 6), torch.randint(10, (8,)))]
    calibration = opq.calibrate(model, batches)
    searched = opq.compress_to_accuracy(model, batches, max_drop=100.0, tolerance=0.9)
    finetuned = opq.finetune(model, batches, opq.CompressionConfig(target=opq.Ratio(5)), opq.TrainingConfig(epochs=1))
    prepared = opq.prepare(make_model(torch, torch.float32), ratio=5)
    results = [
        calibration,
        calibration.compress(ratio=5),
        searched,
        searched.best,
        searched.dense,
        finetuned,
        prepared,
    ]
    long = {type(result).__name__: len(repr(result)) for result in results if len(repr(result)) > 300}
    assert long == {}
    assert "\n" in str(searched)
    assert "under the budget" in str(finetuned)


def test_compress_logs_to_the_logger_opq(network, caplog):
    """The logger has no handler, so that Python prints its warnings and nothing else by default, and gets debug lines."""
    assert not logging.getLogger("opq").handlers
    with caplog.at_level(logging.DEBUG, logger="opq"):
        opq.compress(network, ratio=8)
    lines = [record for record in caplog.records if record.name == "opq"]
    assert lines
    assert all(record.levelno == logging.DEBUG for record in lines)
