"""Golden files: files that were written once, and the tensors that must always be read from them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from codec_strategies import inflate, same_bits, sections_of

import opq.numpy
from opq import dtypes
from opq.codec.byte_planes import encode_fast_pack, encode_pack
from opq.codec.file_reader import OpqFile
from opq.codec.file_writer import AuxiliaryPack, write
from opq.codec.verify import verify
from opq.quantization.compressed_tensor import CompressedTensor

GOLDEN = Path(__file__).parents[1] / "golden"
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())

each_file = pytest.mark.parametrize("name", sorted(MANIFEST))


def comparable(data: bytes) -> tuple[bytes, list[bytes]]:
    """The parts of a file that do not depend on the implementation of zlib."""
    return inflate(data), sections_of(data)


def test_the_manifest_names_the_files():
    """Each golden file is in the manifest, and each is small."""
    assert sorted(path.name for path in GOLDEN.glob("*.opq")) == sorted(MANIFEST)
    assert all(0 < path.stat().st_size < 8000 for path in GOLDEN.glob("*.opq"))


@each_file
def test_the_reader_gives_the_same_values(name):
    """Every tensor of a golden file has the dtype, shape and bits that it had when it was written."""
    arrays = opq.numpy.load_file(GOLDEN / name)
    found = {
        key: [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()] for key, array in arrays.items()
    }
    assert found == MANIFEST[name]["tensors"]
    with OpqFile(GOLDEN / name) as file:
        assert file.metadata == MANIFEST[name]["metadata"]


@each_file
def test_the_writer_gives_the_same_bytes(name):
    """The weights and tensors of a golden file, written again, give its columns and sections byte for byte."""
    data = (GOLDEN / name).read_bytes()
    weights, packs = {}, {}
    with OpqFile(data) as file:
        for entry in file.entries:
            content = file[entry.name]
            if isinstance(content, CompressedTensor):
                weights[entry.name] = content
            else:
                packs.setdefault(entry.section, []).append((entry, file.stored(entry.name)))
        metadata = file.metadata
    again = []
    for members in packs.values():
        entries, arrays = zip(*members, strict=True)
        again.append(AuxiliaryPack(entries, (encode_fast_pack if name == "planes.opq" else encode_pack)(arrays)))
    layout = write(weights, packs=again, metadata=metadata, speed="fast" if name == "fast.opq" else "small")
    assert comparable(b"".join(layout.pieces())) == comparable(data)
    assert layout.nonzero == {name: weight.num_kept for name, weight in weights.items()}


@each_file
def test_tensors_are_decoded_to_given_memory(name):
    """Tensors are decoded to the arrays that are given for them, to the same bits as to new ones; others to new ones."""
    data = (GOLDEN / name).read_bytes()
    expected = opq.numpy.load(data)
    for names in (list(expected), list(expected)[::2]):
        given = {name: np.ones_like(expected[name]) for name in names}
        found = opq.numpy.load(data, out=given)
        assert all(found[name] is array for name, array in given.items())
        assert all(same_bits(found[name], array) for name, array in expected.items())


def test_large_tensors_are_decoded_to_given_memory():
    """As above, for fast planes and fast sections of several blocks."""
    random = np.random.default_rng(0)
    state = {"w": random.standard_normal((700, 512), dtype=np.float32), "b": random.integers(0, 9, (600, 512), dtype=np.int64)}
    for options in ({"lossless": True}, {"ratio": 8.0}):
        data = opq.compress(state, **options).data
        expected = opq.numpy.load(data)
        given = {name: np.ones_like(array) for name, array in expected.items()}
        assert opq.numpy.load(data, out=given).keys() == given.keys()
        assert all(same_bits(array, expected[name]) for name, array in given.items())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda w: {"other": w},
        lambda w: {"w": w.astype(np.float64)},
        lambda w: {"w": w.T},
        lambda w: {"w": np.zeros((w.shape[0], 2 * w.shape[1]), w.dtype)[:, ::2]},
        lambda w: {"w": np.frombuffer(w.tobytes(), w.dtype).reshape(w.shape)},
    ],
    ids=["name", "dtype", "shape", "order", "read-only"],
)
def test_given_memory_is_checked(wrong):
    """Memory of another name, dtype, shape or order, and memory that is not writable, is a ValueError that names it."""
    w = np.random.default_rng(0).standard_normal((40, 60), dtype=np.float32)
    data = opq.numpy.save({"w": w}, lossless=True)
    with pytest.raises(ValueError, match=r"out\['(w|other)'\]"):
        opq.numpy.load(data, out=wrong(w))


@each_file
def test_the_script_gives_the_files(name):
    """`make.py` gives the columns, the sections and the manifest of the golden files."""
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert sorted(script.FILES) == sorted(MANIFEST)
    data = script.FILES[name]()
    assert comparable(data) == comparable((GOLDEN / name).read_bytes())
    assert script.describe(data) == MANIFEST[name]


@each_file
def test_golden_files_are_valid(name):
    """Golden files pass `verify`."""
    with OpqFile(GOLDEN / name) as file:
        assert verify(GOLDEN / name).file_bytes == file.file_bytes


def test_golden_files_hold_every_dtype_and_storage():
    """The golden files hold each dtype exactly, each compressible one as codes and as levels, float16 and 8-bit grids."""
    with OpqFile(GOLDEN / "storages.opq") as file:
        entries = file.entries
    later = []
    for name in ("dtypes.opq", "packed.opq"):
        with OpqFile(GOLDEN / name) as file:
            later += file.entries
    assert {entry.dtype for entry in (*entries, *later) if entry.storage == "exact"} == set(dtypes.NUMPY)
    assert {entry.dtype for entry in entries if entry.storage == "codes"} == dtypes.COMPRESSIBLE
    assert {entry.dtype for entry in entries if entry.storage == "float16"} == {"float32", "float64"}
    assert any(entry.count == 0 for entry in entries)
    assert {entry.storage for entry in entries if entry.shape == ()} >= {"codes", "exact"}
    sections = [entry.section for entry in entries if entry.storage == "codes"]
    assert len(set(sections)) < len(sections)
    with OpqFile(GOLDEN / "tables.opq") as file:
        entries = file.entries
    assert {entry.dtype for entry in entries if entry.storage == "levels"} == dtypes.COMPRESSIBLE
    assert {entry.storage for entry in entries} == {"levels", "exact", "float16", "linear8", "relative8"}
    with OpqFile(GOLDEN / "scaled.opq") as file:
        scaled = {entry.name: entry for entry in file.entries if entry.storage == "scaled"}
        axes = {file[name].codebook.axes for name in scaled}
    assert {entry.dtype for entry in scaled.values()} == dtypes.COMPRESSIBLE
    assert axes == {("rows",), ("columns",), ("rows", "columns")}
    assert scaled["c"].section == scaled["c.tied"].section != scaled["c.turned"].section
