"""Formats recognised by their first bytes, state dicts under keys, folders of Hugging Face, and what a .pt file may hold."""

import argparse
import contextlib
import io
import json
import logging
import pathlib
import tempfile
import warnings
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import opq
from opq.checkpoints import as_state
from opq.checkpoints.wrappers import PREFIXES, find_state_dict, without_prefixes
from opq.cli import main

TENSORS = {"a.weight": np.ones((4, 6), np.float32), "a.bias": np.zeros(4, np.float16), "b.weight": np.eye(3, dtype=np.float32)}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def as_torch(torch, tensors=TENSORS):
    return {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}


def same(found, expected=TENSORS):
    return sorted(found) == sorted(expected) and all((found[name] == expected[name]).all() for name in expected)


@pytest.mark.parametrize("name", ["last.ckpt", "best.pth.tar", "M.PTH", "m.th", "m.bin", "m", "m.safetensors"])
def test_the_bytes_tell_the_format(torch, name, tmp_path):
    """A file of PyTorch or safetensors is read under any name."""
    torch.save({"epoch": 3, "state_dict": as_torch(torch)}, tmp_path / name)
    assert same(as_state(tmp_path / name))
    torch.save(as_torch(torch), tmp_path / name, _use_new_zipfile_serialization=False)
    assert same(as_state(tmp_path / name))
    save_file(TENSORS, tmp_path / name)
    assert same(as_state(tmp_path / name))


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"<!DOCTYPE html>", "web page"),
        (b"", "empty"),
        (b"PK\x03\x04", "a damaged checkpoint"),
    ],
)
def test_other_files_are_named(head, words, tmp_path):
    """A file of another kind is an error that says what it is."""
    (tmp_path / "m.pt").write_bytes(head)
    with pytest.raises(opq.SourceError, match=words):
        as_state(tmp_path / "m.pt")


@pytest.mark.parametrize("key", ["params_ema", "generator", "weights", "a.b"])
def test_one_state_dict_is_read_under_any_key(torch, key, tmp_path):
    """The only state dict of a file is read, whatever its key; an optimizer's tensors are not a state dict."""
    content = {key: as_torch(torch), "epoch": 3, "optimizer": {"state": {0: {"m": torch.ones(2)}}, "param_groups": []}}
    torch.save(content, tmp_path / "m.pt")
    assert same(as_state(tmp_path / "m.pt"))
    assert same(as_state(content))


def test_several_state_dicts_need_a_key(torch, tmp_path):
    """Several state dicts without a usual key are an error that names them; a key, with dots for nested ones, chooses."""
    more = {"a.weight": torch.full((4, 6), 2.0)}
    torch.save({"params": as_torch(torch), "nets": {"ema": more, "d": dict(more)}}, tmp_path / "m.pt")
    with pytest.raises(opq.SourceError, match=r"several state dicts: params, nets.ema, nets.d; .*--key"):
        as_state(tmp_path / "m.pt")
    assert same(as_state(tmp_path / "m.pt", key="params"))
    assert same(as_state(tmp_path / "m.pt", key="nets.ema"), {"a.weight": np.full((4, 6), 2.0)})
    torch.save({"x": {"w.weight": torch.randn(48, 48)}, "y": {"v.weight": torch.randn(48, 48)}}, tmp_path / "large.pt")
    assert list(opq.plan(tmp_path / "large.pt", ratio=4, key="y").layers) == ["v.weight"]
    for key in ("ema", "nets.x", "params.a.weight.c"):
        with pytest.raises(opq.SourceError, match=f"no key '{key}'"):
            as_state(tmp_path / "m.pt", key=key)


@pytest.mark.parametrize("usual", ["state_dict", "model"])
def test_a_second_state_dict_is_never_silent(torch, usual, tmp_path, capsys, caplog):
    """Beside a usual key others are left out, and a line on stderr and in the log says so; --key takes them."""
    torch.save({usual: as_torch(torch), f"{usual}_ema": {"z.weight": torch.ones(4, 4)}}, tmp_path / "m.pt")
    assert main(["compress", f"{tmp_path}/m.pt", "--lossless", "-o", f"{tmp_path}/m.opq"]) == 0
    line = f"m.pt: read '{usual}', ignored '{usual}_ema'; --key KEY (key=) reads another"
    assert capsys.readouterr().err.splitlines() == [f"opq: warning: {tmp_path}/{line}"]
    assert line in caplog.text
    assert same(opq.numpy.load_file(tmp_path / "m.opq"))
    assert main(["compress", f"{tmp_path}/m.pt", "--lossless", "--key", f"{usual}_ema", "-o", f"{tmp_path}/e.opq"]) == 0
    assert list(opq.numpy.load_file(tmp_path / "e.opq")) == ["z.weight"]
    assert capsys.readouterr().err == ""


