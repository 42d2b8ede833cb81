"""ONNX models: their tensors as arrays, data in other files, and damaged or hostile models as one line."""

from __future__ import annotations

import logging
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import opq
from opq.checkpoints import as_state
from opq.checkpoints.onnx_graph import GRAPH
from opq.cli import main

onnx = pytest.importorskip("onnx")
from google.protobuf.internal import encoder  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

RNG = np.random.default_rng(0)
DTYPES = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16", "float32",
    "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
)  # fmt: skip
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def array(shape, dtype="float32"):
    """Random numbers."""
    return RNG.integers(0, 2 if dtype == "bool" else 100, shape).astype(getattr(ml_dtypes, dtype, dtype))


def value(name, shape=None):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(tensors, nodes=None, outputs=("y",)):
    """A model with these TensorProtos, which an operator that nobody knows uses, or the given nodes."""
    nodes = nodes or [helper.make_node("Unknown", ["x", *(tensor.name for tensor in tensors)], ["y"], domain="nowhere")]
    graph = helper.make_graph(nodes, "g", [value("x")], [value(name) for name in outputs], tensors)
    return helper.make_model(graph)


def write(path, *arguments, **options):
    path.write_bytes(model(*arguments, **options).SerializeToString())
    return path


def outside(name, array, location, **keys):
    """A TensorProto with its data in another file."""
    tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), data_location=1)
    for key, text in {"location": location, **keys}.items():
        tensor.external_data.add(key=key, value=str(text))
    return tensor


@in_one_folder
@given(st.dictionaries(st.text("ab.", min_size=1), st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(1, 5), max_size=4))))
def test_initializers_are_arrays(tmp_path, given_tensors):
    """Initializers, as bytes or as numbers, have their dtype, shape and bits; and come back from a .opq file."""
    arrays = {name: array(shape, dtype) for name, (dtype, shape) in given_tensors.items()}
    tensors = []
    for number, (name, content) in enumerate(arrays.items()):
        tensor = numpy_helper.from_array(content, name)
        if number % 2 and content.dtype.name in ("float32", "float64", "int64", "int32", "uint8", "bool"):
            tensor = helper.make_tensor(name, tensor.data_type, content.shape, content.reshape(-1).tolist())
        tensors.append(tensor)
    state = as_state(write(tmp_path / "m.onnx", tensors))
    assert sorted(state) == sorted([*arrays, GRAPH])
    opq.expand(opq.compress(state, lossless=True).data, tmp_path / "n.onnx")
    for found in (state, as_state(tmp_path / "n.onnx")):
        for name, expected in arrays.items():
            assert found.describe(name) == (expected.dtype.name, expected.shape)
            assert found[name].tobytes() == expected.tobytes()
            if expected.ndim:
                assert found.rows(name, 1, 3).tobytes() == expected[1:3].tobytes()


@in_one_folder
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(["float32", "float16", "bfloat16", "float64"]))
def test_products_are_given_by_outputs(tmp_path, inputs, outputs, dtype):
    """The matrix of MatMul, and of Gemm without transB, has outputs in rows; the model gets it back as it was."""
    content = array((inputs, outputs), dtype)
    for operator, options, turned in (("MatMul", {}, True), ("Gemm", {}, True), ("Gemm", {"transB": 1}, False)):
        node = helper.make_node(operator, ["x", "w"], ["y"], **options)
        path = write(tmp_path / "m.onnx", [numpy_helper.from_array(content, "w")], [node])
        state, expected = as_state(path), content.T if turned else content
        assert state.describe("w") == (dtype, expected.shape)
        assert np.array_equal(state["w"], expected)
        assert np.array_equal(state.rows("w", 1, 4), expected[1:4])
        opq.expand(opq.compress(state, lossless=True).data, tmp_path / "n.onnx")
        restored = onnx.load(tmp_path / "n.onnx")
        assert np.array_equal(numpy_helper.to_array(restored.graph.initializer[0]), content)
        assert restored == onnx.load(path)


def test_constants_are_weights_by_their_use(tmp_path):
    """A large constant that MatMul or Conv uses is a weight; another is none, and a small one stays in the graph."""

    def constant(name, shape):
        return helper.make_node(
            "Constant", [], [name], value=numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), "anything")
        )

    nodes = [
        constant("w", (16, 20)), constant("mask", (20, 20)), constant("small", (3, 3)),
        helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Mul", ["a", "mask"], ["b"]),
        helper.make_node("Add", ["b", "small"], ["y"]),
    ]  # fmt: skip
    path = write(tmp_path / "m.onnx", [], nodes)
    state = as_state(path)
    assert sorted(state) == [GRAPH, "mask", "w"]
    assert list(opq.plan(state, sparsity=0.25, bits=3).layers) == ["w"]
    opq.expand(opq.compress(state, lossless=True).data, tmp_path / "n.onnx")
    assert onnx.load(tmp_path / "n.onnx") == onnx.load(path)


