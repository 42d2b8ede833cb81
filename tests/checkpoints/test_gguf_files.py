"""GGUF files: tensors of plain types as arrays, those of quantized types as blocks, and damaged files as one line."""

from __future__ import annotations

import json
import logging
import struct
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import opq
import opq.numpy
from opq.checkpoints import as_state
from opq.cli import main

gguf = pytest.importorskip("gguf")

RNG = np.random.default_rng(0)
PLAIN = ("F16", "BF16", "F32", "F64", "I8", "I16", "I32", "I64")
QUANTIZED = tuple(kind.name for kind in gguf.GGML_QUANT_SIZES if kind.name not in PLAIN)
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path, tensors):
    """A GGUF file with {name: (array of the file's bytes in rows, name of its type)}, written by the library gguf."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", ""])
    writer.add_array("tokenizer.ggml.scores", [1.0, 2.0])
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks(kind, rows, row_blocks):
    """Rows of random blocks of a quantized type."""
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    return RNG.integers(0, 256, (rows, row_blocks * size), np.uint8), kind


@in_one_folder
@given(st.dictionaries(st.text("ab.", min_size=1), st.tuples(st.sampled_from(PLAIN), st.lists(st.integers(1, 5), max_size=4))))
def test_plain_tensors_are_arrays(tmp_path, given_tensors):
    """Tensors of plain types have the dtype, the shape in NumPy's order and the bits that were written."""
    arrays = {}
    for name, (kind, shape) in given_tensors.items():
        dtype = ml_dtypes.bfloat16 if kind == "BF16" else f"{kind[0].lower()}{int(kind[1:]) // 8}"
        arrays[name] = RNG.integers(-100, 100, shape or [1]).astype(dtype), kind
    state = as_state(write(tmp_path / "m.gguf", arrays))
    assert sorted(state) == sorted(arrays)
    for name, (array, _) in arrays.items():
        assert (state[name].dtype, state[name].shape) == (array.dtype, array.shape) == (array.dtype, state.describe(name)[1])
        assert state[name].tobytes() == array.tobytes()
        assert state.rows(name, 1, 3).tobytes() == array[1:3].tobytes()
    assert not state.metadata


@pytest.mark.parametrize("kind", QUANTIZED)
def test_blocks_come_back(kind, tmp_path):
    """A tensor of any quantized type comes back from a .opq file as the bytes of the GGUF file, and its type beside it."""
    array, _ = blocks(kind, 3, 2)
    path = write(tmp_path / "m.gguf", {"w": (array, kind), "b": (np.ones(4, np.float32), "F32")})
    opq.save(path, tmp_path / "m.opq", lossless=True, progress=False)
    with opq.numpy.safe_open(tmp_path / "m.opq") as file:
        assert json.loads(file.metadata()["gguf.tensor_types"]) == {"w": kind}
        found = file.get_tensor("w")
    assert found.shape == (array.shape[1] // 2, 3, 2) == as_state(path).describe("w")[1]
    assert np.moveaxis(found, 0, -1).tobytes() == array.tobytes()
    assert np.array_equal(as_state(path).rows("w", 1, 3), found[1:3])


def test_blocks_are_not_weights(tmp_path, caplog):
    """With a target quantized tensors are refused by name and type; `include` chooses others; metadata are named."""
    arrays = {"blk.0.w": blocks("Q4_K", 4, 2), "embed": (RNG.normal(size=(64, 64)).astype(np.float32), "F32")}
    path = write(tmp_path / "m.gguf", arrays)
    words = (
        r"tensor 'blk.0.w' \(144, 4, 2\): it is quantized already \(GGUF's Q4_K\); compress the original weights, use lossless"
    )
    with pytest.raises(opq.WeightError, match=words):
        opq.compress(path, ratio=2)
    assert list(opq.compress(path, size=3000, include=["embed"]).plan.layers) == ["embed"]
    assert "ignored 'general.architecture', 'tokenizer.ggml.tokens', 'tokenizer.ggml.scores' (not a tensor)" in caplog.text


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """The bytes of a valid file."""
    tensors = {"a.w": blocks("Q8_0", 4, 2), "b": (np.ones((3, 5), np.float16), "F16")}
    return write(tmp_path_factory.mktemp("gguf") / "m.gguf", tensors).read_bytes()


@in_one_folder
@given(data=st.data())
def test_damage_is_one_line(valid, tmp_path, data):
    """Any part of a file, and a file with changed bytes, is read within its bytes or ends in one line."""
    content = bytearray(valid[: data.draw(st.integers(8, len(valid)))])
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(8, min(len(content), 320) - 1)) if len(content) > 8 else 7
        content[at] = data.draw(st.sampled_from([0, 1, 127, 255]) | st.integers(0, 255))
    content[:4] = b"GGUF"
    (tmp_path / "m.gguf").write_bytes(content)
    logging.getLogger("opq").disabled = True
    try:
        state = as_state(tmp_path / "m.gguf")
        assert sum(state[name].nbytes for name in state) <= 64 * len(content) + 2**26
    except opq.SourceError as error:
        assert "\n" not in str(error)  # noqa: PT017
    finally:
        logging.getLogger("opq").disabled = False


