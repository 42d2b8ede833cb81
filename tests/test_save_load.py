"""opq.numpy and opq.torch: saving and loading as safetensors users know it."""

import numpy as np
import pytest

import opq
import opq.numpy


def test_numpy_round_trip(network, tmp_path):
    """What is loaded has the saved names, shapes, dtypes and metadata; whole, from bytes, or one tensor at a time."""
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


def test_a_plan_serves_in_place_of_a_target(network, tmp_path):
    """save_file follows a plan as compress does."""
    plan = opq.plan(network, ratio=8)
    assert opq.numpy.save(network, plan=plan) == opq.compress(network, plan=plan).data


def test_a_target_is_needed(network, tmp_path):
    """Saving without a target or plan is an error, and writes nothing."""
    with pytest.raises(opq.TargetError):
        opq.numpy.save_file(network, tmp_path / "n.opq")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("tensors", "metadata"), [({"\ud800": 1}, {}), ({}, {"a": "\ud800"}), ({}, {"a": 1})])
def test_what_is_no_text_is_refused(tensors, metadata, network):
    """Names and metadata that UTF-8 cannot express, or that are no text, are errors of ours, before anything is made."""
    state = {**network, **dict.fromkeys(tensors, network["fc.bias"])}
    with pytest.raises(opq.SourceError, match="not text"):
        opq.numpy.save(state, metadata, ratio=8)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_file_is_read_from_any_bytes(kind, network):
    """Bytes, a bytearray and a memoryview of a file are all the same file."""
    data = opq.numpy.save(network, ratio=8)
    with opq.OpqFile(kind(data)) as file:
        assert len(file) == len(network)


def test_one_tensor_is_read_without_the_others(network, tmp_path):
    """Damage to one section is found when its tensor is asked for, by name, and not before."""
    data = bytearray(opq.numpy.save(network, ratio=8))
    with opq.OpqFile(bytes(data)) as file:
        last = max(file.entries, key=lambda entry: entry.section)
    data[-1] ^= 1
    (tmp_path / "n.opq").write_bytes(data)
    with opq.numpy.safe_open(tmp_path / "n.opq") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            if name == last.name:
                with pytest.raises(opq.FormatError, match=f"{name}.*the checksum does not match"):
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
    """A model saved and loaded has bit for bit the weights that fake_quantize gives in torch, and the rest untouched."""
    torch = pytest.importorskip("torch")
    import opq.torch

    model = make_model(torch, getattr(torch, dtype))
    path = tmp_path / "m.opq"
    compressed = opq.torch.save_model(model, path, ratio=5)
    other = make_model(torch, getattr(torch, dtype))
    assert opq.torch.load_model(other, path) == ([], [])
    for name, tensor in model.state_dict().items():
        expected = opq.fake_quantize(tensor, compressed.plan.layers[name]) if name in compressed.plan.layers else tensor
        loaded = other.state_dict()[name]
        assert loaded.dtype == tensor.dtype
        assert torch.equal(loaded, expected)
    with opq.torch.safe_open(path) as file:
        assert torch.equal(file.get_tensor("0.weight"), other[0].weight)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in opq.torch.load(path.read_bytes()).items())


def test_torch_and_numpy_load_the_same_bytes(tmp_path):
    """One file, two faces, the same bits: zero-dimensional, empty, bool and bfloat16 tensors included."""
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
    """Two names for one parameter are both in the file, share a section, and load back."""
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


def test_loading_into_another_model_is_strict_unless_told(tmp_path):
    """Missing and unexpected names are torch's error when strict, and are returned when not."""
    torch = pytest.importorskip("torch")
    import opq.torch

    opq.torch.save_file({"weight": torch.randn(40, 30), "extra": torch.ones(2)}, tmp_path / "m.opq", sparsity=0.5, bits=4)
    model = torch.nn.Linear(30, 40)
    with pytest.raises(RuntimeError, match="Missing key"):
        opq.torch.load_model(model, tmp_path / "m.opq")
    assert opq.torch.load_model(model, tmp_path / "m.opq", strict=False) == (["bias"], ["extra"])


def test_a_missing_file_is_a_source_error(tmp_path):
    """As is a folder."""
    for path in (tmp_path / "none.opq", tmp_path):
        with pytest.raises(opq.SourceError, match="cannot read"):
            opq.numpy.load_file(path)


def test_inspection_accounts_for_every_byte(network):
    """Header and tensors add up to the file; ratios and fractions are what their definitions say."""
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
    assert all(name in str(found) for name in rows)


def test_verification_counts_what_it_proved(network):
    """A whole file is proven; the counts are those of its tensors."""
    proof = opq.verify(opq.numpy.save(network, ratio=8))
    assert (proof.weights, proof.auxiliary) == (4, len(network) - 4)
