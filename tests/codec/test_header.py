"""The header: round trips, and the errors of malformed headers."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from codec_strategies import TEXTS, deflate
from hypothesis import given
from hypothesis import strategies as st
from thoroughness import examples

from opq import dtypes
from opq.codec.byte_reader import varint
from opq.codec.entry import LARGEST_TENSOR, Entry
from opq.codec.header import LARGEST_HEADER, Header, decode_header, encode_header
from opq.errors import FormatError

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.lists(
    st.sampled_from(["layer1.", "layer10.", "0.", "conv", "weight", "bias", "é", "\U0001f600", "\0"]), max_size=5
).map("".join)
SIZES = st.integers(0, 5) | st.integers(0, LARGEST_TENSOR)


def fits(shape: tuple[int, ...]) -> bool:
    product = 1
    for size in shape:
        product *= size or 1
    return product <= LARGEST_TENSOR


SHAPES = st.lists(SIZES, max_size=32).map(tuple).filter(fits) | st.lists(st.integers(0, 3), max_size=4).map(tuple)


@st.composite
def headers(draw) -> Header:
    names = sorted(draw(st.sets(NAMES, max_size=8)), key=str.encode)
    holds: list[object] = []  # how many codes each section has, or for which shape; None for a pack
    entries = []
    for name in names:
        shape = draw(SHAPES)
        count = Entry(name, shape, "bool", "exact", 0).count
        is_codes = count > 0 and draw(st.booleans())
        storages = ["codes", "scaled"][: 1 + bool(shape)] if is_codes else ["exact", "float16"]
        storage = draw(st.sampled_from(storages))
        kinds = sorted(dtypes.NUMPY if storage == "exact" else dtypes.COMPRESSIBLE)
        held_here = {"codes": count, "scaled": shape}.get(storage)
        fitting = [i for i, held in enumerate(holds) if held == held_here]
        section = draw(st.sampled_from([*(fitting if is_codes else fitting[-1:]), len(holds)]))
        if section == len(holds):
            holds.append(held_here)
        step = draw(st.floats(2.0**-149, float(np.finfo(np.float32).max), width=32)) if is_codes else None
        entries.append(Entry(name, shape, draw(st.sampled_from(kinds)), storage, section, step))
    lengths = draw(st.lists(st.integers(0, 2**63 - 1), min_size=len(holds), max_size=len(holds)))
    checksums = draw(st.lists(st.integers(0, 2**32 - 1), min_size=len(holds), max_size=len(holds)))
    return Header(entries, lengths, checksums, draw(st.dictionaries(TEXTS, TEXTS, max_size=4)))


@given(headers())
def test_headers_come_back(header):
    """Names, shapes, dtypes, storages, sections, steps, lengths, checksums and metadata are read as they were written."""
    assert decode_header(encode_header(header)) == header


@given(headers())
def test_metadata_have_one_order(header):
    """The order of the metadata does not change the bytes."""
    turned = Header(header.entries, header.lengths, header.checksums, dict(reversed(header.metadata.items())))
    assert encode_header(turned) == encode_header(header)


@examples(50)
@given(headers(), st.data())
def test_a_header_of_another_length_is_an_error(header, data):
    """Columns that are cut off or continued are a FormatError; so is such a deflate stream."""
    packed = encode_header(header)
    columns = zlib.decompress(packed, -15)
    tail = data.draw(st.binary(min_size=1, max_size=4))
    cut = data.draw(st.integers(0, len(columns) - 1))
    packed_cut = data.draw(st.integers(0, len(packed) - 1))
    for broken in (deflate(columns[:cut]), deflate(columns + tail), packed + tail, packed[:packed_cut]):
        with pytest.raises(FormatError):
            decode_header(broken)


@pytest.mark.slow
@examples(300)
@given(headers(), st.data())
def test_a_changed_header_is_an_error_or_a_header(header, data):
    """Any change of the columns gives a FormatError, or a header that can be written and read again."""
    columns = bytearray(zlib.decompress(encode_header(header), -15))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(columns)))
        columns[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        changed = decode_header(deflate(bytes(columns)))
    except FormatError:
        return
    assert decode_header(encode_header(changed)) == changed


@examples(300)
@given(st.binary(max_size=60))
def test_any_bytes_are_an_error_or_a_header(data):
    """Random bytes, deflated or not, give a FormatError or a header."""
    for packed in (data, deflate(data)):
        try:
            header = decode_header(packed)
        except FormatError:
            continue
        assert decode_header(encode_header(header)) == header


COLUMNS = {
    "metadata count": varint(1),
    "metadata": varint(1) + b"k" + varint(2) + b"va",
    "count": varint(3),
    "shared": varint(0) + varint(1) + varint(0),
    "suffix lengths": varint(2) + varint(1) + varint(1),
    "suffixes": b"aa" b"b" b"c",
    "dtypes": bytes([11, 9, 0]),
    "storages": bytes([2, 1, 0]),
    "ranks": varint(2) + varint(0) + varint(1),
    "sizes": varint(2) + varint(3) + varint(5),
    "sections": varint(0) + varint(0) + varint(2),
    "steps": struct.pack("<f", 0.5),
    "bounds": b"",
    "lengths": varint(9) + varint(200),
    "checksums": struct.pack("<II", 1, 2),
}  # fmt: skip
TWO_WEIGHTS = {"storages": bytes([2, 2, 0]), "sections": varint(0) + varint(1) + varint(0), "steps": struct.pack("<ff", 0.5, 1)}


SAME_SIZE = {"ranks": b"\2\1\1", "sizes": b"\2\3\6\5"}


def _grid(storage: str, lowest: float, highest: float) -> dict[str, bytes]:
    """The second tensor a float32 on a grid of 8 bits."""
    words = struct.pack("<ff", lowest, highest)
    planes = b"".join(words[place::4] for place in (3, 2, 1, 0))
    return {"dtypes": bytes([11, 11, 0]), "storages": bytes([2, {"linear8": 4, "relative8": 5}[storage], 0]), "bounds": planes}


def columns_with(**changes: bytes) -> bytes:
    assert {key.replace("_", " ") for key in changes} <= set(COLUMNS)
    return b"".join({**COLUMNS, **{key.replace("_", " "): value for key, value in changes.items()}}.values())


def test_columns_are_those_of_the_format():
    """Columns in the order of docs/format.md give the header that they describe."""
    header = decode_header(deflate(columns_with()))
    assert header == Header(
        [
            Entry("aa", (2, 3), "float32", "codes", 0, 0.5),
            Entry("ab", (), "float16", "float16", 1),
            Entry("c", (5,), "bool", "exact", 1),
        ],
        [9, 200],
        [1, 2],
        {"k": "va"},
    )
    assert zlib.decompress(encode_header(header), -15) == columns_with()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"metadata_count": varint(4097)}, "must be at most"),
        ({"metadata_count": varint(2), "metadata": b"\1a\1b\1a\1c"}, "ascending"),
        ({"metadata_count": varint(2), "metadata": b"\1b\1b\1a\1c"}, "ascending"),
        ({"metadata": b"\1\xff\1a"}, "UTF-8"),
        ({"metadata": b"\1a\1\xff"}, "UTF-8"),
        ({"metadata": b"\1a\xff\xff\1"}, "are left"),
        ({"metadata": b"\3\xed\xa0\x80\1b"}, "UTF-8"),
        ({"count": varint(2**40)}, "at most"),
        ({"shared": b"\1\1\0"}, "repeats more"),
        ({"shared": b"\0\3\0"}, "repeats more"),
        ({"suffix_lengths": b"\2\1" + varint(65536)}, "at most 65,535"),
        ({"shared": b"\0\1\1", "suffix_lengths": b"\2\1" + varint(65535)}, "too long"),
        ({"suffixes": b"aaac"}, "ascending"),
        ({"suffixes": b"abac"}, "ascending"),
        ({"suffixes": b"aaba"}, "ascending"),
        ({"suffix_lengths": b"\2\1\0", "suffixes": b"aab"}, "ascending"),
        ({"suffixes": b"aab\xff"}, "UTF-8"),
        ({"dtypes": bytes([11, 9, 32])}, "unknown dtype 32"),
        ({"dtypes": bytes([11, 9, 255])}, "unknown dtype 255"),
        ({"storages": bytes([2, 1, 7])}, "unknown storage 7"),
        ({"storages": bytes([6, 1, 0]), "ranks": b"\0\0\1", "sizes": b"\5"}, "without dimensions must not be stored as scaled"),
        ({"storages": bytes([6, 1, 0]), "dtypes": bytes([13, 9, 0])}, "cannot be stored as scaled"),
        ({"storages": bytes([6, 1, 0]), "sizes": b"\0\3\5"}, "must not be stored as scaled"),
        ({"storages": bytes([6, 1, 0]), "steps": struct.pack("<f", 0.0)}, "positive and finite"),
        ({**TWO_WEIGHTS, "storages": bytes([6, 2, 0]), **SAME_SIZE}, "another kind"),
        ({**TWO_WEIGHTS, "storages": bytes([6, 6, 0]), **SAME_SIZE}, "another kind"),
        ({"dtypes": bytes([6, 9, 0]), "storages": bytes([3, 1, 0]), "steps": b""}, "cannot be stored as levels"),
        ({"storages": bytes([2, 4, 0]), "bounds": bytes(8)}, "float16 cannot be stored as linear8"),
        ({"storages": bytes([2, 5, 0]), "bounds": bytes(8)}, "float16 cannot be stored as relative8"),
        (_grid("linear8", 1.0, 0.5), "the bounds of a grid must be finite and ascending"),
        (_grid("linear8", -np.inf, 0.5), "the bounds of a grid must be finite and ascending"),
        (_grid("linear8", 0.5, np.nan), "the bounds of a grid must be finite and ascending"),
        (_grid("relative8", 0.0, 0.5), "the bounds of a grid must be finite and ascending"),
        (_grid("relative8", -1.0, 0.5), "the bounds of a grid must be finite and ascending"),
        (_grid("relative8", 2.0**-127, 0.5), "the bounds of a grid must be finite and ascending"),
        ({"sizes": b"\2\0\5", "storages": bytes([3, 1, 0]), "steps": b""}, "must not be stored as levels"),
        ({**TWO_WEIGHTS, "storages": bytes([3, 2, 0]), "steps": struct.pack("<f", 1), **SAME_SIZE}, "another kind"),
        ({**TWO_WEIGHTS, "storages": bytes([3, 3, 0]), "steps": b"", **SAME_SIZE}, "another kind"),
        ({"ranks": b"\2\0\x21", "sizes": b"\2\3" + b"\1" * 33}, "at most 32"),
        ({"sizes": b"\2\3" + varint(2**31)}, "at most 2,147,483,647"),
        ({"sizes": varint(2**16) + varint(2**15) + b"\5"}, "at most 2,147,483,647 elements"),
        ({"ranks": b"\2\0\3", "sizes": b"\2\3" + varint(2**16) * 2 + b"\0"}, "at most 2,147,483,647 elements"),
        ({"sections": b"\1\0\2"}, "at most 0"),
        ({"sections": b"\0\2\0"}, "at most 1"),
        ({"steps": struct.pack("<f", 0.0)}, "positive and finite"),
        ({"steps": struct.pack("<f", -1.0)}, "positive and finite"),
        ({"steps": struct.pack("<f", np.nan)}, "positive and finite"),
        ({"steps": struct.pack("<f", np.inf)}, "positive and finite"),
        ({"dtypes": bytes([6, 9, 0])}, "cannot be stored as codes"),
        ({"dtypes": bytes([13, 9, 0])}, "cannot be stored as codes"),
        ({"dtypes": bytes([11, 0, 0])}, "cannot be stored as float16"),
        ({"dtypes": bytes([11, 15, 0])}, "cannot be stored as float16"),
        ({"sizes": b"\2\0\5"}, "must not be stored as codes"),
        ({"sections": b"\0\1\0"}, "another kind"),
        (TWO_WEIGHTS, "another kind or size"),
        ({"lengths": b"\x89\0" + varint(200)}, "shortest form"),
        ({"lengths": varint(9) + b"\xff" * 10}, "9 bytes"),
        ({"checksums": bytes(7)}, "are left"),
        ({"checksums": bytes(9)}, "too many"),
    ],
    ids=str,
)
def test_each_rule_of_the_header(changes, problem):
    """A header that breaks a rule is a FormatError that names the rule."""
    with pytest.raises(FormatError, match=problem):
        decode_header(deflate(columns_with(**changes)))


def test_tied_weights_may_differ_in_shape_dtype_and_step():
    """Weights of equal numbers of elements may share a section of codes."""
    changes = {**TWO_WEIGHTS, "ranks": b"\2\1\1", "sizes": b"\2\3\6\5"}
    entries = decode_header(deflate(columns_with(**changes))).entries
    assert [(entry.section, entry.count, entry.dtype, entry.step) for entry in entries[:2]] == [
        (0, 6, "float32", 0.5),
        (0, 6, "float16", 1.0),
    ]


@pytest.mark.parametrize("rank", [32])
def test_limits_themselves_are_allowed(rank):
    """The longest name, the most dimensions and the most elements are allowed."""
    entries = [
        Entry("a", (LARGEST_TENSOR,), "uint8", "exact", 0),
        Entry("b" * 65535, (1,) * rank, "uint8", "exact", 0),
        Entry("c", (0, LARGEST_TENSOR), "uint8", "exact", 0),
    ]
    header = Header(entries, [2**63 - 1], [2**32 - 1])
    assert decode_header(encode_header(header)) == header


def test_common_prefixes_of_names_are_stored_once():
    """A thousand names that differ in their last bytes take few bytes more than these."""
    entries = [Entry(f"a.very.long.prefix.of.a.layer.{i:04}.weight", (), "float32", "exact", 0) for i in range(1000)]
    assert len(encode_header(Header(entries, [0], [0]))) < 4000


def test_a_header_that_inflates_without_end_is_an_error():
    """Inflating stops at its limit, however long the stream is."""
    compressor = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = b"".join(compressor.compress(bytes(2**20)) for _ in range(LARGEST_HEADER // 2**20 + 1)) + compressor.flush()
    with pytest.raises(FormatError, match="inflates to more than"):
        decode_header(packed)
