"""PyTorch to ONNX to .opq to ONNX Runtime: outputs are those of the network with the file's weights in PyTorch."""

from __future__ import annotations

import copy

import ml_dtypes
import numpy as np
import pytest

import opq
from opq.checkpoints import as_state
from opq.checkpoints.onnx_graph import GRAPH, pack_graph, reference_of, unpack_graph
from opq.errors import FormatError
from opq.quantization.compressed_tensor import CompressedTensor

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx_networks import NETWORKS, export, make, run  # noqa: E402
from torch.nn.utils.fusion import fuse_conv_bn_eval  # noqa: E402

ROUNDING = 2e-5
"""Largest difference by rounding, relative to the largest output."""

TARGETS = {"alexnet": 8, "mobilenet": 3, "resnet50": 4, "vit": 5, "bert": 5, "gpt2": 5}
"""File ratios at which codes fit integers; graphs take much of these small files."""


def fused(model):
    """The network with batch norms inside of convolutions, as exporters fold them."""
    for module in model.modules():
        if isinstance(module, torch.nn.Sequential):
            for number in range(len(module) - 1):
                if isinstance(module[number], torch.nn.Conv2d) and isinstance(module[number + 1], torch.nn.BatchNorm2d):
                    module[number] = fuse_conv_bn_eval(module[number], module[number + 1])
                    module[number + 1] = torch.nn.Identity()
    return model


def with_weights_of(file, original, model):
    """The network in PyTorch with the file's values in place of the equal ones of the original ONNX model."""
    model = copy.deepcopy(model)
    before, after = as_state(original), opq.OpqFile(file)
    found = set()
    for parameter in model.parameters():
        value = parameter.detach().numpy()
        for name in before:
            tensor = before[name]
            for same in (tensor, tensor.T):
                if same.shape == value.shape and same.size > 1 and np.array_equal(same, value):
                    new = after.array(name)
                    parameter.data = torch.tensor(new if same is tensor else new.T)
                    found.add(name)
    return model, found


def assert_close(found, expected):
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= ROUNDING * np.abs(expected).max()


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"lstm"}))
def test_onnx_runtime_agrees_with_the_quantized_network_in_pytorch(name, tmp_path, one_thread):
    """For every kind of network, whatever the weights are in the ONNX model: floats, or integers."""
    model, inputs = make(name)
    model = fused(model)
    path = export(model, inputs, tmp_path / "m.onnx")
    folded = [name for name in as_state(path) if name.startswith("onnx::Add")]  # rows of an embedding, which PyTorch has whole
    compressed = opq.compress(path, ratio=TARGETS[name], exclude=folded)
    quantized, found = with_weights_of(compressed.data, path, model)
    assert found >= set(compressed.plan.layers)
    with torch.no_grad():
        expected, dense = quantized(inputs).numpy(), model(inputs).numpy()
    assert np.abs(expected - dense).max() > 10 * ROUNDING * np.abs(dense).max()  # the weights did change
    for weights in ("float", "int8", "auto"):
        written = opq.expand(compressed.data, tmp_path / "o.onnx", weights=weights)
        assert_close(run(written.path, inputs), expected)
        assert set(written.integers) | set(written.floats) == (set() if weights == "float" else set(compressed.plan.layers))
        assert len(written.integers) >= (0 if weights == "float" else 3)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("folding", [True, False])
def test_nothing_is_lost(name, folding, tmp_path, one_thread):
    """Lossless, with and without folded constants, outputs are the same bits, and the graph has the same tensors."""
    model, inputs = make(name)
    path = export(model, inputs, tmp_path / "m.onnx", do_constant_folding=folding)
    compressed = opq.compress(path, lossless=True)
    assert compressed.file_bytes < path.stat().st_size
    steps: list[tuple[str, int, int]] = []
    written = opq.expand(compressed.data, tmp_path / "o.onnx", progress=lambda *step: steps.append(step))
    assert steps[-1] == ("decoding", written.tensors, written.tensors)
    assert np.array_equal(run(path, inputs), run(written.path, inputs))
    before, after = as_state(path), as_state(written.path)
    assert sorted(before) == sorted(after)
    assert all(np.array_equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("folding", "options"), [(True, {"ratio": 3, "scales": "rows"}), (False, {"sparsity": 0.25, "bits": 3})]
)
def test_integers_change_nothing(name, folding, options, tmp_path, one_thread):
    """With a step per row, or with few codes, integers give the outputs of floats, and the model on disk is smaller."""
    model, inputs = make(name)
    path = export(model, inputs, tmp_path / "m.onnx", do_constant_folding=folding)
    data = opq.compress(path, layers={"*": opq.LayerConfig(bits=options.get("bits"))}, **options).data
    dense = opq.expand(data, tmp_path / "f.onnx")
    for weights in ("int8", "int4", "auto"):
        written = opq.expand(data, tmp_path / "i.onnx", weights=weights)
        assert_close(run(written.path, inputs), run(dense.path, inputs))
        if "bits" in options:
            assert set(written.integers.values()) == ({8} if weights == "int8" else {4})
            assert not written.floats
            assert written.file_bytes < dense.file_bytes


