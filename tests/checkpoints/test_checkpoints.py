"""Checkpoints: every supported layout, and the errors of others."""

import json
import os
import pickle

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import opq
from opq import dtypes, packed_floats
from opq.checkpoints import as_state


@pytest.fixture
def state():
    rng = np.random.default_rng(1)
    return {"fc.weight": rng.laplace(size=(4, 6)).astype(np.float32), "fc.bias": rng.normal(size=4).astype(np.float16)}


def equal(one, other):
    return sorted(one) == sorted(other) and all(
        one[k].tobytes() == other[k].tobytes() and one[k].dtype == other[k].dtype and one[k].shape == other[k].shape
        for k in one
    )


def write_shards(folder, state):
    """A folder in Hugging Face's layout: one shard per tensor, and the index."""
    weight_map = {}
    for number, (name, array) in enumerate(state.items()):
        file = f"model-{number + 1:05d}-of-{len(state):05d}.safetensors"
        save_file({name: array}, folder / file, metadata={"format": "np"})
        weight_map[name] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_safetensors_file_is_read(state, tmp_path):
    """Every tensor has its name, dtype, shape and bytes, is described without being read, and metadata are kept."""
    save_file(state, tmp_path / "m.safetensors", metadata={"made": "here"})
    found = as_state(tmp_path / "m.safetensors")
    assert equal(dict(found), state)
    assert found.metadata == {"made": "here"}
    assert all(found.describe(name) == (array.dtype.name, array.shape) for name, array in state.items())


@pytest.mark.parametrize("name", sorted(set(dtypes.NUMPY) - {"complex128"}))
def test_every_dtype_of_safetensors_is_read(name, tmp_path):
    """Tensors of each dtype, also bfloat16 and float8, float6 and float4, are described and read with it."""
    array = np.arange(8).reshape(2, 4).astype(dtypes.NUMPY[name])
    packed = packed_floats.pack(array) if dtypes.BITS[name] < 8 else array
    header = {"x": {"dtype": dtypes.SAFETENSORS[name], "shape": [2, 4], "data_offsets": [0, packed.nbytes]}}
    text = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + packed.tobytes())
    found = as_state(tmp_path / "m.safetensors")
    assert found.describe("x") == (name, (2, 4))
    assert found["x"].dtype == array.dtype
    assert found["x"].tobytes() == array.tobytes()
    assert found.rows("x", 1, 2).tobytes() == array[1:].tobytes()


def test_a_folder_of_shards_is_one_checkpoint(state, tmp_path):
    """The shards of an index together are the state dict."""
    write_shards(tmp_path, state)
    assert equal(dict(as_state(tmp_path)), state)


def test_a_folder_with_one_file_needs_no_index(state, tmp_path):
    """A folder with model.safetensors is a checkpoint."""
    save_file(state, tmp_path / "model.safetensors")
    assert equal(dict(as_state(tmp_path)), state)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": {"state_dict": s}}])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_pytorch_checkpoints_are_unwrapped(state, wrap, prefix, suffix, tmp_path):
    """The usual wrappers and prefixes are removed; values that are not tensors are left out."""
    torch = pytest.importorskip("torch")
    tensors = {prefix + name: torch.from_numpy(array) for name, array in state.items()}
    torch.save(wrap(tensors), tmp_path / f"m{suffix}")
    assert equal(dict(as_state(tmp_path / f"m{suffix}")), state)


def test_torch_tensors_are_converted_bit_for_bit():
    """bfloat16, views, transposed and zero-dimensional tensors become arrays of the same values."""
    torch = pytest.importorskip("torch")
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7
    tensors = {"bf16": base.to(torch.bfloat16), "t": base.T, "row": base[1], "scalar": torch.tensor(3), "bool": base > 1}
    found = as_state(tensors)
    assert found["bf16"].dtype == ml_dtypes.bfloat16
    assert (found["bf16"].astype(np.float32) == tensors["bf16"].float().numpy()).all()
    assert (found["t"] == base.T.numpy()).all()
    assert found["t"].flags.c_contiguous
    assert (found["row"] == base[1].numpy()).all()
    assert found["scalar"].shape == ()
    assert found["bool"].dtype == bool
    assert all(found.describe(name) == (found[name].dtype.name, found[name].shape) for name in found)


