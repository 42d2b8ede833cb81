"""Files made to harm their reader: each attack is a function that returns a file. Most checksums are correct."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
from codec_strategies import (
    deflate,
    encode_file,
    inflate,
    leveled_as,
    scaled_as,
    sections_of,
    small_file,
    stepped,
    trellised_as,
    with_sections,
    wrap,
)

from opq.codec import _native
from opq.codec.byte_planes import encode_pack
from opq.codec.byte_reader import varint
from opq.codec.code_stream import encode_codes
from opq.codec.entry import Entry
from opq.codec.file_start import MAGIC
from opq.codec.header import Header, decode_header, header_columns

ATTACKS: dict[str, Callable[[], bytes]] = {}
"""{name: function that makes the file}; its docstring describes the attack."""


def attack(make: Callable[[], bytes]) -> Callable[[], bytes]:
    """Register an attack under the name of its function."""
    ATTACKS[make.__name__] = cache(make)
    return make


def simple_file() -> bytes:
    """A weight, and a pack of two tensors."""
    weight = stepped(np.array([[1, -2, 0], [0, 3, 40]], dtype=np.int32), 0.5)
    return encode_file({"w": weight, "a": np.arange(4, dtype=np.float32), "b": np.array([True, False])})


def with_entries(data: bytes, change: Callable[[Entry], Entry], *, names: Callable[[str], bool] = lambda name: True) -> bytes:
    """A file in whose header the entries of some tensors are changed; nothing is checked."""
    header = decode_header(deflate(inflate(data)))
    entries = [change(entry) if names(entry.name) else entry for entry in header.entries]
    return wrap(deflate(header_columns(replace(header, entries=entries))), b"".join(sections_of(data)))


def with_header(data: bytes, change: Callable[[Header], Header]) -> bytes:
    """A file with a changed header and unchanged sections."""
    return wrap(deflate(header_columns(change(decode_header(deflate(inflate(data)))))), b"".join(sections_of(data)))


def multiply(header: Header, times: int) -> Header:
    """Turn a header of one tensor into one of many tensors that share its section."""
    return replace(header, entries=[replace(header.entries[0], name=f"w{number:05}") for number in range(times)])


def is_weight(name: str) -> bool:
    """Whether it is the weight of `simple_file`."""
    return name == "w"


@attack
def gigabytes_of_codes() -> bytes:
    """A hundred bytes that declare a weight of 2^31 - 1 elements."""
    return with_entries(simple_file(), lambda e: replace(e, shape=(2**31 - 1,)), names=is_weight)


@attack
def gigabytes_of_auxiliary() -> bytes:
    """A hundred bytes that declare an auxiliary tensor of 16 GB."""
    return with_entries(simple_file(), lambda e: replace(e, shape=(2**31 - 1,), dtype="float64"), names=lambda n: n == "a")


@attack
def maximum_size_of_codes() -> bytes:
    """Just under the limit: 64 MiB of float16 weights from a few bytes of data, beyond whose end zeros are decoded."""
    return with_entries(simple_file(), lambda e: replace(e, shape=(2**25 - 16,), dtype="float16"), names=is_weight)


@attack
def maximum_size_of_kernels() -> bytes:
    """The same with 5x5 kernels, whose decoding is slowest, of the widest type."""
    return with_entries(simple_file(), lambda e: replace(e, shape=(335_544, 1, 5, 5), dtype="float64"), names=is_weight)


@attack
def maximum_size_of_bytes() -> bytes:
    """64 MiB of single bytes, each of which takes eight decisions to decode."""
    original = encode_file({"a": np.zeros(2**12, dtype=np.uint8)})
    return with_entries(original, lambda e: replace(e, shape=(2**26,)))


@attack
def one_section_for_thousands() -> bytes:
    """Two thousand weights that share one section, which would be decoded for each of them."""
    weight = stepped(np.zeros((64, 64), dtype=np.int32))
    weight.codes[0, 0] = 1
    original = encode_file({"w": weight})

    return with_header(original, lambda header: multiply(header, 2000))


@attack
def one_long_section_for_thousands() -> bytes:
    """A section of 128 kB that twenty thousand weights of one element share: 2.6 GB, if it were kept for each."""
    original = encode_file({"w": stepped(np.array([1], dtype=np.int32))})
    return with_header(with_sections(original, [bytes(2**17)]), lambda header: multiply(header, 20_000))


@attack
def a_header_that_inflates_a_thousandfold() -> bytes:
    """64 MB of zeros in 64 kB."""
    return wrap(deflate(bytes(2**26)))


@attack
def a_header_that_is_longer_than_the_file() -> bytes:
    """A length of the header of 4 GiB."""
    data = bytearray(simple_file())
    data[4:8] = b"\xff" * 4
    return bytes(data)


@attack
def sections_beyond_the_file() -> bytes:
    """Lengths of sections beyond the end of the file, whose sum exceeds 64 bits."""
    return with_header(simple_file(), lambda h: replace(h, lengths=[2**62] * len(h.lengths)))


@attack
def a_section_that_begins_in_another() -> bytes:
    """The header declares the first section longer, so that it overlaps the next one, which it declares shorter."""
    return with_header(simple_file(), lambda h: replace(h, lengths=[h.lengths[0] + 2, h.lengths[1] - 2]))


@attack
def one_name_twice() -> bytes:
    """Two tensors of one name, which readers could confuse."""
    return with_header(simple_file(), lambda h: replace(h, entries=[h.entries[0], *h.entries]))


@attack
def names_out_of_order() -> bytes:
    """Readers that search by bisection would find other tensors than those that go through all."""
    return with_entries(simple_file(), lambda e: replace(e, name={"a": "z"}.get(e.name, e.name)))


@attack
def a_name_that_is_a_path() -> bytes:
    """A name with "..", against tools that write a file per tensor; opq does not."""
    return with_entries(simple_file(), lambda e: replace(e, name="../../../../etc/" + e.name))


@attack
def a_name_with_control_characters() -> bytes:
    """Names that end a line, ring a bell and clear a terminal."""
    return with_entries(simple_file(), lambda e: replace(e, name="\x1b[2J\x07\n\0" + e.name))


@attack
def a_weight_without_elements() -> bytes:
    """Codes of an empty tensor: divisions by its size."""
    return with_entries(simple_file(), lambda e: replace(e, shape=(0, 3)), names=is_weight)


@attack
def a_scalar_with_a_matrix_of_codes() -> bytes:
    """A shape without dimensions for a section that holds six codes."""
    return with_entries(simple_file(), lambda e: replace(e, shape=()), names=is_weight)


@attack
def a_section_of_both_kinds() -> bytes:
    """An auxiliary tensor that refers to a section of codes."""
    return with_entries(simple_file(), lambda e: replace(e, section=0))


@attack
def thirty_three_dimensions() -> bytes:
    """More dimensions than every version of NumPy supports."""
    return with_entries(simple_file(), lambda e: replace(e, shape=(*(1,) * 31, *e.shape)), names=is_weight)


@attack
def a_step_of_zero() -> bytes:
    """A step of 0: verify divides by it."""
    return with_entries(simple_file(), lambda e: replace(e, step=0.0), names=is_weight)


@attack
def a_step_of_nan() -> bytes:
    """A step of NaN would make every weight NaN."""
    return with_entries(simple_file(), lambda e: replace(e, step=math.nan), names=is_weight)


@attack
def a_negative_step() -> bytes:
    """A negative step would invert every sign."""
    return with_entries(simple_file(), lambda e: replace(e, step=-0.5), names=is_weight)


@attack
def a_step_that_overflows() -> bytes:
    """The largest float32 as step: codes above 1 are infinite."""
    return with_entries(simple_file(), lambda e: replace(e, step=3.0e38), names=is_weight)


def scaled_file(step: float = 0.5) -> bytes:
    """A weight whose rows and columns have scales."""
    codes = np.array([[1, -2, 0], [0, 3, 40]], dtype=np.int32)
    return encode_file({"w": scaled_as(codes, step, rows=[8, -3], columns=[0, 1, 2])})


@attack
def scales_that_overflow() -> bytes:
    """A step of 2^100 and scales of 32 octaves: steps of some elements are infinite."""
    codes = np.array([[1, -2, 0], [0, 3, 40]], dtype=np.int32)
    data = encode_file({"w": scaled_as(codes, 0.5, rows=[127, 0], columns=[127, 0, 0])})
    return with_entries(data, lambda e: replace(e, step=2.0**100))


@attack
def scales_that_underflow() -> bytes:
    """A subnormal step, whose products with scales some processors round to zero."""
    return with_entries(scaled_file(), lambda e: replace(e, step=2.0**-140))


@attack
def scales_of_minus_128() -> bytes:
    """A byte of 0, one below the lowest scale."""
    section = b"\1" + varint(3) + encode_pack([np.array([0, 130], dtype=np.uint8)])
    return with_sections(scaled_file(), [section])


@attack
def scales_of_zero() -> bytes:
    """Scales that change nothing: a second way to write a weight without scales."""
    section = b"\1" + varint(3) + encode_pack([np.array([128, 128], dtype=np.uint8)])
    return with_sections(scaled_file(), [section])


@attack
def scales_of_no_axis() -> bytes:
    """A section of scaled codes that declares no scales."""
    return with_sections(scaled_file(), [bytes([0, 0])])


@attack
def scales_of_a_scalar() -> bytes:
    """Scales of a weight without rows."""
    one = encode_file({"w": scaled_as(np.array([5], dtype=np.int32), rows=[1])})
    return with_entries(one, lambda e: replace(e, shape=()))


@attack
def scales_for_other_shapes() -> bytes:
    """A section of scaled codes that a second weight reads with its rows as columns."""
    data = encode_file({name: scaled_as(np.ones((2, 3), dtype=np.int32), rows=[1, 2]) for name in "ab"})
    return with_entries(data, lambda e: replace(e, shape=(3, 2)), names=lambda name: name == "b")


@attack
def maximum_size_of_scales() -> bytes:
    """Just under the limit: 64 MiB of float16 weights, each row and each column with a scale of its own."""
    rows, columns = 2**13, 2**12 - 1
    scales = [np.arange(count, dtype=np.uint32).astype(np.uint8) // 4 + 96 for count in (rows, columns)]
    packed = encode_pack(scales)
    data = with_sections(scaled_file(), [b"\3" + varint(len(packed)) + packed])
    return with_entries(data, lambda e: replace(e, shape=(rows, columns), dtype="float16"))


@attack
def scales_for_thousands() -> bytes:
    """Two thousand weights of other steps that share a section of scaled codes."""
    header = decode_header(deflate(inflate(scaled_file())))
    many = multiply(header, 2000)
    entries = [replace(entry, step=1.0 + number) for number, entry in enumerate(many.entries)]
    return with_header(scaled_file(), lambda _: replace(many, entries=entries))


@attack
def kernels_that_follow_a_trellis() -> bytes:
    """The first byte of a section says that codes follow a trellis, but the weight has kernels."""
    original = encode_file({"w": stepped(np.arange(-9, 9, dtype=np.int32).reshape(1, 2, 3, 3))})
    return with_sections(original, [bytes([21 | 32]) + sections_of(original)[0][1:]])


@attack
def levels_that_follow_a_trellis() -> bytes:
    """The codes of a table of levels begin as those of a trellis; as such they would be even and odd in turn."""
    levels = np.arange(1, 5, dtype=np.float32)
    original = encode_file({"w": leveled_as(np.array([[1, 2, 3, 4]], dtype=np.int32), levels)})
    codes = encode_codes(trellised_as(np.array([[1, 1, 1, 1]], dtype=np.int32)).codes, trellis=True)
    section = sections_of(original)[0]
    table = section[: 3 + section[2]]
    return with_sections(original, [table + codes])


@attack
def a_trellis_beyond_24_bits() -> bytes:
    """Codes that a trellis would double beyond 2^24, the largest integers that float32 holds."""
    original = encode_file({"w": stepped(np.array([[2**24 - 1, 1 - 2**24, 2**23, 3]], dtype=np.int32))})
    section = sections_of(original)[0]
    native = _native.encode_codes(np.full(4, 2**24 - 1, dtype=np.int32).data, 1, 4, 1, 1, 9)
    return with_sections(original, [bytes([30 | section[0] & 224]) + native])


def fast_file(shape: tuple[int, ...] = (32, 128), *, trellis: bool = False) -> bytes:
    """A weight of a fast section, most of whose codes are 0."""
    numbers = np.zeros(math.prod(shape), dtype=np.int32)
    numbers[::9], numbers[77] = 1, 1000
    weight = (trellised_as if trellis else stepped)(numbers.reshape(shape))
    return encode_file({"w": weight}, speed="fast")


def with_section(data: bytes, change: Callable[[bytearray], object]) -> bytes:
    """A file whose only section is changed."""
    section = bytearray(sections_of(data)[0])
    change(section)
    return with_sections(data, [bytes(section)])


@attack
def a_fast_section_that_ends_early() -> bytes:
    """64 MiB of float32 weights from one stream of a few hundred bytes, which ends after the first columns."""
    return with_entries(fast_file(), lambda e: replace(e, shape=(32, 2**19)))


@attack
def a_fast_section_of_nothing() -> bytes:
    """64 MiB of equal weights: their symbol has the whole table, so that no stream needs data beyond its states."""
    start = bytes([31, 0, 1, 0])
    table = encode_pack([np.array([0, 1], dtype=np.uint8)])
    states = (2**16).to_bytes(4, "little") * 32
    return with_entries(
        with_sections(fast_file(), [start + varint(len(table)) + table + b"\0" + states]),
        lambda e: replace(e, shape=(32, 2**19)),
    )


@attack
def a_fast_section_of_thousands() -> bytes:
    """Weights of two shapes in turn that share a fast section of 4,096 elements: 8,000 of them, and 64 MiB."""
    return with_header(
        fast_file(),
        lambda h: replace(
            h,
            entries=[
                replace(h.entries[0], name=f"w{number:05}", shape=((32, 128), (64, 64))[number % 2], dtype="float16")
                for number in range(8000)
            ],
        ),
    )


@attack
def a_fast_section_of_kernels_that_follow_a_trellis() -> bytes:
    """The first byte of a fast section says that codes follow a trellis, but the weight has kernels."""
    return with_section(fast_file((32, 16, 3, 3)), lambda section: section.__setitem__(0, 63))


@attack
def a_fast_section_of_a_small_weight() -> bytes:
    """A fast section of a weight with one element too few for its tables."""
    return with_entries(fast_file((4096,)), lambda e: replace(e, shape=(4095,)))


@attack
def a_fast_section_with_many_contexts() -> bytes:
    """Sixteen contexts in a weight that is large enough for one: tables would take more memory than the weight."""
    return with_section(fast_file(), lambda section: section.__setitem__(3, 15))


@attack
def a_fast_section_with_low_states() -> bytes:
    """The states of a stream begin at 0, from where one word would not lift them to 2^16."""
    start = bytes([31, 0, 1, 0])
    table = encode_pack([np.array([1, 1], dtype=np.uint8)])
    return with_sections(fast_file(), [start + varint(len(table)) + table + b"\0" + bytes(4 * 32 + 2 * 4096)])


@attack
def a_fast_section_with_a_patch_beyond_the_weight() -> bytes:
    """A patch whose place is 2^32 - 1 elements behind the start."""
    start = bytes([31, 0, 1, 0])
    table = encode_pack([np.array([0, 1], dtype=np.uint8)])
    patch = encode_pack([np.array([2**32 - 1], dtype=np.uint32), np.array([5], dtype=np.uint32)])
    states = (2**16).to_bytes(4, "little") * 32
    return with_sections(fast_file(), [start + varint(len(table)) + table + b"\1" + varint(len(patch)) + patch + states])


def plane_file(blocks: list[bytes], size: int = 4096) -> bytes:
    """A tensor of bytes whose plane has these blocks."""
    section = varint(size + 1) + b"".join([*(varint(len(block)) for block in blocks), *blocks])
    return with_entries(
        with_sections(encode_file({"a": np.zeros(5, dtype=np.uint8)}), [section]), lambda e: replace(e, shape=(size,))
    )


def block_of(
    tables: int = 1, classes: bytes = b"", *, marks: bytes = b"\1\0", states: int = 2**16, words: bytes = b""
) -> bytes:
    """A block of symbols 7 and 8, whose first one has the whole of each table by default, so that it has no words."""
    return bytes([7, 1, tables - 1]) + classes + marks * tables + states.to_bytes(4, "little") * 32 + words


@attack
def a_fast_plane_of_nothing() -> bytes:
    """64 MiB from blocks of one byte."""
    return plane_file([b"\0"] * 256, 2**26)


@attack
def maximum_size_of_fast_planes() -> bytes:
    """64 MiB of equal bytes, from blocks that have tables and states."""
    return plane_file([block_of()] * 256, 2**26)


@attack
def a_fast_plane_of_few_bytes() -> bytes:
    """A fast plane of one byte too few, whose tables take more memory than the bytes."""
    return plane_file([b"\0"], 4095)


@attack
def a_fast_plane_with_a_long_block() -> bytes:
    """A block of more bytes than it stands for."""
    return plane_file([bytes(4097)])


@attack
def a_fast_plane_without_its_last_block() -> bytes:
    """A plane of two blocks, of which one is there."""
    return plane_file([b"\0"], 2**18 + 1)


@attack
def a_fast_plane_with_an_empty_block() -> bytes:
    """A block without bytes."""
    return plane_file([b""])


@attack
def a_fast_plane_whose_data_end_early() -> bytes:
    """A stream whose words end after the first columns."""
    return plane_file([block_of(marks=b"\1\1", words=bytes(20))])


@attack
def a_fast_plane_with_low_states() -> bytes:
    """The states of a stream begin at 0, from where one word would not lift them to 2^16."""
    return plane_file([block_of(marks=b"\1\1", states=0, words=bytes(2000))])


@attack
def a_fast_plane_with_high_states() -> bytes:
    """The states of a stream do not come back to 2^16."""
    return plane_file([block_of(states=2**16 + 1)])


@attack
def a_fast_plane_with_words_left() -> bytes:
    """A stream goes on after the last byte."""
    return plane_file([block_of(words=bytes(2))])


@attack
def a_fast_plane_with_symbols_beyond_a_byte() -> bytes:
    """The last symbol would be byte 256."""
    return plane_file([b"\xff" + block_of()[1:]])


@attack
def a_fast_plane_with_nine_tables() -> bytes:
    """More tables than three bits can name, and than readers have memory for."""
    return plane_file([block_of(9, bytes(6))])


@attack
def a_fast_plane_with_a_class_beyond_its_tables() -> bytes:
    """Two tables, and a group that has the third one."""
    return plane_file([block_of(2, b"\2" + bytes(5))])


@attack
def a_fast_plane_with_unused_bits() -> bytes:
    """Bits after the class of the last group, a second way to write the same block."""
    return plane_file([block_of(2, bytes(6) + b"\x80")], 4097 + 16 * 256 - 1)


@attack
def a_fast_plane_with_an_empty_table() -> bytes:
    """A table without symbols: shares are divided by their sum."""
    return plane_file([block_of(marks=b"\0\0")])


@attack
def a_fast_plane_with_a_large_mark() -> bytes:
    """A byte of a table beyond 80, whose weight would be shifted out of 32 bits."""
    return plane_file([block_of(marks=b"\xff\1")])


@attack
def a_trellis_without_end() -> bytes:
    """64 MiB of float16 weights that follow a trellis, from a few bytes of data."""
    original = encode_file({"w": trellised_as(np.array([[1, -2, 0, 3, 40]], dtype=np.int32), dtype="float16")})
    return with_entries(original, lambda e: replace(e, shape=(2**12, 2**13)))


@attack
def a_bool_of_two() -> bytes:
    """A byte of 2 in a tensor of bools is neither true nor false."""
    original = encode_file({"b": np.full(5, 2, dtype=np.uint8)})
    return with_entries(original, lambda e: replace(e, dtype="bool"))


@attack
def signalling_nans() -> bytes:
    """Signalling NaNs stored as float16, about which NumPy warns when it converts them to bfloat16."""
    halves = encode_file({"a": np.arange(1, 41, dtype=np.float32)}, "float16")
    nans = encode_pack([np.full(40, 0x7C01, dtype=np.uint16).view(np.float16)])
    return with_entries(with_sections(halves, [nans]), lambda e: replace(e, dtype="bfloat16"))


@attack
def another_version() -> bytes:
    """A version of the format that does not exist yet, with a correct checksum."""
    data = simple_file()
    length = int.from_bytes(data[4:8], "little")
    return wrap(data[12 : 12 + length], data[12 + length :], version=200)


@attack
def a_pickle() -> bytes:
    """A pickle that would run a command, without the magic of the format."""
    return pickle.dumps(simple_file)


@attack
def a_pickle_behind_our_magic() -> bytes:
    """The same after the magic of the format, which a reader might accept as sufficient."""
    return MAGIC + b"\1" + pickle.dumps(simple_file)


@attack
def a_zip_archive() -> bytes:
    """A zip archive, as .pt files are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(1))
    return buffer.getvalue()


@attack
def two_files_in_one() -> bytes:
    """A second file after the first one."""
    return simple_file() + small_file()


@attack
def nothing() -> bytes:
    """An empty file."""
    return b""
