"""toOnnx of js/opq.js: it gives the ONNX models that opq.expand gives, and refuses the graphs that it refuses."""

from __future__ import annotations

import json
import random
import subprocess
import zlib

import ml_dtypes
import numpy as np
import pytest
from vectors import JS, run_reader

import opq
from opq.checkpoints import as_state
from opq.checkpoints.onnx_graph import GRAPH, pack_graph, unpack_graph

onnx = pytest.importorskip("onnx")

from google.protobuf.internal import encoder  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

pytestmark = pytest.mark.slow  # a compiler takes seconds
RNG = np.random.default_rng(0)
DTYPES = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16", "float32",
    "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float8_e8m0fnu",
)  # fmt: skip


def array(shape, dtype="float32"):
    """Random numbers."""
    return RNG.integers(0, 2 if dtype == "bool" else 100, shape).astype(getattr(ml_dtypes, dtype, dtype))


def tensor(name, *arguments):
    return numpy_helper.from_array(array(*arguments), name)


def value(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def any_model():
    """A model with tensors of every type and in every place: products, constants, recurrent layers, inner graphs, functions."""
    inner = [
        helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["z"])], "i", [], [value("z")], [tensor("w", (3, 2), dtype)])
        for dtype in ("float32", "float64")
    ]
    constant = helper.make_node("Constant", [], ["c"], value=tensor("c", (9, 11)))
    nodes = [
        constant,
        helper.make_node("Other", ["x", *DTYPES], ["o"], domain="nowhere"),
        *(helper.make_node("MatMul", ["x", f"{dtype} matrix"], [f"m{dtype}"]) for dtype in ("float16", "float32", "float64")),
        helper.make_node("LSTM", ["x", "W", "R"], ["l"], hidden_size=3),
        helper.make_node("If", ["x"], ["y"], then_branch=inner[0], else_branch=inner[1]),
    ]
    initializers = [
        *(tensor(dtype, (4, 3, 2), dtype) for dtype in DTYPES),
        *(tensor(f"{dtype} matrix", (5, 7), dtype) for dtype in ("float16", "float32", "float64")),
        tensor("W", (2, 12, 5)), tensor("R", (2, 12, 3)), helper.make_tensor("s", TensorProto.STRING, [1], [b"a"]),
    ]  # fmt: skip
    function = helper.make_function("here", "F", ["x"], ["c"], [constant], [helper.make_opsetid("", 17)])
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y")], initializers)
    return helper.make_model(graph, functions=[function], producer_name="x" * 200)


@pytest.fixture
def models(node, package, tmp_path):
    """What toOnnx gives of files, a dict for each."""

    def run(files):
        return run_reader([node, package / "test" / "onnx_node.js"], files, tmp_path)

    return run


def expanded(data, path):
    """The bytes of the model that opq.expand writes."""
    return opq.expand(data, path).path.read_bytes()


def test_models_are_those_of_expand(models, tmp_path, one_thread):
    """Byte for byte: of networks of each kind at a ratio, and of a model with tensors of every type in every place."""
    pytest.importorskip("torch")
    from onnx_networks import NETWORKS, export, make

    files = {name: opq.compress(export(*make(name), tmp_path / "m.onnx"), ratio=4).data for name in NETWORKS}
    model = any_model()
    onnx.save(model, tmp_path / "any.onnx")
    files["any"] = opq.compress(tmp_path / "any.onnx", lossless=True).data
    found = models(files)
    for (name, data), given in zip(files.items(), found, strict=True):
        assert bytes.fromhex(given["model"]) == expanded(data, tmp_path / "o.onnx"), name
    assert onnx.ModelProto.FromString(bytes.fromhex(found[-1]["model"])) == model


def test_onnxruntime_web_runs_the_model(node, package, tmp_path, one_thread):
    """Its outputs are those of ONNX Runtime for what opq.expand writes, to float rounding."""
    modules = JS / "node_modules"
    if not (modules / "onnxruntime-web").is_dir():
        pytest.skip("onnxruntime-web is not here; run npm install in js")
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    from onnx_networks import export, make, run

    model, inputs = make("vit")
    opq.save(export(model, inputs, tmp_path / "m.onnx"), tmp_path / "m.opq", ratio=4)
    (package / "node_modules").symlink_to(modules)
    command = [node, package / "test" / "run_node.js", tmp_path / "m.opq", json.dumps(list(inputs.shape))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = run(opq.expand(tmp_path / "m.opq", tmp_path / "o.onnx").path, torch.ones_like(inputs))
    np.testing.assert_allclose(json.loads(done.stdout), expected.reshape(-1), rtol=1e-4, atol=1e-5)


def test_a_file_without_a_graph_is_an_error(models, network):
    """A file of other checkpoints has no model."""
    (given,) = models({"plain": opq.compress(network, ratio=4).data})
    assert given == {"kind": "misuse", "error": "the file holds no ONNX graph, because it was not made from an ONNX model"}


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
    """The tensors of a file of a small model."""
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    inner = helper.make_graph([helper.make_node("Neg", ["v"], ["z"])], "i", [], [value("z")], [tensor("v", (4,))])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor("c", (8, 9))),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("If", ["a"], ["y"], then_branch=inner, else_branch=inner),
    ]
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y")], [tensor("w", (3, 5)), tensor("b", (2, 3, 4))])
    onnx.save(helper.make_model(graph), path)
    state = as_state(path)
    return {name: state[name] for name in state}


