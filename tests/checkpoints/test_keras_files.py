"""HDF5 files and .keras archives: every array of numbers is read, and nothing outside of the file."""

from __future__ import annotations

import resource
import signal
import sys
import zipfile
import zlib

import ml_dtypes
import numpy as np
import pytest

import opq
import opq.numpy
from opq import dtypes
from opq.checkpoints import as_state
from opq.cli import main

h5py = pytest.importorskip("h5py")

RNG = np.random.default_rng(0)
NUMBERS = [name for name in dtypes.NUMPY if not name.startswith(("float4", "float6", "float8", "bfloat16"))]
ARRAYS = {
    "conv/conv/kernel:0": RNG.normal(size=(3, 3, 8, 16)).astype(np.float32),
    "conv/conv/bias:0": np.arange(16, dtype=np.float16),
    "layers/seed/0": np.array([1, 2], np.uint32),
    "scalar": np.array(2.5),
    "none": np.zeros((0, 3), np.int8),
    "bfloat": RNG.normal(size=(5, 3)).astype(ml_dtypes.bfloat16),
    **{f"kinds/{kind}": RNG.integers(0, 2, (2, 3)).astype(kind) for kind in NUMBERS},
}


def write(path, arrays, prefix="", **options):
    """An HDF5 file with arrays, as Keras writes them."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            dataset = file.create_dataset(prefix + name, data=array, **options)
            if array.dtype == ml_dtypes.bfloat16:
                dataset.attrs["dtype"] = "bfloat16"
    return path


def same(found, expected):
    """Whether two mappings have the same names, dtypes, shapes and bits."""
    return sorted(found) == sorted(expected) and all(
        (found[name].dtype, found[name].shape, found[name].tobytes()) == (array.dtype, array.shape, array.tobytes())
        for name, array in expected.items()
    )


def test_arrays_come_back_bit_for_bit(tmp_path):
    """Arrays of every dtype and shape have their path in the file as name, also after lossless compression."""
    path = write(tmp_path / "m.weights.h5", ARRAYS)
    assert same(as_state(path), ARRAYS)
    assert same(opq.numpy.load(opq.compress(path, lossless=True).data), ARRAYS)


def test_storage_does_not_matter(tmp_path):
    """Byte order, chunks and filters of HDF5 change nothing."""
    array = RNG.normal(size=(40, 30)).astype(np.float32)
    with h5py.File(tmp_path / "m", "w") as file:
        file["big"] = array.astype(">f4")
        file.create_dataset("packed", data=array, chunks=(7, 30), compression="gzip", shuffle=True, fletcher32=True)
        file.create_dataset("unlimited", data=array, maxshape=(None, 30), compression="lzf")
    assert same(as_state(tmp_path / "m"), dict.fromkeys(("big", "packed", "unlimited"), array))


def test_a_whole_model_is_its_weights(tmp_path, caplog):
    """The prefix of all weights of a model goes; the optimizer's state and texts are left out, and a warning says so."""
    path = write(tmp_path / "m.h5", {name: ARRAYS[name] for name in ("conv/conv/kernel:0", "scalar")}, "model_weights/")
    with h5py.File(path, "a") as file:
        file["optimizer_weights/adam/m:0"] = np.ones(3)
        file["model_weights/note"] = "text"
        file["empty"] = h5py.Empty("f4")
        file.attrs["model_config"] = '{"class_name": "Lambda"}'
    assert sorted(as_state(path)) == ["conv/conv/kernel:0", "scalar"]
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "ignored 'optimizer_weights' (state of an optimizer)",
        "ignored 'empty', 'model_weights/note' (not an array of numbers)",
    ]


def test_a_keras_archive_is_its_weights(tmp_path, caplog):
    """A .keras archive is read without its configuration, from the command line too."""
    weights = {"layers/dense/vars/0": RNG.normal(size=(64, 32)).astype(np.float32), "layers/dense/vars/1": np.ones(32)}
    inner = write(tmp_path / "w.h5", {**weights, "optimizer/vars/0": np.ones(3)})
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("config.json", "not even JSON")
        archive.write(inner, "model.weights.h5")
    assert (
        main(["compress", f"{tmp_path}/m.keras", "--ratio", "4", "--include", "layers/dense/*", "-o", f"{tmp_path}/m.opq"]) == 0
    )
    found = opq.numpy.load_file(tmp_path / "m.opq")
    assert {name: array.shape for name, array in found.items()} == {name: array.shape for name, array in weights.items()}
    assert "ignored 'config.json' (not weights)" in caplog.text
    assert "ignored 'optimizer' (state of an optimizer)" in caplog.text