def test_names_in_inner_graphs_are_distinct(tmp_path):
    """Tensors of inner graphs and functions may have names of outer ones; each comes back to its place, and stays a float."""
    w, v = (numpy_helper.from_array(RNG.normal(size=(12, 12)).astype(np.float32), "w") for _ in range(2))
    inner = [helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["z"])], "i", [], [value("z")], [t]) for t in (w, v)]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("If", ["a"], ["y"], then_branch=inner[0], else_branch=inner[1]),
    ]
    path = write(tmp_path / "m.onnx", [w], nodes)
    state = as_state(path)
    assert sorted(state) == [GRAPH, "w", "w.2", "w.3"]
    data = opq.compress(state, sparsity=0.25, bits=3).data
    written = opq.expand(data, tmp_path / "n.onnx", weights="int8")
    assert set(written.integers) == {"w"}
    assert set(written.floats.values()) == {"in an inner graph"}
    opq.expand(opq.compress(state, lossless=True).data, tmp_path / "n.onnx")
    assert onnx.load(tmp_path / "n.onnx") == onnx.load(path)


def test_what_is_no_array_stays_in_the_graph(tmp_path):
    """Strings, integers of 4 bits, empty and sparse tensors are neither lost nor tensors of the checkpoint."""
    tensors = [
        helper.make_tensor("s", TensorProto.STRING, [2], [b"a", b"b"]),
        numpy_helper.from_array(np.zeros((3, 4), ml_dtypes.int4), "q"),
        numpy_helper.from_array(np.zeros((0, 4), np.float32), "e"),
        numpy_helper.from_array(array((16, 16)), "w"),
    ]
    path = write(tmp_path / "m.onnx", tensors)
    assert sorted(as_state(path)) == [GRAPH, "w"]
    opq.expand(opq.compress(path, lossless=True).data, tmp_path / "n.onnx")
    assert onnx.load(tmp_path / "n.onnx") == onnx.load(path)


def test_packed_weights_are_refused(tmp_path):
    """A model whose weights ONNX Runtime packed is refused with a target, and kept without loss."""
    node = helper.make_node("MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft")
    tensors = [numpy_helper.from_array(array((8, 2, 16), "uint8"), "q"), numpy_helper.from_array(array((8, 2)), "s")]
    path = write(tmp_path / "m.onnx", tensors, [node])
    with pytest.raises(opq.WeightError, match=r"it is quantized already \(ONNX's MatMulNBits\)"):
        opq.compress(path, ratio=2)
    assert opq.compress(path, lossless=True).file_bytes


def test_data_in_other_files(tmp_path):
    """Data in files of the model's folder, with and without offset, are read when they are used."""
    w, v = array((16, 8)), array((4, 4))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.bin").write_bytes(bytes(64) + w.tobytes())
    (tmp_path / "v").write_bytes(v.tobytes())
    tensors = [outside("w", w, "sub/d.bin", offset=64, length=w.nbytes), outside("v", v, "v")]
    state = as_state(write(tmp_path / "m.onnx", tensors))
    assert np.array_equal(state["w"], w)
    assert np.array_equal(state["v"], v)
    assert np.array_equal(state.rows("w", 2, 5), w[2:5])
    opq.expand(opq.compress(state, lossless=True).data, tmp_path / "n.onnx")
    assert np.array_equal(as_state(tmp_path / "n.onnx")["w"], w)
    (tmp_path / "v").write_bytes(bytes(8))
    with pytest.raises(opq.SourceError, match="changed while it was being read"):
        state["v"]


W = array((16, 8))