nests = st.recursive(
    st.sampled_from([np.ones(2), 3, "text", None]),
    lambda inner: (
        st.dictionaries(st.sampled_from([*"abcd", "model", "optimizer"]), inner, max_size=3) | st.lists(inner, max_size=2)
    ),
    max_leaves=8,
)


@given(nests, st.booleans())
def test_any_nest_is_a_state_dict_or_an_error(nest, cyclic):
    """Any nest of containers gives only tensors, or a SourceError; also one that contains itself."""
    if cyclic and isinstance(nest, dict):
        nest["model"] = nest
        nest["list"] = [nest]
    try:
        found = find_state_dict(nest, "it")
    except opq.SourceError:
        pass
    else:
        assert found
        assert all(isinstance(value, np.ndarray) for value in found.values())


@given(st.lists(st.sampled_from(PREFIXES), max_size=3), st.sets(st.text("ab.", min_size=1).map("x".__add__), min_size=1))
def test_prefixes_that_all_names_have_are_removed(prefixes, names):
    """Prefixes of wrappers, in any order, are removed exactly if all names have them."""
    before = "".join(prefixes)
    assert without_prefixes([before + name for name in names]) == {name: before + name for name in names}
    assert set(without_prefixes([*(before + name for name in names), "y"])) == {*(before + name for name in names), "y"}


def test_safetensors_have_the_same_rule_for_prefixes(tmp_path):
    """The prefix "module." is removed from a .safetensors file as from a .pt file."""
    save_file({f"module.{name}": array for name, array in TENSORS.items()}, tmp_path / "m.safetensors")
    state = as_state(tmp_path / "m.safetensors")
    assert same(state)
    assert (state.rows("a.weight", 1, 3) == TENSORS["a.weight"][1:3]).all()