def soft_link(file):
    file["a"] = h5py.SoftLink("/a")


def external_link(file):
    file["a/b"] = h5py.ExternalLink("other.h5", "/x")


def other_file(file):
    file.create_dataset("x", (2,), "f4", external=[("other.bin", 0, 8)])


def virtual(file):
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (2,))
    file.create_virtual_dataset("x", layout)


def cycle(file):
    file["a/b/c"] = file["/"]


def wide(file):
    file.create_dataset("x", (2**40,), "f4", chunks=(2**10,))


def wide_chunk(file):
    file.create_dataset("x", (1,), "f4", chunks=(2**29,), maxshape=(None,))


def long_double(file):
    file["x"] = np.longdouble(1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (soft_link, "'a' is a link"),
        (external_link, "'a/b' is a link"),
        (other_file, "'x' has its data in other files"),
        (virtual, "'x' has its data in other files"),
        (cycle, "the group 'a/b/c/' twice"),
        (wide, "its tensors take 4,398,046,511,104 bytes"),
        (wide_chunk, "its tensors take 2,147,483,648 bytes"),
        (long_double, "'x': dtype float128 is not supported"),
    ],
)
def test_only_own_data_are_read(make, words, tmp_path):
    """Links, data in other files, loops, and arrays that would fill the memory are errors that name the place."""
    (tmp_path / "other.bin").write_bytes(b"8 secret")
    write(tmp_path / "other.h5", {"x": np.ones(2, np.float32)})
    with h5py.File(tmp_path / "m.h5", "w") as file:
        make(file)
    with pytest.raises(opq.SourceError, match=words) as caught:
        as_state(tmp_path / "m.h5")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_damage_is_one_line(tmp_path):
    """Any part of a file, and a file with changed bytes, is read or ends in one line."""
    path = write(tmp_path / "m.h5", {"a/kernel": ARRAYS["conv/conv/kernel:0"]}, chunks=(3, 3, 8, 4), compression="gzip")
    data = path.read_bytes()
    damaged = [data[: len(data) * part // 4] for part in (1, 3)]
    for seed in range(2):
        rng = np.random.default_rng(seed)
        changed = np.frombuffer(data, np.uint8).copy()
        changed[rng.integers(8, len(data), 40)] = rng.integers(0, 256, 40)
        damaged.append(changed.tobytes())
    for content in damaged:
        path.write_bytes(content)
        try:
            as_state(path)
        except opq.SourceError as error:
            assert str(error).startswith(f"cannot read {path}: a damaged HDF5 file")  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017


def test_a_crash_of_the_library_is_one_line(tmp_path, monkeypatch):
    """If the process of the HDF5 library is killed by a signal, the error says that the file is damaged."""
    crash = tmp_path / "python"
    crash.write_text(f"#!/bin/sh\nkill -{signal.SIGSEGV.value} $$\n")
    crash.chmod(0o755)
    path = write(tmp_path / "m.h5", {"x": np.ones(3)})
    monkeypatch.setattr(sys, "executable", str(crash))
    with pytest.raises(opq.SourceError, match=r"m.h5: a damaged HDF5 file, at which the HDF5 library stops$"):
        as_state(path)


@pytest.mark.slow
def test_a_bomb_does_not_fill_the_memory(tmp_path):
    """A chunk of 3 MB that inflates to 2 GB ends in one line, within 1.2 GB of memory."""
    deflate = zlib.compressobj(9, wbits=-15)
    zeros = deflate.compress(bytes(2**24)) + deflate.flush(zlib.Z_FULL_FLUSH)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        dataset = file.create_dataset("x", (1024,), "f4", chunks=(1024,), compression="gzip")
        dataset.id.write_direct_chunk((0,), b"\x78\x9c" + 128 * zeros)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # the largest of all earlier processes, in kB
    with pytest.raises(opq.SourceError, match="a damaged HDF5 file"):
        as_state(tmp_path / "m.h5")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < max(before + 1, 1_200_000)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    """Without h5py the error says what to install."""
    path = write(tmp_path / "m.h5", {"x": np.ones(3)})
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(opq.MissingExtraError, match=r"reading m.h5 .*pip install 'opq\[keras\]'"):
        as_state(path)