@pytest.mark.parametrize("name", ["alexnet", "mobilenet"])
def test_old_models(name, tmp_path, one_thread):
    """Models of an early version, whose initializers are inputs too, become integers as well."""
    model, inputs = make(name)
    path = export(model, inputs, tmp_path / "m.onnx", opset_version=11, keep_initializers_as_inputs=True)
    data = opq.compress(path, sparsity=0.25, bits=3).data
    dense = opq.expand(data, tmp_path / "f.onnx")
    for weights in ("int8", "int4"):
        written = opq.expand(data, tmp_path / "i.onnx", weights=weights)
        assert len(written.integers) >= 4
        assert_close(run(written.path, inputs), run(dense.path, inputs))


def test_halves_keep_their_values(tmp_path, one_thread):
    """Weights in float16 become integers whose products with the step, rounded to float16, are those of the file."""
    model, inputs = make("alexnet")
    path = export(model.half(), inputs.half(), tmp_path / "m.onnx")
    data = opq.compress(path, ratio=3).data
    dense, integers = (opq.expand(data, tmp_path / f"{weights}.onnx", weights=weights) for weights in ("float", "int8"))
    before, after = as_state(dense.path), as_state(integers.path)
    assert len(integers.integers) == 4
    for name in integers.integers:
        values = (after[f"{name}_codes"].astype(np.float32) * after[f"{name}_step"]).astype(np.float16)
        assert np.array_equal(values.reshape(before[name].shape), before[name])
    found, expected = run(integers.path, inputs.half()), run(dense.path, inputs.half())
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()  # ONNX Runtime rounds other values in float16 or not


def test_rows_are_outputs(tmp_path, one_thread):
    """Weights of MatMul and Gemm lie in the file as PyTorch has them, (outputs, inputs), and recurrent ones are matrices."""
    model, inputs = make("gpt2")
    state = as_state(export(model, inputs, tmp_path / "m.onnx"))
    matrices = [name for name in state if len(state.describe(name)[1]) == 2]
    assert sum(state.describe(name)[1] == (120, 32) for name in matrices) == 2  # the embedding and the head
    assert {state.describe(name)[1] for name in matrices} >= {(64, 32), (32, 64), (32, 32)}
    compressed = opq.compress(state, ratio=4)
    embedding, head = (name for name in matrices if state.describe(name)[1] == (120, 32))
    assert compressed.plan.layers[head].step == compressed.plan.layers[embedding].step
    file = opq.OpqFile(compressed.data)
    assert file.entry(embedding).section == file.entry(head).section
    model, inputs = make("lstm")
    state = as_state(export(model, inputs, tmp_path / "m.onnx"))
    assert {state.describe(name)[1] for name in state} >= {(96, 32), (96, 12), (24, 8, 2)}


def test_roles_follow_uses(tmp_path, one_thread):
    """Weights and biases are parameters by what uses them, whatever their names are."""
    model, inputs = make("vit")
    state = as_state(export(model, inputs, tmp_path / "m.onnx"))
    weights = set(opq.plan(state, ratio=3).layers)
    assert len(weights) == 1 + 2 * 6 + 2  # patches, layers, head and positions; Gemm and MatMul lose their names
    assert all(state.is_parameter(name) for name in weights - {"positions"})
    stored = opq.OpqFile(opq.compress(state, ratio=3).data)
    biases = [name for name in state if len(state.describe(name)[1]) == 1 and name != GRAPH and state.is_parameter(name)]
    assert len(biases) > 10
    assert sum(stored.entry(name).storage == "float16" for name in biases) > 10


def test_a_file_without_a_graph_is_no_onnx_model(tmp_path):
    """A .opq file of a PyTorch checkpoint is refused in one line that says what to do."""
    data = opq.compress({"w": np.random.default_rng(0).normal(size=(30, 40)).astype(np.float32)}, ratio=4).data
    with pytest.raises(opq.OutputError, match=r"o.onnx: the file holds no ONNX graph, .*torch.onnx.export"):
        opq.expand(data, tmp_path / "o.onnx")
    with pytest.raises(opq.ConfigError, match=r"weights must be one of float, int8, int4, auto, got 'int2'"):
        opq.expand(data, tmp_path / "o.onnx", weights="int2")
    with pytest.raises(opq.ConfigError, match=r"weights \(='int8'\) are for an ONNX model"):
        opq.expand(data, tmp_path / "o.safetensors", weights="int8")


def test_codes_that_do_not_fit_stay_floats(tmp_path, one_thread):
    """A weight of which many codes exceed the integers is named, with the reason, and keeps its values."""
    model, inputs = make("alexnet")
    path = export(model, inputs, tmp_path / "m.onnx")
    data = opq.compress(path, ratio=1.8).data
    written = opq.expand(data, tmp_path / "o.onnx", weights="int4")
    assert not written.integers
    assert set(written.floats.values()) == {"more than 3% of the codes need more than 4 bits"}
    beyond = {name for name, weight in opq.OpqFile(data).weights() if (np.abs(weight.codes) > 127).mean() > 1 / 32}
    assert set(opq.expand(data, tmp_path / "o.onnx", weights="int8").floats) == beyond