@pytest.mark.parametrize(
    ("tensors", "nodes", "words"),
    [
        ([outside("w", W, "../d.bin")], None, "tensor 'w' has data in '../d.bin', which is not in its folder"),
        ([outside("w", W, "a/../../d.bin")], None, "is not in its folder"),
        ([outside("w", W, "/etc/passwd")], None, "is not in its folder"),
        ([outside("w", W, "C:\\d.bin")], None, "is not in its folder"),
        ([outside("w", W, "")], None, "is not in its folder"),
        ([outside("w", W, "gone.bin")], None, "gone.bin: no such file, but tensor 'w' of m.onnx"),
        ([outside("w", W, "d.bin", offset=64)], None, "d.bin: tensor 'w' ends after the file"),
        ([outside("w", W, "d.bin", offset=-8)], None, "d.bin: tensor 'w' ends after the file"),
        ([outside("w", W, "d.bin", offset="9z")], None, "an offset or a length that is no number"),
        ([outside("w", W, "d.bin", length=8)], None, "must have 512 bytes, got 8"),
        ([outside("w", W.astype(ml_dtypes.int4), "d.bin")], None, "type int4 has data in another file"),
        ([outside(f"w{n}", np.zeros((2**17, 128)), "big.bin") for n in range(70)], None, "a file of its size may have"),
        ([TensorProto(name="w", data_type=1, dims=[2**40, 2**40], raw_data=bytes(8))], None, "must have 4,8.* bytes, got 8"),
        ([TensorProto(name="w", data_type=1, dims=[2**40], float_data=[1.0])], None, "other numbers of elements"),
        ([TensorProto(name="w", data_type=1, dims=[2**40])], None, "other numbers of elements"),
        ([TensorProto(name="w", data_type=1, dims=[-4, 4], raw_data=bytes(64))], None, "has the dimensions .-4, 4"),
        ([TensorProto(name="w", data_type=1, dims=[1] * 99, raw_data=bytes(4))], None, "has the dimensions"),
        ([numpy_helper.from_array(W, "w")] * 2, None, "value 'w' has two origins"),
        ([], [helper.make_node("A", ["b"], ["a"]), helper.make_node("B", ["a"], ["b"])], "value '.' depends on itself"),
        ([], [helper.make_node("A", ["x"], ["a"]), helper.make_node("B", ["x"], ["a"])], "value 'a' has two origins"),
        ([], [onnx.NodeProto()] * (2**18 + 1), "it has more than 262,144 nodes and attributes"),
        ([], [helper.make_node("A", ["x"], ["y"], words="a" * 2**26)], "without its tensors it takes 67,"),
    ],
)  # fmt: skip
def test_hostile_models_are_refused(tensors, nodes, words, tmp_path):
    """Data outside of the folder or the file, absurd dimensions and impossible graphs are errors that say what is wrong."""
    (tmp_path / "d.bin").write_bytes(W.tobytes())
    with (tmp_path / "big.bin").open("wb") as file:
        file.truncate(2**27)
    (tmp_path.parent / "d.bin").write_bytes(W.tobytes())
    with pytest.raises(opq.SourceError, match=words) as caught:
        as_state(write(tmp_path / "m.onnx", tensors, nodes))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_deep_graphs_are_refused(tmp_path):
    """A graph nested more deeply than the library reads is an error in one line."""

    def field(number, content):
        return bytes([number << 3 | 2]) + encoder._VarintBytes(len(content)) + content

    graph = b""
    for _ in range(60):
        graph = field(1, field(5, field(6, graph)))  # a node, its attribute, and the graph of that
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08" + field(7, graph))
    with pytest.raises(opq.SourceError, match="not an ONNX model, or a damaged one"):
        as_state(tmp_path / "m.onnx")


@pytest.fixture(scope="module")
def valid():
    """The bytes of a valid model."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "b"], ["y"])]
    return model(
        [numpy_helper.from_array(array((9, 8)), "w"), numpy_helper.from_array(array((8,)), "b")], nodes
    ).SerializeToString()


@in_one_folder
@given(data=st.data())
def test_damage_is_one_line(valid, tmp_path, data):
    """Any part of a model, and a model with changed bytes, is read within its bytes or ends in one line."""
    content = bytearray(valid[: data.draw(st.integers(0, len(valid)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "m.onnx").write_bytes(content)
    logging.getLogger("opq").disabled = True
    try:
        state = as_state(tmp_path / "m.onnx")
        assert sum(state[name].nbytes for name in state) <= 64 * len(content) + 2**26
        opq.expand(opq.compress(state, lossless=True).data, tmp_path / "n.onnx")
    except opq.OpqError as error:
        assert "\n" not in str(error)  # noqa: PT017
    finally:
        logging.getLogger("opq").disabled = False


def test_there_is_no_key(valid, tmp_path, capsys):
    """An ONNX model has no keys, whatever its name is."""
    (tmp_path / "m.bin").write_bytes(valid)
    assert main(["plan", f"{tmp_path}/m.bin", "--ratio", "2", "--key", "x"]) == 1
    assert "it has no key 'x': an ONNX model has no keys" in capsys.readouterr().err


def test_the_command_line_goes_both_ways(valid, tmp_path, capsys):
    """The commands compress and expand; what stays in floating point is named, and no file is replaced unasked."""
    path = tmp_path / "m.onnx"
    path.write_bytes(valid)
    assert main(["compress", f"{path}", "--size", "320", "-o", f"{tmp_path}/m.opq"]) == 0
    capsys.readouterr()
    assert main(["expand", f"{tmp_path}/m.opq", "-o", f"{path}"]) == 1
    assert "use --force to replace it" in capsys.readouterr().err
    assert main(["expand", f"{tmp_path}/m.opq", "-o", f"{tmp_path}/n.onnx", "--weights", "int4"]) == 0
    printed = capsys.readouterr()
    assert "n.onnx: 2 tensors, " in printed.out
    assert "w stay in floating point: more than 3% of the codes need more than 4 bits" in printed.err


def test_a_missing_library_is_named(valid, tmp_path, monkeypatch):
    """Without onnx the error says what to install."""
    (tmp_path / "m.onnx").write_bytes(valid)
    data = opq.compress(tmp_path / "m.onnx", lossless=True).data
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(opq.MissingExtraError, match=r"reading m.onnx .*pip install 'opq\[onnx\]'"):
        as_state(tmp_path / "m.onnx")
    with pytest.raises(opq.MissingExtraError, match=r"writing n.onnx .*pip install 'opq\[onnx\]'"):
        opq.expand(data, tmp_path / "n.onnx")
