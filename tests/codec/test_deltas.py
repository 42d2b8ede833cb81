"""Deltas: what is restored from them and their base, which bases they accept, and what they cost."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import zlib
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from codec_strategies import (
    AUXILIARY,
    NAMES,
    STEPPED,
    bit_patterns,
    files,
    leveled,
    same_bits,
    scaled,
    stepped,
    trellised,
    trellised_as,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from opq import dtypes
from opq.checkpoints.opq_state import OpqState
from opq.checkpoints.state import TensorState
from opq.codec.delta_base import digest_of
from opq.codec.delta_file import DeltaFile
from opq.codec.delta_sections import decode_codes_of, decode_tensors, encode_codes, encode_tensors, grid_of
from opq.codec.delta_writer import write_delta
from opq.codec.difference_contexts import encode_best
from opq.codec.difference_layout import KEYS, Grid, largest_contexts
from opq.codec.difference_stream import Classes, decode_differences, encode_differences
from opq.codec.difference_words import SUPPORTED, add, keys_of, subtract, zero_bits
from opq.codec.entry import ALONE
from opq.codec.file_reader import OpqFile
from opq.codec.file_writer import write
from opq.codec.header import decode_header, header_columns, inflate_header
from opq.codec.verify import verify
from opq.codec.weight_section import encode_weight, entry_of, split
from opq.compression.delta import complete
from opq.errors import FormatError, SourceError

INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-40, 40) | st.sampled_from([0, 1, -1, 15, 16, -16, 2**53, -(2**63)])
DIFFERENCES = arrays.arrays(np.int64, st.integers(1, 200), elements=INTEGERS, fill=st.just(0))
RNG = np.random.default_rng(0)

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((FOLDER / "deltas.json").read_text())
_SPEC = importlib.util.spec_from_file_location("golden_make", FOLDER / "make.py")
SCRIPT = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(SCRIPT)


def delta_of(new, base) -> bytes:
    """The bytes of a delta between two dicts."""
    return b"".join(write_delta(TensorState(new), TensorState(base)).pieces())


def restored(data: bytes, base) -> dict:
    """All tensors of a delta."""
    with DeltaFile(data, TensorState(base)) as file:
        return file.arrays()


def weights(seed: int, dtype="float32", shape=(300, 200)) -> np.ndarray:
    """Random weights."""
    return (0.05 * np.random.default_rng(seed).standard_normal(shape)).astype(dtypes.NUMPY[dtype])


@st.composite
def grids(draw) -> tuple[np.ndarray, Grid, Classes]:
    """Differences, where they are, and contexts of them."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    differences = draw(arrays.arrays(np.int64, rows * columns, elements=INTEGERS, fill=st.just(0)))
    keys = draw(arrays.arrays(np.uint8, rows * columns, elements=st.integers(0, 255), fill=st.just(7)))
    is_matrix = draw(st.booleans())
    grid = Grid([columns] * rows, keys, columns if is_matrix else 0)

    def axis(size):
        return draw(st.none() | arrays.arrays(np.uint8, size, elements=st.integers(0, 255), fill=st.just(3)))

    classes = Classes(
        axis(rows),
        axis(columns) if is_matrix else None,
        axis(KEYS),
        draw(st.integers(0, 255)),
        draw(st.integers(1, largest_contexts(rows * columns))),
    )
    return differences, grid, classes


@given(grids())
def test_differences_are_restored_in_any_contexts(case):
    """Decoding gives the differences and the classes that were encoded, whatever both are."""
    differences, grid, classes = case
    found, again = decode_differences(encode_differences(differences, grid, classes), grid)
    assert np.array_equal(found, differences)
    assert again.count == classes.count
    assert encode_differences(found, grid, again) == encode_differences(differences, grid, classes)


@given(grids(), st.binary(max_size=60), st.integers(0, 60))
def test_damaged_differences_are_refused_or_read(case, noise, at):
    """Bytes in the middle of differences that are anything give an error of the format, or differences of the same number."""
    differences, grid, classes = case
    data = encode_differences(differences, grid, classes)
    try:
        found, _ = decode_differences(data[:at] + noise + data[at + len(noise) :], grid)
    except FormatError:
        return
    assert len(found) == len(differences)