def test_a_model_is_its_state_dict():
    """A module is read by its state_dict()."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(4, 3)
    assert (as_state(model)["weight"] == model.weight.detach().numpy()).all()


def test_arrays_of_any_byte_order_and_layout_are_accepted():
    """Big-endian and Fortran-ordered arrays keep their values."""
    array = np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3))
    found = as_state({"x": array})["x"]
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert (found == array).all()


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return (os.system, ("touch owned",))


def bad_sources(folder):
    """{problem: (path, message)}"""
    (folder / "text.safetensors").write_text("this is no safetensors file")
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "model.xyz").write_bytes(b"x")
    (folder / "nothing").mkdir()
    for name, index in (("noindex", "{"), ("nomap", "{}"), ("listmap", '{"weight_map": []}')):
        (folder / name).mkdir()
        (folder / name / "model.safetensors.index.json").write_text(index)
    for name, shard in (("gone", "gone.safetensors"), ("outside", "../text.safetensors")):
        (folder / name).mkdir()
        (folder / name / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    (folder / "lies").mkdir()
    save_file({"b": np.ones(1)}, folder / "lies" / "s.safetensors")
    (folder / "lies" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "s.safetensors"}}))
    return {
        "missing": "no such file or folder",
        "text.safetensors": "not a safetensors file",
        "empty.safetensors": "not a safetensors file",
        "model.xyz": "not a checkpoint: it begins with b'x'; expected safetensors",
        "nothing": "expected model.safetensors.index.json or model.safetensors",
        "noindex": "not an index of shards",
        "nomap": "not an index of shards",
        "listmap": "not an index of shards",
        "gone": "no such file",
        "outside": "is not in this folder",
        "lies": "it does not have 'a', which the index lists for it",
    }


def test_bad_sources_are_source_errors(tmp_path):
    """Each bad source is a SourceError of one line that names the path and the problem."""
    for name, message in bad_sources(tmp_path).items():
        with pytest.raises(opq.SourceError, match=message) as caught:
            as_state(tmp_path / name)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_pickle_never_runs(tmp_path):
    """A checkpoint that would run code is refused, and the code does not run."""
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    for name, message in (
        ("evil.pt", r"it holds other objects \(\w+.system\)"),
        ("plain.pt", "not a checkpoint of plain tensors|not a PyTorch checkpoint"),
        ("text.pt", "not a checkpoint: it begins with b'hello'"),
        ("none.pt", "it has no tensors"),
    ):
        with pytest.raises(opq.SourceError, match=message):
            as_state(tmp_path / name)
    assert not os.path.exists("owned")


@pytest.mark.parametrize(
    "source",
    [
        3,
        None,
        [np.ones(3)],
        {"x": "text"},
        {"x": np.array(["text"])},
        {1: np.ones(3)},
        {"x": np.ones(3, dtype="datetime64[s]")},
    ],
)
def test_sources_without_tensors_are_refused(source):
    """Sources that are not mappings, names that are not text, values that are not arrays, and other dtypes are refused."""
    with pytest.raises(opq.SourceError):
        dict(as_state(source))


def test_metadata_are_kept_if_the_source_has_none(state, tmp_path):
    """Given metadata are used for a path or a state dict without its own, and never replace its own."""
    given = {"made": "elsewhere"}
    save_file(state, tmp_path / "none.safetensors")
    save_file(state, tmp_path / "own.safetensors", metadata={"made": "here"})
    for source in (tmp_path / "none.safetensors", state):
        assert as_state(source, given).metadata == given
    assert as_state(tmp_path / "own.safetensors", given).metadata == {"made": "here"}
    data = opq.compress(tmp_path / "own.safetensors", lossless=True).data
    with opq.OpqFile(data) as file:
        assert as_state(file, given).metadata == {"made": "here"}


@pytest.mark.parametrize("place", ["beside", "list", "number"])
def test_no_tensor_of_a_checkpoint_is_dropped_silently(place, tmp_path):
    """Tensors outside the state dict are a SourceError that names their key; a wrapper's other entries are left out."""
    torch = pytest.importorskip("torch")
    tensors = {"a.weight": torch.ones(4, 4)}
    more = {"beside": {"beside": {"b.weight": torch.ones(2)}}, "list": {"list": [torch.ones(2)]}, "number": {7: torch.ones(2)}}
    torch.save({**tensors, **more[place]}, tmp_path / "m.pt")
    with pytest.raises(opq.SourceError, match=f"it has tensors at the top level and in .*{7 if place == 'number' else place}"):
        as_state(tmp_path / "m.pt")
    torch.save({"model": tensors, "optimizer": more[place], "epoch": 3}, tmp_path / "wrapped.pt")
    assert list(as_state(tmp_path / "wrapped.pt")) == list(tensors)


def test_tensors_without_dense_data_are_refused():
    """Sparse, meta and uninitialized tensors are a SourceError with their name."""
    torch = pytest.importorskip("torch")
    shells = {
        "a sparse": torch.eye(3).to_sparse(),
        "on meta": torch.ones(3, 3, device="meta"),
        "no shape yet": torch.nn.UninitializedParameter(),
    }
    for words, shell in shells.items():
        with pytest.raises(opq.SourceError, match=f"tensor 'x.weight'.*{words.removeprefix('a ')}"):
            opq.compress({"x.weight": shell}, ratio=2)


@pytest.mark.parametrize("change", ["replaced", "written", "longer", "shorter", "gone"])
def test_a_file_that_changes_while_it_is_read_is_an_error(change, tmp_path):
    """Tensors of two versions of a file are never mixed: a change after the file was opened is an error that names it."""
    path = tmp_path / "m.safetensors"
    save_file({"a": np.zeros((8, 8), dtype=np.float32)}, path)
    old = path.stat()
    found = as_state(path)
    assert not found["a"].any()
    if change == "replaced":
        save_file({"a": np.ones((8, 8), dtype=np.float32)}, tmp_path / "new")
        os.replace(tmp_path / "new", path)
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    elif change == "longer":
        with path.open("ab") as file:
            file.write(b"\0")
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    elif change == "written":
        path.write_bytes(path.read_bytes()[:-1] + b"\1")
        os.utime(path, ns=(0, 0))
    elif change == "shorter":
        os.truncate(path, path.stat().st_size - 1)
    else:
        path.unlink()
    with pytest.raises(opq.SourceError, match=r"m\.safetensors.*(changed|No such file)"):
        found["a"]