def with_graph(tensors, graph):
    """A file with another graph, as bytes or a ModelProto."""
    if isinstance(graph, bytes):
        deflate = zlib.compressobj(1, zlib.DEFLATED, -15)
        packed = np.frombuffer(deflate.compress(graph) + deflate.flush(), np.uint8)
    else:
        packed = pack_graph(graph)
    return opq.compress({**tensors, GRAPH: packed}, lossless=True).data


def nested(depth):
    """The bytes of a model whose graphs are so deep in each other."""

    def field(number, content):
        return bytes([number << 3 | 2]) + encoder._VarintBytes(len(content)) + content

    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))  # a node, its attribute, and the graph of that
    return b"\x08\x08" + field(7, graph)


def hostile(tensors):
    """{name: file} of graphs that are damaged, or do not fit to the tensors."""
    graph = unpack_graph(tensors[GRAPH])

    def changed(**fields):
        model = onnx.ModelProto.FromString(graph)
        model.graph.initializer[0].MergeFrom(TensorProto(**fields))
        return model

    def pair(key, text):
        return onnx.StringStringEntryProto(key=key, value=text)

    twice = onnx.ModelProto.FromString(graph)
    twice.graph.initializer.add().CopyFrom(twice.graph.initializer[0])
    graphs = {
        "twice": twice, "no graph": b"", "a field too long": graph[:-1], "no type": changed(data_type=0),
        "unknown type": changed(data_type=99), "a string": changed(data_type=8), "another type": changed(data_type=7),
        "more dimensions": changed(dims=[1]), "negative": changed(dims=[-1]), "huge": changed(dims=[2**62]),
        "no such tensor": changed(external_data=[pair("location", "none")]),
        "no location": changed(external_data=[pair("location", "")]),
        "transposed the other way": changed(external_data=[pair("location", "b"), pair("transposed", "1")]),
        "nodes": onnx.ModelProto(graph=onnx.GraphProto(node=[onnx.NodeProto()] * (2**18 + 1))),
        "a group": b"\x0b\x08\x01\x0c" + graph, "groups": b"\x0b\x13\x14\x0c" + graph,
        "an open group": b"\x0b" + graph, "a group that ends": graph + b"\x0c",
        "field 0": b"\x00\x00" + graph,
        "a long varint": b"\x08" + b"\xff" * 10 + b"\x01" + graph, "wire type 6": b"\x0e" + graph,
        **{f"{depth} graphs in each other": nested(depth) for depth in (1, 31, 32, 33, 34, 60, 20_000)},
    }  # fmt: skip
    bomb = zlib.compress(bytes(2**24), 9, -15)
    packed = {"no stream": bytes(range(50)), "without its end": tensors[GRAPH].tobytes()[:-9], "a bomb": bomb, "empty": b""}
    return {
        **{name: with_graph(tensors, graph) for name, graph in graphs.items()},
        **{
            name: opq.compress({**tensors, GRAPH: np.frombuffer(data, np.uint8)}, lossless=True).data
            for name, data in packed.items()
        },
        "a missing tensor": opq.compress({name: tensors[name] for name in tensors if name != "w"}, lossless=True).data,
        "another shape": opq.compress({**tensors, "w": array((3, 5))}, lossless=True).data,
    }


def mutants(tensors, count):
    """{name: file} of graphs with bytes changed at random."""
    chance = random.Random(0)  # noqa: S311 - places, not secrets
    graph = unpack_graph(tensors[GRAPH])
    files = {}
    for number in range(count):
        data = bytearray(graph)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.choice([chance.randrange(256), chance.randrange(32)])
        files[f"changed {number}"] = with_graph(tensors, bytes(data))
    return files


def test_graphs_are_refused_as_in_python(models, tensors, tmp_path):
    """Each graph that opq.expand refuses is refused too, or gives a model that onnx refuses; others give the same model."""
    named = hostile(tensors)
    files = named | mutants(tensors, 400)
    outcomes = set()
    wrong = []
    for (name, data), given in zip(files.items(), models(files), strict=True):
        model = bytes.fromhex(given["model"]) if "model" in given else None
        try:
            expected = onnx.ModelProto.FromString(expanded(data, tmp_path / "o.onnx"))
        except opq.FormatError as error:
            outcomes.add("refused")
            if model is None:
                if not given["error"].startswith("not a valid .opq file: the ONNX graph: ") or given["kind"] != "invalid":
                    wrong.append(f"{name}: {given}")
            elif name in named or is_model(model, tmp_path / "j.onnx"):
                wrong.append(f"{name}: Python refuses it ({error})")
            continue
        outcomes.add("read")
        if model is None or onnx.ModelProto.FromString(model) != expected:
            wrong.append(f"{name}: Python reads it, not {given}")
    assert not wrong, "\n".join(line[:400] for line in wrong)
    assert outcomes == {"refused", "read"}


def is_model(data, path):
    """Whether Python reads the bytes as an ONNX model."""
    path.write_bytes(data)
    try:
        as_state(path)
    except opq.SourceError:
        return False
    return True