def write_folder(folder, stem, form, torch, listed=TENSORS):
    """Two shards of all tensors, and an index of those that are listed."""
    names = sorted(TENSORS)
    weight_map = {}
    for number, part in enumerate((names[:1], names[1:])):
        file = f"{stem}-{number + 1:05d}-of-00002.{form}"
        tensors = {name: TENSORS[name] for name in part}
        if form == "bin":
            torch.save(as_torch(torch, tensors), folder / file)
        else:
            save_file(tensors, folder / file)
        weight_map.update({name: file for name in part if name in listed})
    (folder / f"{stem}.{form}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("stem", ["model", "pytorch_model", "diffusion_pytorch_model", "adapter_model"])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("layout", ["whole", "variant", "shards"])
def test_folders_of_hugging_face_are_read(torch, stem, form, layout, tmp_path):
    """Whole files, variants and shards are read in each library's names; an index may be given itself."""
    if layout == "shards":
        write_folder(tmp_path, stem, form, torch)
        assert same(as_state(tmp_path / f"{stem}.{form}.index.json"))
    else:
        path = tmp_path / (f"{stem}.fp16.{form}" if layout == "variant" else f"{stem}.{form}")
        torch.save(as_torch(torch), path) if form == "bin" else save_file(TENSORS, path)
    assert same(as_state(tmp_path))


def test_a_whole_file_comes_before_an_index(torch, tmp_path, caplog):
    """A whole file is taken, also if the index beside it names files that are gone, and a line says what was left out."""
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    save_file(TENSORS, tmp_path / "model.safetensors")
    torch.save(as_torch(torch), tmp_path / "pytorch_model.bin")
    assert same(as_state(tmp_path))
    assert "read model.safetensors, ignored model.safetensors.index.json, pytorch_model.bin" in caplog.text


FILES = [  # in the order in which they are taken
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.fp16.safetensors",
    "model.safetensors.index.fp16.json",
    "pytorch_model.fp16.bin",
    "pytorch_model.bin.index.fp16.json",
]


@given(st.sets(st.sampled_from(range(len(FILES))), min_size=1))
def test_the_first_file_of_a_network_is_taken(chosen):
    """No variant comes before a variant, .safetensors before .bin, and a whole file before an index."""
    torch = pytest.importorskip("torch")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for number in chosen:
            file, tensor = FILES[number], {"w": np.full((2, 2), number, np.float32)}
            if file.endswith(".json"):
                shard = f"shard{number}.{'safetensors' if 'safetensors' in file else 'bin'}"
                (folder / file).write_text(json.dumps({"weight_map": {"w": shard}}))
                file = shard
            save_file(tensor, folder / file) if "safetensors" in file else torch.save(as_torch(torch, tensor), folder / file)
        assert as_state(folder)["w"][0, 0] == min(chosen)


@pytest.mark.parametrize("names", [["model.fp16", "model.bf16"], ["model", "adapter_model"], ["x", "y"]])
def test_folders_of_several_checkpoints_are_refused(names, tmp_path):
    """Checkpoints that may differ, of which none comes first, are an error that says to give a path."""
    for name in names:
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    with pytest.raises(opq.SourceError, match="give the path of one"):
        as_state(tmp_path)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_tensors_that_an_index_does_not_name_are_taken(torch, form, tmp_path, caplog):
    """A tensor that lies in a shard and not in the index is read, and a line names it."""
    write_folder(tmp_path, "model", form, torch, listed=["a.bias", "a.weight"])
    assert same(as_state(tmp_path))
    assert "read 1 tensors that the index does not list, such as 'b.weight'" in caplog.text


def test_harmless_objects_are_taken(torch, tmp_path, caplog):
    """Settings of usual types beside a state dict do not stop it from being read."""
    extra = {
        "args": argparse.Namespace(out=pathlib.Path("x"), pure=pathlib.PureWindowsPath("y")),
        "best": np.float64(0.5),
        "history": np.arange(3.0),
        "sizes": [torch.Size([3]), {1, 2}, slice(3)],
        "more": OrderedDict(a=defaultdict(list, b=[3])),
    }
    torch.save({"state_dict": as_torch(torch), **extra}, tmp_path / "m.pt")
    assert same(as_state(tmp_path / "m.pt"))
    torch.save({**as_torch(torch), "note": "text", "_extra_state": None}, tmp_path / "m.pt")
    assert same(as_state(tmp_path / "m.pt"))
    assert "ignored 'note', '_extra_state' (not a tensor)" in caplog.text


def test_a_small_file_cannot_ask_for_much_memory(torch, tmp_path):
    """Tensors that repeat few elements, and nested or cyclic containers, end in one line or are read."""
    torch.save({"x": torch.ones(1).expand(2**40)}, tmp_path / "wide.pt")
    with pytest.raises(opq.SourceError, match="its tensors take 4,398,046,511,104 bytes"):
        as_state(tmp_path / "wide.pt")
    content = as_torch(torch)
    content["model"], content["list"] = content, [content]
    torch.save(content, tmp_path / "cyclic.pt")
    assert same(as_state(tmp_path / "cyclic.pt"))
    (tmp_path / "model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(opq.SourceError, match="nested too deeply"):
        as_state(tmp_path)


def test_tensors_of_other_owners_are_refused(torch):
    """A DTensor is a SourceError that names it and says to gather it."""
    dist = pytest.importorskip("torch.distributed.tensor")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        sharded = dist.distribute_tensor(torch.ones(4, 4), mesh, [dist.Shard(0)])
        with pytest.raises(opq.SourceError, match=r"tensor 'w': a DTensor.*full_tensor"):
            opq.compress({"w": sharded}, ratio=2)
    finally:
        torch.distributed.destroy_process_group()


def test_tensors_without_memory_of_their_own_are_refused(torch):
    """A subclass that wraps other tensors, as torchao's do, is a SourceError that names it and says to dequantize it."""
    two_tensor = pytest.importorskip("torch.testing._internal.two_tensor")
    tensor = two_tensor.TwoTensor(torch.ones(8, 8), torch.zeros(8, 8))
    for source in ({"w": tensor}, torch.nn.ParameterDict({"w": torch.nn.Parameter(tensor)})):
        with pytest.raises(opq.SourceError, match=r"tensor 'w': a TwoTensor has no memory of its own; dequantize it first"):
            opq.compress(source, ratio=2)


def test_warnings_reach_the_log_once(torch, tmp_path):
    """The command line leaves no handler behind."""
    before = list(logging.getLogger("opq").handlers)
    main(["plan", f"{tmp_path}/none", "--ratio", "2"])
    assert logging.getLogger("opq").handlers == before


def test_npz_files_are_read(tmp_path):
    """The arrays of a .npz file are tensors, compressed or not; objects are refused."""
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "m.npz", **TENSORS)
        assert same(as_state(tmp_path / "m.npz"))
    np.savez(tmp_path / "o.npz", x=np.array([{}]))
    with pytest.raises(opq.SourceError, match="plain arrays"):
        as_state(tmp_path / "o.npz")


@given(st.integers(0, 10_000), st.integers(0, 255), st.sampled_from([np.savez, np.savez_compressed]))
def test_damaged_npz_files_are_one_error(place, value, save):
    """Whatever byte is changed, the file is read or a SourceError: also if zlib or zipfile fails."""
    content = io.BytesIO()
    save(content, **TENSORS)
    damaged = bytearray(content.getvalue())
    damaged[place % len(damaged)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "m.npz"
        path.write_bytes(damaged)
        with contextlib.suppress(opq.SourceError):
            as_state(path)


def test_torchscript_archives_are_refused(torch, tmp_path):
    """A TorchScript archive, which holds code, is an error that says how to export its tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(4, 4)).save(str(tmp_path / "m.pt"))
    with pytest.raises(opq.SourceError, match=r"a TorchScript archive, .*state_dict\(\)"):
        as_state(tmp_path / "m.pt")


def test_the_safe_globals_of_the_user_stay(torch, tmp_path):
    """Reading a file leaves the classes that the user allowed to torch.load as they were, also those that opq allows too."""
    torch.save({"a": torch.ones(3)}, tmp_path / "m.pt")
    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([argparse.Namespace, pathlib.Path]):
        during = torch.serialization.get_safe_globals()
        as_state(tmp_path / "m.pt")
        assert set(torch.serialization.get_safe_globals()) == set(during)
    assert set(torch.serialization.get_safe_globals()) == set(before)


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_prefixes_go_if_all_shards_have_them(torch, form, tmp_path):
    """A prefix is removed if all names of all shards have it, whatever the format of the shards."""
    for names, found in (
        (("module.x", "embed", "module.y"), ["embed", "module.x", "module.y"]),
        (("module.x", "module.embed", "module.y"), ["embed", "x", "y"]),
    ):
        weight_map = {}
        for number, name in enumerate(names):
            file = weight_map[name] = f"model-{number}-of-3.{form}"
            if form == "bin":
                torch.save({name: torch.ones(2)}, tmp_path / file)
            else:
                save_file({name: np.ones(2)}, tmp_path / file)
        (tmp_path / "i.json").write_text(json.dumps({"weight_map": weight_map}))
        assert sorted(as_state(tmp_path / "i.json")) == found


def test_tensors_beside_a_usual_key_are_named(caplog):
    """A tensor that lies beside the state dict that is read is ignored with a warning."""
    assert list(as_state({"state_dict": {"a": np.ones(3)}, "mean": np.ones(3)})) == ["a"]
    assert "read 'state_dict', ignored 'mean'" in caplog.text


@pytest.mark.parametrize("key", ["upscaler", "wrong", "stamp"])
def test_names_that_only_hold_a_word_are_state_dicts(key):
    """Only whole words mark the state of an optimizer, a schedule or a gradient scaler."""
    assert list(as_state({key: {"a": np.ones(3)}})) == ["a"]
    for other in ("optimizer", "optimizer_state_dict", "lr_schedulers", "grad_scaler", "scaler", "amp"):
        assert list(as_state({key: {"a": np.ones(3)}, other: {"state": np.ones(3)}})) == ["a"]


def test_a_state_has_no_keys():
    """A key of a State is an error, not silence."""
    with pytest.raises(opq.SourceError, match="it has no key 'ema'"):
        opq.compress(as_state(TENSORS), ratio=2, key="ema")


def test_names_of_a_module_stay(torch):
    """The names of a module are kept, also if it has a mapping as extra state."""

    class Extra(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = torch.nn.Linear(2, 2)

        def get_extra_state(self):
            return {"epoch": 3}

    assert sorted(as_state(Extra())) == ["module.bias", "module.weight"]


def test_archives_that_inflate_too_far_are_refused(tmp_path):
    """A zip archive may unpack to 64 MiB and 64 times its size."""
    np.savez_compressed(tmp_path / "m.npz", x=np.zeros(80 << 20, np.uint8))
    with pytest.raises(opq.SourceError, match=r"unpacks to 83,886,\d+ bytes"):
        as_state(tmp_path / "m.npz")
