"""Whole files: what is put into one comes out of it."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from codec_strategies import (
    AUXILIARY,
    CODES,
    NAMES,
    SMALL_CODES,
    STEPS,
    TEXTS,
    encode_file,
    inflate,
    leveled,
    same_bits,
    sections_of,
    small_file,
    wrap,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

import opq.numpy
from opq import dtypes
from opq.codec.auxiliary import fits_half
from opq.codec.code_stream import encode_codes
from opq.codec.file_reader import OpqFile
from opq.codec.file_writer import LARGEST_PACK, EncodedWeight, assemble, largest_content, pack_auxiliary
from opq.codec.weight_section import encode_weight
from opq.errors import FormatError, OpqError, SourceError, TargetError, WeightError
from opq.quantization.compressed_tensor import CompressedTensor

KINDS = sorted(dtypes.COMPRESSIBLE)
STEPPED = st.builds(CompressedTensor, CODES, STEPS, st.sampled_from(["float32", "float64", "bfloat16"]))
WEIGHTS = STEPPED | leveled()


@st.composite
def contents(draw) -> tuple[dict[str, CompressedTensor], dict[str, np.ndarray]]:
    tensors = draw(st.dictionaries(NAMES, WEIGHTS | AUXILIARY, max_size=8))
    weights = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, CompressedTensor)}
    return weights, {name: tensor for name, tensor in tensors.items() if name not in weights}


def read_all(data: bytes) -> dict[str, np.ndarray]:
    with OpqFile(data) as file:
        return {name: file.array(name) for name in file}


@settings(max_examples=60)
@given(contents(), st.dictionaries(TEXTS, TEXTS, max_size=3))
def test_what_goes_in_comes_out(tensors, metadata):
    """Weights come back as their codes, step, dtype and shape, auxiliary tensors bit by bit, and metadata as they were."""
    weights, auxiliary = tensors
    with OpqFile(encode_file(weights, auxiliary, metadata=metadata), max_bytes=2**40) as file:
        assert file.metadata == metadata
        assert list(file) == sorted([*weights, *auxiliary], key=str.encode)
        assert len(file) == len(weights) + len(auxiliary)
        for name, weight in weights.items():
            got = file[name]
            assert isinstance(got, CompressedTensor)
            assert (got.step, got.dtype, got.shape) == (weight.step, weight.dtype, weight.shape)
            assert same_bits(got.codes, weight.codes)
            assert (got.levels is None) == (weight.levels is None)
            assert weight.levels is None or same_bits(got.levels, weight.levels)
            assert same_bits(file.array(name), weight.values())
        for name, array in auxiliary.items():
            assert same_bits(file[name], array)


@settings(max_examples=60)
@given(contents(), st.randoms(use_true_random=False))
def test_the_order_of_tensors_makes_no_difference(tensors, random):
    """Weights, packs and metadata in any order give the same file."""
    weights, auxiliary = tensors
    encoded = [EncodedWeight(name, t.shape, t.dtype, t.step, encode_weight(t)) for name, t in weights.items()]
    ordered = sorted(auxiliary.items(), key=lambda item: item[0].encode())
    packs = [pack for item in ordered for pack in pack_auxiliary([item], "exact")]
    metadata = {"b": "1", "a": "2", "é": "3"}
    data = assemble(encoded, packs, metadata)
    random.shuffle(encoded)
    random.shuffle(packs)
    assert assemble(encoded, packs, dict(reversed(metadata.items()))) == data


@given(CODES, st.lists(st.tuples(STEPS, st.sampled_from(KINDS)), min_size=2, max_size=5))
def test_equal_codes_are_stored_once(codes, uses):
    """Weights of the same codes and shape share one section, whatever their steps and dtypes."""
    weights = {f"w{i}": CompressedTensor(codes, step, kind) for i, (step, kind) in enumerate(uses)}
    data = encode_file(weights, {})
    assert sections_of(data) == [encode_codes(codes)]
    with OpqFile(data) as file:
        for name, weight in weights.items():
            assert same_bits(file[name].codes, weight.codes)
            assert (file[name].step, file[name].dtype) == (weight.step, weight.dtype)


@given(SMALL_CODES, st.permutations(range(4)))
def test_the_same_codes_in_other_shapes_come_back(codes, order):
    """Weights of the same codes and other shapes come back each in its own, be their sections equal or not."""
    shapes = [codes.shape, (-1,), (1, -1), (-1, 1)]
    weights = {f"w{i}": CompressedTensor(codes.reshape(shapes[k]), 1.0, "float32") for i, k in enumerate(order)}
    data = encode_file(weights, {})
    assert len(sections_of(data)) == len({encode_codes(weight.codes) for weight in weights.values()})
    with OpqFile(data) as file:
        assert all(same_bits(file[name].codes, weight.codes) for name, weight in weights.items())


def test_equal_bytes_of_other_sizes_are_not_shared():
    """Weights of zeros may have the same bytes but not the same number of elements: each has its section."""
    weights = {f"w{n:02}": CompressedTensor(np.zeros(n, dtype=np.int32), 1.0, "float32") for n in range(1, 40)}
    assert len({encode_codes(weight.codes) for weight in weights.values()}) < 39
    data = encode_file(weights, {})
    assert len(sections_of(data)) == 39
    assert [array.shape for array in read_all(data).values()] == [(n,) for n in range(1, 40)]


def test_packs_of_equal_bytes_are_not_shared():
    """Two packs may have the same bytes; each tensor comes back from its own."""
    a, b = (pack_auxiliary([(name, np.full(2**18, 7, dtype=np.float32))], "exact") for name in "ab")
    data = assemble([], [*a, *b], {})
    assert len(sections_of(data)) == 2
    assert same_bits(read_all(data)["b"], np.full(2**18, 7, dtype=np.float32))


@example([2**18, 2**18, 0, 2**19, 1, 2**20])
@given(st.lists(st.integers(0, LARGEST_PACK // 4 * 3), max_size=12))
def test_packs_hold_up_to_a_mebibyte(sizes):
    """Auxiliary tensors fill packs in their order, each up to 2^20 dense bytes; only a tensor larger than that exceeds them."""
    arrays = [(f"{i:02}", np.zeros(size, dtype=np.uint16)) for i, size in enumerate(sizes)]
    packs = pack_auxiliary(arrays, "exact")
    assert [entry.name for pack in packs for entry in pack.entries] == [name for name, _ in arrays]
    total = [sum(2 * entry.count for entry in pack.entries) for pack in packs]
    assert all(size <= LARGEST_PACK or len(pack.entries) == 1 for size, pack in zip(total, packs, strict=True))
    for i in range(len(packs) - 1):
        assert total[i] + 2 * packs[i + 1].entries[0].count > LARGEST_PACK


FLOATS = st.floats(width=64) | st.sampled_from([0.0, -0.0, 2.0**-14, 65504.0, 65519.0, 1e-30])


@example([2.0**-15 + 2.0**-25], "float32")  # between two subnormal numbers of float16
@given(st.lists(FLOATS, max_size=12), st.sampled_from(["float32", "float64"]))
def test_half_keeps_eleven_bits_or_everything(values, kind):
    """A tensor stored as half loses at most 2^-11 of each value; where that cannot be, it is stored exactly."""
    with np.errstate(over="ignore"):
        array = np.array(values, dtype=kind)
    data = encode_file({}, {"a": array}, "half")
    got = read_all(data)["a"]
    with OpqFile(data) as file:
        storage = file.entries[0].storage
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    if storage == "exact":
        assert same_bits(got, array)
    else:
        assert same_bits(np.signbit(got), np.signbit(array))
        assert (np.abs(got - array) <= 2.0**-11 * np.abs(array)).all()
    assert (storage == "half") == fits_half(array)


@pytest.mark.parametrize("kind", sorted(set(dtypes.NUMPY) - {"float32", "float64"}))
def test_half_is_for_wide_floats_alone(kind):
    """Tensors of other dtypes are stored exactly, also where the user asks for half."""
    array = np.ones(5, dtype=dtypes.NUMPY[kind])
    with OpqFile(encode_file({}, {"a": array}, "half")) as file:
        assert file.entries[0].storage == "exact"
        assert same_bits(file["a"], array)


@pytest.mark.parametrize("kind", KINDS)
@example(np.array([3], dtype=np.int32), float.fromhex("0x1.55d554p-2"))  # float16 by way of float32 differs from without
@given(CODES, STEPS)
def test_values_are_step_times_code(kind, codes, step):
    """A value is the exact product, rounded to float32 (float64 for float64), then to its dtype, to nearest even."""
    codes = np.clip(codes, -60, 60)  # so that float16 holds every value
    with OpqFile(encode_file({"w": CompressedTensor(codes, step, kind)}, {}), max_bytes=2**40) as file:
        got = file.array("w")
    product = codes * np.float64(step)  # exact: 24 and 6 bits
    single = product if kind == "float64" else product.astype(np.float32)
    assert same_bits(got, single.astype(dtypes.NUMPY[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_values_beyond_their_dtype_are_infinite_or_refused(kind):
    """A step that leads out of the dtype gives infinities, or a FormatError; reading never warns."""
    step = 2.0**127 if kind != "float16" else 2.0**14
    codes = np.array([0, 1, -1, 10, -10], dtype=np.int32)
    data = encode_file({"w": CompressedTensor(codes, step, kind)}, {})
    try:
        values = read_all(data)["w"].astype(np.float64)
    except FormatError:
        return
    largest = np.inf if kind != "float64" else 10 * step
    assert values.tolist() == [0.0, step, -step, largest, -largest]


@settings(max_examples=30)
@given(contents())
def test_paths_and_bytes_are_read_alike(tmp_path_factory, tensors):
    """A file on disk gives what its bytes give, through every way of reading it."""
    data = encode_file(*tensors)
    path = tmp_path_factory.mktemp("files") / "model.opq"
    path.write_bytes(data)
    expected = read_all(data)
    with opq.numpy.safe_open(path) as file:
        one_by_one = {name: file.get_tensor(name) for name in reversed(file.keys())}
    for other in (opq.numpy.load_file(path), opq.numpy.load(data), one_by_one):
        assert set(other) == set(expected)
        assert all(same_bits(other[name], expected[name]) for name in expected)


def test_arrays_belong_to_the_caller():
    """What was read can be written to, and reading it again gives the file's values."""
    with OpqFile(small_file()) as file:
        for name in file:
            first = file.array(name)
            expected = first.copy()
            first[...] = first.dtype.type(1)
            assert same_bits(file.array(name), expected)


