"""Whole files: round trips, layout and limits."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

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
    same_codebooks,
    scaled,
    scaled_as,
    sections_of,
    small_file,
    stepped,
    wrap,
)
from hypothesis import example, given
from hypothesis import strategies as st
from thoroughness import examples

import opq.numpy
from opq import dtypes
from opq.checkpoints import as_state
from opq.codec.auxiliary import fits_float16
from opq.codec.code_stream import encode_codes
from opq.codec.file_reader import OpqFile
from opq.codec.file_writer import LARGEST_PACK, in_order, largest_content, pack_auxiliary, write
from opq.compression.planned_weight import PlannedWeight
from opq.errors import FormatError, OpqError, SourceError, TargetError, WeightError
from opq.quantization.codebook import Codebook, ScaledCodebook, UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor, compress_tensor
from opq.rate_distortion.layer_plan import LayerPlan

KINDS = sorted(dtypes.COMPRESSIBLE)
STEPPED = st.builds(CompressedTensor, CODES, STEPS.map(UniformCodebook), st.sampled_from(["float32", "float64", "bfloat16"]))
WEIGHTS = STEPPED | leveled() | scaled()


CONTENTS = st.dictionaries(NAMES, WEIGHTS | AUXILIARY, max_size=8)


def read_all(data: bytes) -> dict[str, np.ndarray]:
    with OpqFile(data) as file:
        return {name: file.array(name) for name in file}


@pytest.mark.slow
@examples(60)
@given(CONTENTS, st.dictionaries(TEXTS, TEXTS, max_size=3))
def test_a_written_mapping_reads_back_equal(tensors, metadata):
    """Weights come back with codes, codebook, dtype and shape, auxiliary tensors bit for bit, and metadata as text."""
    with OpqFile(encode_file(tensors, metadata=metadata), max_bytes=2**40) as file:
        assert file.metadata == metadata
        assert list(file) == sorted(tensors, key=str.encode) == in_order(tensors)
        assert len(file) == len(tensors)
        for name, tensor in tensors.items():
            got = file[name]
            assert isinstance(got, CompressedTensor) == isinstance(tensor, CompressedTensor)
            if not isinstance(tensor, CompressedTensor):
                assert same_bits(got, tensor)
                continue
            assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
            assert same_bits(got.codes, tensor.codes)
            assert same_codebooks(got.codebook, tensor.codebook)
            assert same_bits(file.array(name), tensor.values())


@pytest.mark.slow
@examples(60)
@given(CONTENTS, st.sampled_from(["exact", "float16", "uint8"]), st.randoms(use_true_random=False))
def test_the_order_of_tensors_makes_no_difference(tensors, storage, random):
    """Tensors, packs and metadata in any order give the same file."""
    metadata = {"b": "1", "a": "2", "é": "3"}
    data = encode_file(tensors, storage, metadata)
    items = list(tensors.items())
    random.shuffle(items)
    assert encode_file(dict(items), storage, dict(reversed(metadata.items()))) == data
    weights = {name: tensor for name, tensor in items if isinstance(tensor, CompressedTensor)}
    packs = [pack for name, tensor in items if name not in weights for pack in pack_auxiliary([(name, tensor)], storage)]
    in_packs = b"".join(write(weights, packs=packs, metadata=metadata).pieces())
    random.shuffle(packs)
    assert b"".join(write(weights, packs=packs, metadata=metadata).pieces()) == in_packs


@pytest.mark.slow
@given(CONTENTS)
def test_a_layout_describes_its_file(tensors):
    """Size, entries, section sizes and numbers of nonzero codes are those of the file."""
    layout = write(tensors)
    data = b"".join(layout.pieces())
    weights = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, CompressedTensor)}
    assert layout.size == len(data)
    assert layout.nonzero == {name: int(np.count_nonzero(tensor.codes)) for name, tensor in weights.items()}
    with OpqFile(data, max_bytes=2**40) as file:
        assert list(layout.entries) == file.entries
        assert layout.weight_bytes() == {
            entry.name: file.section_bytes(entry.section) for entry in file.entries if entry.name in weights
        }


@pytest.mark.slow
@given(CONTENTS)
def test_every_weight_is_reported(tensors):
    """`report` is called once per weight, with how many are finished."""
    calls = []
    write(tensors, report=lambda *call: calls.append(call))
    count = sum(isinstance(tensor, CompressedTensor) for tensor in tensors.values())
    assert calls == [("encoding", number + 1, count) for number in range(count)]


@dataclass(frozen=True)
class LazyWeight:
    """A quantized weight whose codes are not an attribute."""

    tensor: CompressedTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def codebook(self) -> Codebook:
        return self.tensor.codebook

    @property
    def trellis(self) -> bool:
        return self.tensor.trellis

    def read_codes(self):
        return self.tensor.read_codes()


@pytest.mark.slow
@given(st.dictionaries(NAMES, WEIGHTS, max_size=4))
def test_a_lazy_weight_gives_the_same_file(weights):
    """Any object with the properties of a QuantizedWeight gives the file of the CompressedTensor."""
    assert encode_file({name: LazyWeight(weight) for name, weight in weights.items()}) == encode_file(weights)


@pytest.mark.parametrize("chunk", [None, 40], ids=["whole", "by rows"])
@pytest.mark.parametrize("rounding", ["compensated", "deadzone", "two_stage", "scaled compensated", "scaled deadzone"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(12, 5, 3, 3), (30, 7), (64,), (1, 1)])
def test_a_planned_weight_gives_the_same_file(shape, kind, rounding, chunk, monkeypatch):
    """A weight that is quantized when it is read gives the file of its CompressedTensor, at once or by rows."""
    if chunk:
        monkeypatch.setattr("opq.compression.planned_weight.CHUNK", chunk)
        monkeypatch.setattr("opq.codec.code_stream.CHUNK", chunk)
    weight = np.random.default_rng(0).laplace(scale=0.1, size=shape).astype(dtypes.NUMPY[kind])
    step = float(np.float32(0.07))
    fixed = {"rounding": rounding.removeprefix("scaled ")}
    if rounding == "two_stage":
        fixed = {"num_kept": weight.size // 3, "max_codes": (2,) * shape[0]}
    elif rounding.startswith("scaled"):
        fixed["rows"] = tuple(row % 17 - 9 for row in range(shape[0]))
        fixed["columns"] = tuple(column % 5 - 1 for column in range(weight[0].size))
    plan = LayerPlan(shape, step, 0.5 * step, 0.5, 0.0, 0.0, **fixed)
    planned = PlannedWeight(as_state({"w": weight}), "w", plan)
    tensor = compress_tensor(weight, plan)
    assert (planned.shape, planned.dtype) == (tensor.shape, tensor.dtype)
    assert same_codebooks(planned.codebook, tensor.codebook)
    assert encode_file({"w": planned, "b": np.ones(3)}) == encode_file({"w": tensor, "b": np.ones(3)})


@given(CODES, st.lists(st.tuples(STEPS, st.sampled_from(KINDS)), min_size=2, max_size=5))
def test_equal_codes_are_stored_once(codes, uses):
    """Weights of equal codes and shape share one section, whatever their steps and dtypes."""
    weights = {f"w{i}": stepped(codes, step, kind) for i, (step, kind) in enumerate(uses)}
    data = encode_file(weights)
    assert sections_of(data) == [encode_codes(codes)]
    with OpqFile(data) as file:
        for name, weight in weights.items():
            assert same_bits(file[name].codes, weight.codes)
            assert (file[name].codebook, file[name].dtype) == (weight.codebook, weight.dtype)


@given(scaled().filter(lambda weight: isinstance(weight.codebook, ScaledCodebook)), st.lists(STEPS, min_size=2, max_size=4))
def test_equal_scaled_codes_are_stored_once(weight, steps):
    """Weights of equal codes, scales and shape share one section; each has its own step and dtype, in every way of reading."""
    weights = {
        f"w{i}": replace(weight, codebook=replace(weight.codebook, step=step), dtype=KINDS[i]) for i, step in enumerate(steps)
    }
    data = encode_file(weights)
    assert len(sections_of(data)) == 1
    with OpqFile(data) as file:
        for found in (file, dict(file.weights())):
            for name, expected in weights.items():
                assert same_codebooks(found[name].codebook, expected.codebook)
                assert same_bits(found[name].values(), expected.values())


def test_scaled_codes_of_other_shapes_are_not_shared():
    """Weights with equal sections but other shapes, to which the scales would mean something else, are stored apart."""
    codes = np.arange(6, dtype=np.int32)
    weights = {f"w{n}": scaled_as(codes.reshape(shape), rows=[3]) for n, shape in enumerate([(1, 6), (1, 6, 1), (1, 6, 1, 1)])}
    data = encode_file(weights)
    assert len(sections_of(data)) == 3
    assert len(set(sections_of(data))) == 1
    assert all(same_bits(array, weights[name].values()) for name, array in read_all(data).items())


@given(SMALL_CODES, st.permutations(range(4)))
def test_equal_codes_of_other_shapes_come_back(codes, order):
    """Weights of equal codes and other shapes come back with their own shapes, whether their sections are equal or not."""
    shapes = [codes.shape, (-1,), (1, -1), (-1, 1)]
    weights = {f"w{i}": stepped(codes.reshape(shapes[k])) for i, k in enumerate(order)}
    data = encode_file(weights)
    assert len(sections_of(data)) == len({encode_codes(weight.codes) for weight in weights.values()})
    with OpqFile(data) as file:
        assert all(same_bits(file[name].codes, weight.codes) for name, weight in weights.items())


def test_equal_bytes_of_other_sizes_are_not_shared():
    """Weights of zeros may have equal bytes but other numbers of elements: each has a section."""
    weights = {f"w{n:02}": stepped(np.zeros(n, dtype=np.int32)) for n in range(1, 40)}
    assert len({encode_codes(weight.codes) for weight in weights.values()}) < 39
    data = encode_file(weights)
    assert len(sections_of(data)) == 39
    assert [array.shape for array in read_all(data).values()] == [(n,) for n in range(1, 40)]


def test_packs_of_equal_bytes_are_not_shared():
    """Two packs may have equal bytes; each tensor comes back from its own pack."""
    a, b = (pack_auxiliary([(name, np.full(2**18, 7, dtype=np.float32))], "exact") for name in "ab")
    data = b"".join(write({}, packs=[*a, *b]).pieces())
    assert len(sections_of(data)) == 2
    assert same_bits(read_all(data)["b"], np.full(2**18, 7, dtype=np.float32))


@pytest.mark.slow
@example([2**18, 2**18, 0, 2**19, 1, 2**20])
@given(st.lists(st.integers(0, LARGEST_PACK // 4 * 3), max_size=12))
def test_packs_hold_up_to_a_mebibyte(sizes):
    """Auxiliary tensors fill packs in order, each up to 2^20 dense bytes; only a larger tensor exceeds that."""
    arrays = [(f"{i:02}", np.zeros(size, dtype=np.uint16)) for i, size in enumerate(sizes)]
    packs = pack_auxiliary(arrays, "exact")
    assert [entry.name for pack in packs for entry in pack.entries] == [name for name, _ in arrays]
    total = [sum(2 * entry.count for entry in pack.entries) for pack in packs]
    assert all(size <= LARGEST_PACK or len(pack.entries) == 1 for size, pack in zip(total, packs, strict=True))
    for i in range(len(packs) - 1):
        assert total[i] + 2 * packs[i + 1].entries[0].count > LARGEST_PACK


FLOATS = st.floats(width=64) | st.sampled_from([0.0, -0.0, 2.0**-14, 65504.0, 65519.0, 1e-30])


@example([2.0**-15 + 2.0**-25], "float32")  # between two subnormal numbers of float16
@example([1.0, -2.5e-136], "float64")
@given(st.lists(FLOATS, max_size=12), st.sampled_from(["float32", "float64"]))
def test_float16_keeps_eleven_bits_or_is_not_used(values, kind):
    """A tensor that float16 cannot hold is stored exactly.

    Errors of float16 are at most 2^-11 of each value or, in a tensor with negative values, 2^-16 of its root mean square.
    """
    with np.errstate(over="ignore"):
        array = np.array(values, dtype=kind)
    data = encode_file({"a": array}, "float16")
    got = read_all(data)["a"]
    with OpqFile(data) as file:
        storage = file.entries[0].storage
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    if storage == "exact":
        assert same_bits(got, array)
    else:
        assert same_bits(np.signbit(got), np.signbit(array))
        errors, wide = np.abs(got - array), array.astype(np.float64)
        least = 2.0**-16 * np.sqrt(np.mean(wide * wide)) if (array < 0).any() else 0.0
        assert (errors <= np.maximum(2.0**-11 * np.abs(array), least)).all()
    assert (storage == "float16") == fits_float16(array)


@pytest.mark.parametrize("kind", sorted(set(dtypes.NUMPY) - {"float32", "float64"}))
def test_other_dtypes_are_not_stored_as_float16(kind):
    """Tensors of other dtypes than float32 and float64 are stored exactly with any storage."""
    array = np.ones(5, dtype=dtypes.NUMPY[kind])
    with OpqFile(encode_file({"a": array}, "float16")) as file:
        assert file.entries[0].storage == "exact"
        assert same_bits(file["a"], array)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@example(np.array([3], dtype=np.int32), float.fromhex("0x1.55d554p-2"))  # float16 by way of float32 differs from without
@given(CODES, STEPS)
def test_values_are_step_times_code(kind, codes, step):
    """A value is the exact product, rounded to float32 (float64 for float64), then to its dtype, to nearest even."""
    codes = np.clip(codes, -60, 60)  # so that float16 holds every value
    with OpqFile(encode_file({"w": stepped(codes, step, kind)}), max_bytes=2**40) as file:
        got = file.array("w")
    product = codes * np.float64(step)  # exact: 24 and 6 bits
    single = product if kind == "float64" else product.astype(np.float32)
    assert same_bits(got, single.astype(dtypes.NUMPY[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_values_beyond_their_dtype_are_infinite_or_refused(kind):
    """A step whose values exceed the dtype gives infinities, or a FormatError; reading never warns."""
    step = 2.0**127 if kind != "float16" else 2.0**14
    codes = np.array([0, 1, -1, 10, -10], dtype=np.int32)
    data = encode_file({"w": stepped(codes, step, kind)})
    try:
        values = read_all(data)["w"].astype(np.float64)
    except FormatError:
        return
    largest = np.inf if kind != "float64" else 10 * step
    assert values.tolist() == [0.0, step, -step, largest, -largest]


@pytest.mark.slow
@examples(30)
@given(CONTENTS)
def test_paths_and_bytes_are_read_alike(tmp_path_factory, tensors):
    """Every reader gives the same tensors from a path as from the bytes."""
    data = encode_file(tensors)
    path = tmp_path_factory.mktemp("files") / "model.opq"
    path.write_bytes(data)
    expected = read_all(data)
    with opq.numpy.safe_open(path) as file:
        one_by_one = {name: file.get_tensor(name) for name in reversed(file.keys())}
    for other in (opq.numpy.load_file(path), opq.numpy.load(data), one_by_one):
        assert set(other) == set(expected)
        assert all(same_bits(other[name], expected[name]) for name in expected)


@given(WEIGHTS.filter(lambda weight: weight.codes.ndim > 0), st.data())
def test_parts_of_a_weight_are_those_of_the_whole(weight, data):
    """Slices of an open file, pieces of it, and rows of a state of codes are the values of the whole weight."""
    start = data.draw(st.integers(0, len(weight.codes) - 1))
    stop = data.draw(st.integers(start, len(weight.codes)))
    encoded, whole = encode_file({"w": weight}), weight.values()
    with opq.numpy.safe_open(encoded, framework="numpy") as file:
        assert same_bits(file.get_slice("w")[start:stop], whole[start:stop])
    with OpqFile(encoded) as file:
        pieces = list(file.pieces("w"))
        assert same_bits(np.concatenate([piece.values() for piece in pieces]), whole)
        assert sum(piece.num_kept for piece in pieces) == weight.num_kept
    assert same_bits(as_state({"w": weight}).rows("w", start, stop), whole[start:stop])


def test_arrays_are_writable_copies():
    """An array that was read can be changed; reading it again gives the values of the file."""
    with OpqFile(small_file()) as file:
        for name in file:
            first = file.array(name)
            expected = first.copy()
            first[...] = first.dtype.type(1)
            assert same_bits(file.array(name), expected)


def test_a_file_is_a_mapping():
    """An unknown name is a KeyError, and not in the file."""
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


def test_an_empty_file_is_valid():
    """A file without tensors and metadata is the prefix and a header of two zeros."""
    data = encode_file({})
    assert inflate(data) == b"\0\0"
    assert read_all(data) == {}


@pytest.mark.parametrize("version", [0, 2, 255])
def test_other_versions_are_refused(version):
    """A file of another version, with a correct checksum, is a FormatError that names both versions."""
    data = small_file()
    length = struct.unpack_from("<I", data, 4)[0]
    with pytest.raises(FormatError, match=f"format version {version}, but this opq reads version 1"):
        OpqFile(wrap(data[12 : 12 + length], data[12 + length :], version))


def test_max_bytes_limits_the_dense_bytes():
    """A file that declares more dense bytes than `max_bytes` is refused; at the limit it is read."""
    data = small_file()
    with OpqFile(data) as file:
        dense = file.dense_bytes
    with OpqFile(data, max_bytes=dense) as file:
        assert len(file) > 0
    with pytest.raises(FormatError, match="see max_bytes"):
        OpqFile(data, max_bytes=dense - 1)


def test_small_files_do_not_expand_without_bound():
    """By default a file may hold 64 MiB and 4096 bytes per byte of the file; the writer writes no file beyond."""
    size = largest_content(60)
    with pytest.raises(TargetError, match="refuse to expand"):
        write({"w": stepped(np.zeros(size // 2, dtype=np.int32), dtype="float16")})
    data = encode_file({"w": stepped(np.zeros(2**25, dtype=np.int32), dtype="float16")})
    assert len(data) < 70
    columns = inflate(data)
    # The same file, with one more element: 2^25 and 2^25 + 2^24 take as many bytes.
    grown = columns.replace(b"\x80\x80\x80\x10", b"\x80\x80\x80\x18")
    assert len(grown) == len(columns)
    assert grown != columns
    with pytest.raises(FormatError, match="see max_bytes"):
        OpqFile(wrap(zlib.compress(grown, 9, -15), sections_of(data)[0]))


def test_unknown_dtypes_are_not_written():
    """A tensor that the format has no dtype for is a WeightError that names it."""
    with pytest.raises(WeightError, match=r"'a' \(2\): dtype datetime64"):
        pack_auxiliary([("a", np.zeros(2, dtype="datetime64[s]"))], "exact")


@pytest.mark.parametrize(
    ("name", "shape"), [("a", (1,) * 33), ("a" * 65536, (1,)), ("\ud800", (1,))], ids=["rank", "long name", "surrogate"]
)
def test_unreadable_files_are_not_written(name, shape):
    """A tensor beyond the limits of the format is an OpqError when it is written, not when it is read back."""
    with pytest.raises(OpqError):
        encode_file({"w": stepped(np.ones(3, dtype=np.int32)), name: np.ones(shape)})
    with pytest.raises(OpqError):
        encode_file({name: stepped(np.ones(shape, dtype=np.int32))})


def test_a_missing_file_is_a_source_error(tmp_path):
    """A path that cannot be read is a SourceError that names it."""
    for path in (tmp_path / "missing.opq", tmp_path):
        with pytest.raises(SourceError, match=str(path)):
            OpqFile(path)


@pytest.mark.slow
def test_threads_share_a_file(tmp_path):
    """Eight threads that read one file in different orders get the same tensors as one thread."""
    rng = np.random.default_rng(4)
    weights = {f"w{i}": stepped(rng.integers(-3, 4, (20, 30)).astype(np.int32), 0.5 + i) for i in range(6)}
    auxiliary = {f"a{i}": rng.normal(size=2**16 + i) for i in range(6)}  # several packs
    path = tmp_path / "model.opq"
    path.write_bytes(encode_file({**weights, **auxiliary}))
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
    """An open file may be read from processes that are forked later, as the workers of a data loader are."""
    rng = np.random.default_rng(4)
    weights = {f"w{i}": stepped(rng.integers(-3, 4, (40, 90)).astype(np.int32), 0.5) for i in range(6)}
    (tmp_path / "model.opq").write_bytes(encode_file(weights))
    subprocess.run([sys.executable, "-c", FORKED_READERS, str(tmp_path / "model.opq")], check=True)