@given(st.sampled_from(sorted(SUPPORTED)).flatmap(lambda name: bit_patterns(dtypes.NUMPY[name])), st.randoms())
def test_integers_give_the_bits_back(array, chance):
    """A base and differences give a tensor of any bits, without the low bits that are 0 everywhere; floats keep their order."""
    words = array.reshape(-1).view(f"u{array.itemsize}")
    shuffled = words[chance.sample(range(len(words)), len(words))].view(array.dtype).reshape(array.shape)
    for base in (np.zeros_like(array), shuffled):
        for shift in {0, zero_bits(base, array) or 0}:
            differences = np.empty(array.size, dtype=np.int64)
            subtract(base, array, shift, differences)
            assert same_bits(add(base, differences, shift), array)
    assert len(keys_of(array)) == array.size
    if array.dtype.name in dtypes.COMPRESSIBLE:
        subtract(np.zeros_like(array), array, 0, integers := np.empty(array.size, dtype=np.int64))
        values = array.reshape(-1).astype(np.float64)
        finite = np.flatnonzero(np.isfinite(values))
        order = finite[integers[finite].argsort(kind="stable")]
        assert (np.diff(values[order]) >= 0).all()


@given(st.data())
def test_a_tensor_and_its_base_give_a_section(data):
    """Tensors of any bits are restored from those of the base, alone or several, and low bits that are 0 cost nothing."""
    kind = dtypes.NUMPY[data.draw(st.sampled_from(sorted(SUPPORTED)))]
    pairs = data.draw(st.lists(arrays.array_shapes(min_dims=0, max_dims=3), min_size=1, max_size=3))
    bases = [data.draw(bit_patterns(kind, st.just(shape))) for shape in pairs]
    news = [data.draw(bit_patterns(kind, st.just(shape))) for shape in pairs]
    found = decode_tensors(encode_tensors(news, bases), bases)
    assert all(same_bits(one, two) for one, two in zip(found, news, strict=True))


@given(st.dictionaries(NAMES, AUXILIARY, max_size=5), st.dictionaries(NAMES, AUXILIARY, max_size=5), st.data())
def test_every_tensor_is_restored(new, base, data):
    """A delta and its base give every tensor bit for bit: the same, changed, added or reshaped; removed ones stay away."""
    for name in data.draw(st.lists(st.sampled_from(sorted(base)), unique=True)) if base else []:
        new[name] = data.draw(st.just(base[name]) | bit_patterns(base[name].dtype, st.just(base[name].shape)))
    found = restored(encoded := delta_of(new, base), base)
    assert set(found) == set(new)
    assert all(same_bits(found[name], new[name]) for name in new)
    assert verify(encoded, TensorState(base)).decoded


@pytest.mark.parametrize("dtype", sorted(dtypes.COMPRESSIBLE))
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0])
def test_large_tensors_are_restored(dtype, scale):
    """Tensors with sections of their own are restored if few elements changed, or all; NaN, infinities and -0 too."""
    old = weights(0, dtype)
    new = (old.astype(np.float64) * (1 + scale * RNG.standard_normal(old.shape))).astype(old.dtype)
    new[5, :4] = np.array([np.nan, np.inf, -0.0, 0.0])
    new[7] = -new[7]
    data = delta_of({"w": new, "tied": new, "bias": new[0]}, {"w": old, "tied": old, "bias": old[0]})
    found = restored(data, {"w": old, "tied": old, "bias": old[0]})
    assert same_bits(found["w"], new)
    assert same_bits(found["tied"], new)
    with DeltaFile(data, None) as file:
        assert file.entry("w").section == file.entry("tied").section