def test_names_are_those_of_a_mapping():
    """A file is a mapping: unknown names are KeyErrors and not in it."""
    with OpqFile(small_file()) as file:
        assert "head.weight" in file
        assert "head.weigh" not in file
        with pytest.raises(KeyError):
            file["head.weigh"]


def test_sizes_add_up():
    """Header and sections together are the file; dense bytes are those of the arrays."""
    data = small_file()
    with OpqFile(data) as file:
        sections = {entry.section for entry in file.entries}
        assert file.header_bytes + sum(map(file.section_bytes, sections)) == file.file_bytes == len(data)
        assert file.dense_bytes == sum(file.array(name).nbytes for name in file)
        assert [file.section(number) for number in sorted(sections)] == sections_of(data)


def test_the_prefix_is_that_of_the_format():
    """Magic, version, length of the header, and a checksum of these and the header."""
    data = small_file()
    magic, version, length, checksum = struct.unpack_from("<3sBII", data)
    assert (magic, version) == (b"OPQ", 1)
    assert zlib.decompress(data[12 : 12 + length], -15) == inflate(data)
    assert zlib.crc32(data[:8] + data[12 : 12 + length]) == checksum
    assert len(data) == 12 + length + sum(map(len, sections_of(data)))


def test_an_empty_file_is_a_file():
    """No tensors and no metadata are a file of the prefix and a header of two zeros."""
    data = encode_file({}, {})
    assert inflate(data) == b"\0\0"
    assert read_all(data) == {}