@pytest.mark.parametrize("name", NETWORKS)
def test_outliers_keep_their_values(name, tmp_path, one_thread):
    """A few codes of a weight may exceed the integers: the model has their values, and the others as integers."""
    model, inputs = make(name)
    file = opq.OpqFile(opq.compress(export(model, inputs, tmp_path / "m.onnx"), ratio=4, rounding="deadzone").data)
    tensors = dict(file)
    for key, weight in file.weights():
        codes = weight.codes.copy()
        codes.reshape(-1)[::101] *= 60
        tensors[key] = CompressedTensor(codes, weight.codebook, weight.dtype)
    data = opq.compress(tensors, lossless=True).data
    largest = {key: np.abs(weight.codes).max() for key, weight in opq.OpqFile(data).weights()}
    dense, integers = (opq.expand(data, tmp_path / f"{weights}.onnx", weights=weights) for weights in ("float", "int8"))
    assert any(largest[key] > 127 for key in integers.integers)
    assert_close(run(integers.path, inputs), run(dense.path, inputs))
    state = as_state(integers.path)
    for key in (key for key in integers.integers if largest[key] > 127):
        assert np.isin(state[f"{key}_outliers"], as_state(dense.path)[key]).all()


def test_a_large_model_has_its_data_beside_it(tmp_path, one_thread, monkeypatch):
    """Above the limit of a .onnx file tensors are in a file beside it, which opq and ONNX Runtime read."""
    monkeypatch.setattr("opq.reporting.onnx_export.LARGEST_MODEL", 10_000)
    model, inputs = make("mobilenet")
    path = export(model, inputs, tmp_path / "m.onnx")
    written = opq.expand(opq.compress(path, lossless=True).data, tmp_path / "o.onnx")
    assert written.file_bytes == sum((tmp_path / name).stat().st_size for name in ("o.onnx", "o.onnx.data"))
    assert np.array_equal(run(path, inputs), run(written.path, inputs))
    before, after = as_state(path), as_state(written.path)
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert opq.compress(after, ratio=4).data == opq.compress(before, ratio=4).data


def test_a_damaged_graph_is_one_line(tmp_path, one_thread):
    """A graph that is no graph, is too large, or does not fit to the tensors beside it is a FormatError."""
    import zlib

    model, inputs = make("alexnet")
    path = export(model, inputs, tmp_path / "m.onnx")
    file = opq.OpqFile(opq.compress(path, ratio=3).data)
    tensors = {name: file[name] for name in file}
    weight = next(name for name, tensor in tensors.items() if isinstance(tensor, CompressedTensor))

    def expanded(**changes):
        changed = {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}
        return opq.expand(opq.compress(changed, lossless=True).data, tmp_path / "o.onnx")

    assert expanded().tensors == len(tensors) - 1

    def graph(**fields):
        """The graph, in which the weight's TensorProto has other fields; and one more like it, if there are none."""
        proto = onnx.ModelProto.FromString(unpack_graph(tensors[GRAPH]))
        (tensor,) = (found for found in proto.graph.initializer if reference_of(found)[0] == weight)
        if not fields:
            proto.graph.initializer.add().CopyFrom(tensor)
        tensor.MergeFrom(onnx.TensorProto(**fields))
        return pack_graph(proto)

    fours = np.zeros(tensors[weight].shape, ml_dtypes.float4_e2m1fn)
    turned = [onnx.StringStringEntryProto(key="transposed", value="1")]
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = np.frombuffer(deflate.compress(bytes(2**24)) + deflate.flush(), np.uint8)
    for changes, words in (
        ({GRAPH: np.arange(50, dtype=np.uint8)}, "cannot be inflated|must inflate"),
        ({GRAPH: tensors[GRAPH][:-9]}, "must inflate to at most"),
        ({GRAPH: bomb}, "must inflate to at most 2,"),
        ({weight: None}, f"refers to a tensor '{weight}', which the file does not have"),
        ({GRAPH: graph()}, f"refers twice to the tensor '{weight}'"),
        ({GRAPH: graph(data_type=99)}, f"tensor '{weight}' is float32 .*, but the graph has number 99"),
        ({GRAPH: graph(dims=[1], external_data=turned)}, f"tensor '{weight}' is float32 .*, but the graph has float32"),
        ({GRAPH: graph(data_type=23), weight: fours}, f"tensor '{weight}' is float4_e2m1fn .*graph has float4_e2m1fn"),
        ({weight: np.zeros((3, 3), np.float32)}, f"tensor '{weight}' is float32 .3, 3., but the graph has float32"),
    ):
        with pytest.raises(FormatError, match=f"the ONNX graph: .*({words})") as caught:
            expanded(**changes)
        assert "\n" not in str(caught.value)
