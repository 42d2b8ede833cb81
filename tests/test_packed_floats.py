"""float4 and float6: packed and one per byte."""

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import opq.numpy
from opq import dtypes, packed_floats
from opq.checkpoints import as_state
from opq.codec.file_writer import pack_auxiliary
from opq.errors import OutputError, WeightError

NARROW = [name for name, bits in dtypes.BITS.items() if bits < 8]


@given(st.sampled_from(NARROW), st.binary(max_size=60))
def test_packed_bytes_come_back(name, data):
    """Unpacking and packing gives the same bytes, of as many elements as they hold."""
    bits = dtypes.BITS[name]
    raw = np.frombuffer(data[: len(data) // (bits // 2) * (bits // 2)], dtype=np.uint8)
    array = packed_floats.unpack(raw, name, (8 * len(raw) // bits,))
    assert array.dtype == dtypes.NUMPY[name]
    assert packed_floats.pack(array).tobytes() == raw.tobytes()
    assert dtypes.dense_bytes(name, array.size) == len(raw)


def test_the_first_element_is_in_the_lowest_bits():
    """Bytes of float4 hold the first of two elements in their low four bits, as torch's float4_e2m1fn_x2."""
    array = packed_floats.unpack(np.array([0x21, 0x7F], dtype=np.uint8), "float4_e2m1fn", (4,))
    assert array.astype(np.float32).tolist() == [0.5, 1.0, -6.0, 6.0]


@pytest.mark.parametrize(
    "array",
    [
        np.array([2], dtype=np.uint8).view(np.bool_),
        *(np.array([2 ** dtypes.BITS[name]], dtype=np.uint8).view(dtypes.NUMPY[name]) for name in NARROW),
    ],
    ids=["bool", *NARROW],
)
def test_bytes_that_are_no_numbers_are_refused(array):
    """An array whose bytes are no numbers of its dtype is an error: no reader would take the file."""
    with pytest.raises(WeightError, match="are not valid"):
        pack_auxiliary([("x", array)], "exact", estimated=False)


def test_torch_gets_two_float4_in_a_byte(tmp_path):
    """A state dict with float4_e2m1fn_x2 comes back with it, counts half a byte per element, and expands for safetensors."""
    torch = pytest.importorskip("torch")
    safetensors_torch = pytest.importorskip("safetensors.torch")
    if not hasattr(safetensors, "TensorSpec"):
        pytest.skip("safetensors is older than 0.8")
    import opq.torch

    raw = torch.randint(0, 256, (8, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    state = {"packed": raw.view(torch.float4_e2m1fn_x2), "other": torch.ones(3)}
    compressed = opq.compress(state, lossless=True, metadata={"key": "text"})
    assert compressed.dense_bytes == 32 + 12
    (tmp_path / "m.opq").write_bytes(compressed.data)
    opq.expand(tmp_path / "m.opq", tmp_path / "m.safetensors")
    for found in (opq.torch.load(compressed.data), safetensors_torch.load_file(tmp_path / "m.safetensors")):
        assert found["packed"].dtype == torch.float4_e2m1fn_x2
        assert torch.equal(found["packed"].view(torch.uint8), raw)
    with safetensors.safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata() == {"key": "text"}
    assert opq.numpy.load(compressed.data)["packed"].shape == (8, 8)
    again = opq.compress(tmp_path / "m.safetensors", lossless=True)
    assert opq.numpy.load(again.data)["packed"].tobytes() == opq.numpy.load(compressed.data)["packed"].tobytes()


@pytest.mark.parametrize("shape", [(3,), (2, 3), ()])
def test_single_float4_cannot_be_expanded(shape, tmp_path):
    """Safetensors has pairs of float4, so an odd last dimension is an error in one line."""
    data = opq.compress({"x": np.zeros(shape, dtype=ml_dtypes.float4_e2m1fn)}, lossless=True).data
    with pytest.raises(OutputError, match=r"last dimension of a float4_e2m1fn tensor must be even|0\.8 or newer"):
        opq.expand(data, tmp_path / "m.safetensors")


def test_an_old_safetensors_is_named(tmp_path, monkeypatch):
    """float4 needs a newer safetensors than other dtypes; the error says which."""
    monkeypatch.delattr(safetensors, "TensorSpec", raising=False)
    data = opq.compress({"x": np.zeros(4, dtype=ml_dtypes.float4_e2m1fn)}, lossless=True).data
    with pytest.raises(OutputError, match=r"0\.8 or newer"):
        opq.expand(data, tmp_path / "m.safetensors")


def test_the_limit_of_a_reader_counts_decoded_bytes():
    """An element of float4 takes a byte in memory, and counts as one where a reader limits the tensors of a file."""
    data = opq.compress({"x": np.zeros(1000, dtype=ml_dtypes.float4_e2m1fn)}, lossless=True).data
    with opq.OpqFile(data, max_bytes=1000) as file:
        assert file.array("x").nbytes == 1000
        assert file.dense_bytes == 500
    with pytest.raises(opq.FormatError, match="at most 999 bytes, got 1,000"):
        opq.OpqFile(data, max_bytes=999)


def test_rows_of_a_vector_of_pairs():
    """Rows of a one-dimensional torch tensor of float4 pairs are those of its elements."""
    torch = pytest.importorskip("torch")
    state = as_state({"x": torch.arange(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)})
    assert state.describe("x") == ("float4_e2m1fn", (16,))
    assert state.rows("x", 3, 9).tobytes() == state["x"][3:9].tobytes()


@pytest.mark.parametrize("name", ["complex128", "float6_e2m3fn"])
def test_what_safetensors_does_not_write_is_named(name, tmp_path):
    """`expand` names a tensor whose dtype safetensors does not write, and leaves no file; the .opq file holds it exactly."""
    tensors = {"x": np.arange(4).astype(dtypes.NUMPY[name]), "y": np.ones(3, dtype=np.float32)}
    data = opq.compress(tensors, lossless=True).data
    assert opq.numpy.load(data)["x"].tobytes() == tensors["x"].tobytes()
    with pytest.raises(OutputError, match=name):
        opq.expand(data, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
    opq.expand(opq.compress({"y": tensors["y"]}, lossless=True).data, tmp_path / "m.safetensors")
    assert sorted(load_file(tmp_path / "m.safetensors")) == ["y"]