@pytest.mark.parametrize("version", [0, 2, 255])
def test_other_versions_are_refused(version):
    """A file of another version is a FormatError that names both versions, also where its checksum is right."""
    data = small_file()
    length = struct.unpack_from("<I", data, 4)[0]
    with pytest.raises(FormatError, match=f"format version {version}, this opq reads version 1"):
        OpqFile(wrap(data[12 : 12 + length], data[12 + length :], version))


def test_tensors_may_be_no_larger_than_allowed():
    """A file that declares more dense bytes than `max_bytes` is refused; at the limit it is read."""
    data = small_file()
    with OpqFile(data) as file:
        dense = file.dense_bytes
    with OpqFile(data, max_bytes=dense) as file:
        assert len(file) > 0
    with pytest.raises(FormatError, match="see max_bytes"):
        OpqFile(data, max_bytes=dense - 1)


def test_small_files_do_not_expand_without_bound():
    """By default 64 MiB and 4096 bytes for each of the file's are the most; the writer writes no file beyond."""
    size = largest_content(60)
    weight = EncodedWeight("w", (size // 2,), "float16", 1.0, encode_codes(np.zeros(8, dtype=np.int32)))
    with pytest.raises(TargetError, match="refuse to expand"):
        assemble([weight], [], {})
    data = assemble([replace(weight, shape=(2**25,))], [], {})
    assert len(data) < 60
    columns = inflate(data)
    # The same file, with one more element: 2^25 and 2^25 + 2^24 take as many bytes.
    grown = columns.replace(b"\x80\x80\x80\x10", b"\x80\x80\x80\x18")
    assert len(grown) == len(columns)
    assert grown != columns
    with pytest.raises(FormatError, match="see max_bytes"):
        OpqFile(wrap(zlib.compress(grown, 9, -15), sections_of(data)[0]))


def test_unknown_dtypes_are_not_written():
    """A tensor that the format has no dtype for is a WeightError that names it."""
    with pytest.raises(WeightError, match=r"'a' \(2\): dtype complex128"):
        pack_auxiliary([("a", np.zeros(2, dtype=np.complex128))], "exact")


@pytest.mark.parametrize(
    ("name", "shape"), [("a", (1,) * 33), ("a" * 65536, (1,)), ("\ud800", (1,))], ids=["rank", "long name", "surrogate"]
)
def test_what_could_not_be_read_is_not_written(name, shape):
    """A tensor beyond the limits of the format is an OpqError when it is written, not when it is read back."""
    with pytest.raises(OpqError):
        encode_file({"w": CompressedTensor(np.ones(3, dtype=np.int32), 1.0, "float32")}, {name: np.ones(shape)})


def test_a_missing_file_is_a_source_error(tmp_path):
    """What cannot be read at all is a SourceError that names the path."""
    for path in (tmp_path / "missing.opq", tmp_path):
        with pytest.raises(SourceError, match=str(path)):
            OpqFile(path)


def test_threads_share_a_file(tmp_path):
    """Eight threads that read one file in different orders all get what one reader gets."""
    rng = np.random.default_rng(4)
    weights = {f"w{i}": CompressedTensor(rng.integers(-3, 4, (20, 30)).astype(np.int32), 0.5 + i, "float32") for i in range(6)}
    auxiliary = {f"a{i}": rng.normal(size=2**16 + i) for i in range(6)}  # several packs
    path = tmp_path / "model.opq"
    path.write_bytes(encode_file(weights, auxiliary))
    expected = read_all(path.read_bytes())
    with OpqFile(path) as file:

        def read(seed: int) -> bool:
            order = np.random.default_rng(seed).permutation(2 * list(expected))
            return all(same_bits(file.array(name), expected[name]) for name in order)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(16)))


FORKED_READERS = """
import os, sys
from opq import OpqFile
with OpqFile(sys.argv[1]) as file:
    expected = {name: file.array(name).tobytes() for name in file}
    children = []
    for _ in range(4):
        if not (child := os.fork()):
            status = 1
            try:
                status = int(any(file.array(name).tobytes() != expected[name] for _ in range(40) for name in expected))
            finally:
                os._exit(status)
        children.append(child)
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_processes_share_a_file(tmp_path):
    """An open file may be read from processes forked since, as the workers of a data loader are."""
    rng = np.random.default_rng(4)
    weights = {f"w{i}": CompressedTensor(rng.integers(-3, 4, (40, 90)).astype(np.int32), 0.5, "float32") for i in range(6)}
    (tmp_path / "model.opq").write_bytes(encode_file(weights, {}))
    subprocess.run([sys.executable, "-c", FORKED_READERS, str(tmp_path / "model.opq")], check=True)