def header(*, version=3, tensors=(), metadata=b"", num_metadata=0, num_tensors=None):
    """The bytes of a file, of which the tensors are (name, dimensions, number of the type, offset)."""
    text = (
        struct.pack("<4sIQQ", b"GGUF", version, len(tensors) if num_tensors is None else num_tensors, num_metadata) + metadata
    )
    for name, shape, kind, offset in tensors:
        text += struct.pack(f"<Q{len(name)}sI{len(shape)}QIQ", len(name), name, len(shape), *shape, kind, offset)
    return text + bytes(-len(text) % 32)


def entry(key, kind, value):
    """The bytes of an entry of the metadata."""
    return struct.pack(f"<Q{len(key)}sI", len(key), key, kind) + value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header(version=1), "version 1; expected version 2 or 3"),
        (header(version=3 << 24), "a big-endian GGUF file"),
        (header(num_tensors=2**60), "it ends within its header"),
        (header(num_metadata=2**60), "it ends within its header"),
        (header(num_metadata=1, metadata=entry(b"k", 9, struct.pack("<IQ", 0, 2**60))), "it ends within its header"),
        (header(num_metadata=1, metadata=entry(b"k", 9, struct.pack("<IQ", 8, 2**60))), "it ends within its header"),
        (header(num_metadata=1, metadata=entry(b"k", 9, struct.pack("<IQ", 9, 1))), "arrays of type 9"),
        (header(num_metadata=1, metadata=entry(b"k", 77, b"")), "metadata of type 77"),
        (header(num_metadata=1, metadata=entry(b"split.count", 2, b"\3\0")), "one of 3 parts .*llama-gguf-split --merge"),
        (header(num_metadata=1, metadata=entry(b"general.alignment", 4, bytes(4))), "its alignment is 0"),
        (header(tensors=[(b"x", (2**62, 4), 0, 0)]), "tensor 'x' ends after the file"),
        (header(tensors=[(b"x", (8,), 0, 2**63)]), "tensor 'x' ends after the file"),
        (header(tensors=[(b"x", (0, 2**63), 0, 0)]), "tensor 'x' is empty"),
        (header(tensors=[(b"x", (1,) * 9, 0, 0)]), "tensor 'x' has 9 dimensions"),
        (header(tensors=[(b"x", (33,), 2, 0)]) + bytes(64), "must have rows of whole blocks of 32, as Q4_0"),
        (header(tensors=[(b"x", (), 2, 0)]) + bytes(64), "must have rows of whole blocks of 32, as Q4_0"),
        (header(tensors=[(b"x", (8,), 250, 0)]) + bytes(64), r"of a type \(250\) that gguf does not know"),
        (header(tensors=[(b"x", (8,), 0, 0)] * 2) + bytes(64), "two tensors 'x'"),
        (
            header(tensors=[(b"%d" % n, (2**18,), 0, 0) for n in range(200)]) + bytes(2**20),
            "its tensors take 1.*file of its size",
        ),
    ],
)
def test_hostile_files_are_refused(content, words, tmp_path):
    """Counts, sizes and offsets beyond the file, and tensors that repeat its bytes, are errors that say what is wrong."""
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(opq.SourceError, match=words):
        as_state(tmp_path / "m.gguf")


def test_there_is_no_key(valid, tmp_path, capsys):
    """A GGUF file has no keys."""
    (tmp_path / "m.gguf").write_bytes(valid)
    assert main(["plan", f"{tmp_path}/m.gguf", "--ratio", "2", "--key", "x"]) == 1
    assert "it has no key 'x': a GGUF file has no keys" in capsys.readouterr().err


def test_a_missing_library_is_named(valid, tmp_path, monkeypatch):
    """Without gguf the error says what to install."""
    (tmp_path / "m.gguf").write_bytes(valid)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(opq.MissingExtraError, match=r"reading m.gguf .*pip install 'opq\[gguf\]'"):
        as_state(tmp_path / "m.gguf")