def test_a_few_changes_cost_a_few_bytes():
    """One percent of changed bfloat16 weights takes less than two bytes for each, far below positions and values."""
    old = weights(0, "bfloat16", (1000, 400))
    words = old.view(np.uint16).copy()
    chosen = RNG.choice(words.size, words.size // 100, replace=False)
    words.reshape(-1)[chosen] ^= 1
    data = delta_of({"w": words.view(old.dtype)}, {"w": old})
    assert len(data) < 2 * len(chosen)


def test_float32_weights_that_hold_bfloat16_cost_what_bfloat16_ones_do():
    """Low bits that are 0 in both checkpoints are left out."""
    old, new = weights(0, "bfloat16"), weights(0, "bfloat16") * np.array(1.01, dtype=ml_dtypes.bfloat16)
    narrow = len(delta_of({"w": new}, {"w": old}))
    wide = len(delta_of({"w": new.astype(np.float32)}, {"w": old.astype(np.float32)}))
    assert wide < narrow + 64


@given(st.dictionaries(NAMES, AUXILIARY, max_size=8))
def test_unchanged_tensors_cost_only_their_names(tensors):
    """A delta of the same tensors has no section: only a header."""
    with DeltaFile(delta_of(tensors, tensors), TensorState(tensors)) as file:
        assert file.header_bytes == file.file_bytes
        assert {entry.storage for entry in file.entries} <= {"base"}


@given(st.dictionaries(NAMES, AUXILIARY, min_size=1, max_size=4), st.data())
def test_another_base_is_refused(base, data):
    """A base with another bit, dtype, shape or name than that of the delta is refused, in one line that names both digests."""
    other = dict(base)
    name = data.draw(st.sampled_from(sorted(base)))
    how = data.draw(st.sampled_from(["removed", "added", "reshaped", "bits"]))
    if how == "removed":
        del other[name]
    elif how == "added":
        other[name + "x" * 20] = base[name]
    elif how == "reshaped":
        other[name] = base[name][None]
    else:
        other[name] = data.draw(bit_patterns(base[name].dtype, st.just(base[name].shape)))
        if same_bits(other[name], base[name]):
            return
    with pytest.raises(SourceError, match=digest_of(TensorState(base)).hex()[:16]) as error:
        DeltaFile(delta_of(base, base), TensorState(other))
    assert "\n" not in str(error.value)


def test_the_digest_is_that_of_the_document():
    """SHA-256 of name, dtype, shape and the SHA-256 of the elements of each tensor, in order of the names."""
    tensors = {"é": np.array([[1, 2]], dtype=np.int16), "b": np.array(1.0, dtype=np.float32)}
    expected = hashlib.sha256()
    for name, code, shape, elements in (("b", 11, [], b"\0\0\x80\x3f"), ("é", 4, [1, 2], b"\1\0\2\0")):
        text = name.encode()
        head = bytes([len(text)]) + text + bytes([code, len(shape), *shape])
        expected.update(head + hashlib.sha256(elements).digest())
    assert digest_of(TensorState(tensors)) == expected.digest()
    assert digest_of(TensorState(dict(reversed(tensors.items())))) == expected.digest()


@given(STEPPED | scaled() | trellised(), st.data())
def test_codes_are_restored_from_any_values(weight, data):
    """A section of codes is restored byte for byte from a base of any values: of the same steps, or of anything else."""
    entry = entry_of("w", weight)
    section = encode_weight(weight).adaptive
    kind = dtypes.NUMPY[weight.dtype]
    base = data.draw(st.just(weight.values()) | bit_patterns(kind, st.just(weight.shape)))
    coded = encode_codes(section, entry, base)
    if coded is None:  # too far away
        assert not weight.codes.any() or not same_bits(base, weight.values())
    else:
        assert decode_codes_of(coded, entry, base) == section
    assert decode_codes_of(section, entry, base) == section


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_codes_of_a_trellis_are_restored(moved):
    """Codes that follow a trellis in many rows are restored from values of which some are a step away."""
    numbers = np.rint(RNG.laplace(scale=3.0, size=(60, 40))).astype(np.int32)
    weight = trellised_as(numbers, 0.5)
    base = weight.values() + np.float32(0.5) * (np.arange(numbers.size).reshape(numbers.shape) % 7 < moved)
    section = encode_weight(weight).adaptive
    coded = encode_codes(section, entry_of("w", weight), base)
    assert decode_codes_of(coded, entry_of("w", weight), base) == section


@given(leveled(), st.binary(max_size=30))
def test_levels_are_no_differences(weight, noise):
    """A weight with levels is never coded as a difference, and a section that says so is refused."""
    section = encode_weight(weight).adaptive
    assert encode_codes(section, entry_of("w", weight), weight.values()) is None
    start = len(section) - len(split(section, entry_of("w", weight))[1])
    with pytest.raises(FormatError):
        decode_codes_of(section[:start] + b"\x5f" + noise, entry_of("w", weight), weight.values())


@given(files(), files())
def test_files_are_made_again(new, old):
    """A delta of a .opq file and a base file give each tensor; and of a file against itself the same bytes."""
    with OpqFile(new) as file, OpqFile(old) as before:
        base = OpqState(before)
        data = b"".join(write_delta(file, base, metadata=file.metadata).pieces())
        with DeltaFile(data, base) as delta:
            assert delta.metadata == file.metadata
            assert all(same_bits(delta.array(name), file.array(name)) for name in file)
            assert set(delta) == set(file)
        same = b"".join(write_delta(file, OpqState(file), metadata=file.metadata).pieces())
        with DeltaFile(same, OpqState(file)) as delta:
            assert b"".join(complete(delta, file).pieces()) == new
        assert verify(data, base).decoded


@pytest.mark.parametrize("speed", ["small", "fast"])
def test_close_files_take_few_bytes_and_are_made_again(speed):
    """A few other codes of the same step take a few bytes, and the file is made again with the same kind of section."""
    codes = np.rint(RNG.laplace(scale=3.0, size=(200, 100))).astype(np.int32)
    moved = codes.copy()
    moved[::20, ::10] += 1
    old, new = ({"w": stepped(part, 0.5), "b": np.arange(5.0)} for part in (codes, moved))
    first, second = (b"".join(write(part, speed=speed).pieces()) for part in (old, new))
    with OpqFile(second) as file, OpqFile(first) as before:
        data = b"".join(write_delta(file, OpqState(before)).pieces())
        assert len(data) < len(second) / 10
        with DeltaFile(data, OpqState(before)) as delta:
            assert b"".join(complete(delta, before).pieces()) == second
        assert verify(data, OpqState(before)).weights == 1


def test_equal_differences_of_other_bases_stay_apart():
    """Weights whose codes differ equally from unequal bases do not share a section."""
    codes = [np.rint(np.random.default_rng(seed).laplace(scale=3.0, size=(100, 60))).astype(np.int32) for seed in (1, 2)]
    old, new = ({name: stepped(part + change, 0.5) for name, part in zip("ab", codes, strict=True)} for change in (0, 1))
    first, second = (b"".join(write(part).pieces()) for part in (old, new))
    with OpqFile(second) as file, OpqFile(first) as before:
        data = b"".join(write_delta(file, OpqState(before)).pieces())
        with DeltaFile(data, OpqState(before)) as delta:
            assert all(same_bits(delta.array(name), file.array(name)) for name in "ab")


def test_without_a_base_only_the_header_is_read():
    """A delta without its base has entries and checksums, and no tensors; a file is no delta, and a delta no file."""
    old = {"w": weights(0), "same": weights(1)}
    data = delta_of({"w": weights(0) * np.float32(1.001), "same": weights(1)}, old)
    found = verify(data)
    assert (found.decoded, found.base) == (False, digest_of(TensorState(old)).hex())
    with DeltaFile(data, None) as file:
        for name in ("w", "same"):
            with pytest.raises(FormatError, match="without its base"):
                file.array(name)
    with pytest.raises(FormatError, match="delta"):
        OpqFile(data)
    with pytest.raises(FormatError, match="complete file"):
        DeltaFile(b"".join(write({"b": np.arange(3)}).pieces()), TensorState({}))


def rewritten(data: bytes, change_entries, sections: list[bytes]) -> bytes:
    """A delta with other entries and sections, and correct checksums."""
    length = int.from_bytes(data[4:8], "little")
    header = decode_header(data[12 : 12 + length], delta=True)
    header = replace(
        header,
        entries=[change_entries(entry) for entry in header.entries],
        lengths=list(map(len, sections)),
        checksums=list(map(zlib.crc32, sections)),
    )
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflate.compress(header_columns(header)) + deflate.flush()
    start = b"OPD\1" + len(packed).to_bytes(4, "little")
    return start + zlib.crc32(packed, zlib.crc32(start)).to_bytes(4, "little") + packed + b"".join(sections)


@pytest.fixture(scope="module")
def small_delta() -> tuple[bytes, dict[str, np.ndarray]]:
    """A delta with a tensor that is the same, a large difference and two small ones; and its base."""
    old = {
        "w": weights(0, shape=(130, 130)),
        "same": weights(1, shape=(3,)),
        "x": weights(2, shape=(40,)),
        "y": weights(3, shape=(9, 9)),
    }
    new = {name: array * np.float32(1.0 + 1e-6 * (name != "same")) for name, array in old.items()}
    return delta_of(new, old), old


@given(data=st.data())
def test_hostile_sections_are_refused_or_read(small_delta, data):
    """Any bytes in a section, with correct checksums, give an error of the format, or a tensor of the base's shape."""
    delta, base = small_delta
    sections = sections_of_delta(delta)
    number = data.draw(st.integers(0, len(sections) - 1))
    at = data.draw(st.integers(0, len(sections[number])))
    noise = data.draw(st.binary(max_size=12))
    sections[number] = sections[number][:at] + noise + sections[number][at + data.draw(st.integers(0, 12)) :]
    with DeltaFile(rewritten(delta, lambda entry: entry, sections), TensorState(base)) as file:
        for name in file:
            try:
                assert file.array(name).shape == base[name].shape
            except FormatError:
                continue


def sections_of_delta(data: bytes) -> list[bytes]:
    """The sections of a delta."""
    length = int.from_bytes(data[4:8], "little")
    header = decode_header(data[12 : 12 + length], delta=True)
    at, sections = 12 + length, []
    for size in header.lengths:
        sections.append(data[at : at + size])
        at += size
    return sections


@pytest.mark.parametrize(
    "change",
    [{"shape": (130, 131)}, {"dtype": "float16"}, {"name": "v"}, {"shape": (2**15, 2**15)}],
    ids=lambda change: str(change),
)
def test_entries_that_the_base_does_not_have_are_refused(small_delta, change):
    """What is as in the base, or a difference, must have the base's dtype and shape, before memory is taken for it."""
    delta, base = small_delta
    changed = rewritten(delta, lambda entry: replace(entry, **change) if entry.name == "w" else entry, sections_of_delta(delta))
    with pytest.raises(FormatError):
        DeltaFile(changed, TensorState(base))


@pytest.mark.parametrize(("shift", "problem"), [(3, "lowest bits of each element of the base must be 0"), (0, "other bytes")])
def test_low_bits_that_are_0_are_verified(shift, problem):
    """`verify` refuses another number of low bits than what all elements that differ have, whether it can be read or not."""
    words = weights(0, shape=(130, 130)).view(np.uint32) | (shift > 0)
    words = words if shift else words >> 4 << 4
    old, new = words.view(np.float32), (words + 16).view(np.float32)
    subtract(old, new, shift, differences := np.empty(old.size, dtype=np.int64))
    section = bytes([shift]) + encode_differences(differences, grid_of([old]), Classes())
    data = rewritten(delta_of({"w": new}, {"w": old}), lambda entry: entry, [section])
    with pytest.raises(FormatError, match=problem):
        verify(data, TensorState({"w": old}))


def test_a_plain_file_has_no_storages_of_deltas(small_delta):
    """The storages of deltas are unknown in a file that is none."""
    delta, _ = small_delta
    length = int.from_bytes(delta[4:8], "little")
    columns = inflate_header(delta[12 : 12 + length])[32:]
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflate.compress(columns) + deflate.flush()
    start = b"OPQ\1" + len(packed).to_bytes(4, "little")
    data = start + zlib.crc32(packed, zlib.crc32(start)).to_bytes(4, "little") + packed + delta[12 + length :]
    with pytest.raises(FormatError, match="unknown storage"):
        OpqFile(data)


@given(st.binary(max_size=3), st.integers(0, 10**6))
def test_every_byte_is_covered(small_delta, noise, at):
    """A delta with other bytes anywhere is refused when it is opened or when a tensor is read, or gives the same tensors."""
    delta, base = small_delta
    at %= len(delta)
    damaged = delta[:at] + noise + delta[at + len(noise) :]
    if damaged == delta:
        return
    with pytest.raises(FormatError):
        verify(damaged, TensorState(base))


def test_contexts_save_bytes():
    """Where the exponent of the base says how far a weight moves, contexts take at least an eighth less than one table."""
    old = weights(0, "bfloat16", (400, 400))
    moved = 1e-4 * np.random.default_rng(1).standard_normal(old.shape)
    new = (old.astype(np.float32) + moved.astype(np.float32)).astype(old.dtype)
    subtract(old, new, 0, differences := np.empty(old.size, dtype=np.int64))
    grid = Grid([400] * 400, keys_of(old), 400)
    assert len(encode_best(differences, grid)) < 0.875 * len(encode_differences(differences, grid, Classes()))


def test_small_differences_share_a_section():
    """Tensors below the limit are in one section, at the limit alone."""
    base = {f"{n}": weights(n, shape=(size,)) for n, size in enumerate((300, 400, ALONE - 1, ALONE))}
    new = {name: array * np.float32(1 + 1e-6) for name, array in base.items()}
    with DeltaFile(delta_of(new, base), TensorState(base)) as file:
        assert {entry.storage for entry in file.entries} == {"difference"}
        assert len({file.entry(name).section for name in "012"}) == 1
        assert file.entry("3").section != file.entry("2").section


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_deltas(name):
    """A golden delta gives the tensors that it gave when it was written, is valid, and holds what its script puts there."""
    data = (FOLDER / name).read_bytes()
    assert SCRIPT.describe_delta(name, data) == GOLDEN[name]
    assert SCRIPT.describe_delta(name, SCRIPT.DELTAS[name]()) == GOLDEN[name]
    assert verify(data, SCRIPT.base_of(name)).decoded
    assert len(data) < 16000


def test_the_golden_delta_gives_the_file():
    """The golden delta of codes, completed, is the file that it was made from."""
    with OpqFile(FOLDER / "fast.opq") as base, DeltaFile(FOLDER / "codes.opd", OpqState(base)) as delta:
        assert b"".join(complete(delta, base).pieces()) == SCRIPT.changed_codes()
