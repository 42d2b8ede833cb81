"""Files made to take excessive time or memory. All their checksums are correct."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from codec_strategies import deflate, wrap

import opq.codec.file_reader
from opq.codec.byte_planes import encode_pack
from opq.codec.byte_reader import varint
from opq.codec.code_stream import encode_codes
from opq.codec.file_reader import OpqFile
from opq.errors import FormatError

MEBIBYTE = 2**20


def hostile_file(
    names: list[bytes],
    sections: list[bytes],
    *,
    references: list[int],
    shared: list[int] | None = None,
    sizes: list[int] | None = None,
    dtype: int = 0,
    storage: int = 0,
) -> bytes:
    """A file of one-dimensional tensors; `names` without their shared prefixes, everything else as in the header."""
    count = len(names)
    columns = [
        varint(0) + varint(count),
        *map(varint, shared or [0] * count),
        *(varint(len(name)) for name in names),
        *names,
        bytes([dtype]) * count + bytes([storage]) * count + b"\1" * count,
        *map(varint, sizes or [0] * count),
        *map(varint, references),
        *([struct.pack("<f", 1.0)] * count if storage == 2 else []),
        *(varint(len(section)) for section in sections),
        *(struct.pack("<I", zlib.crc32(section)) for section in sections),
    ]
    return wrap(deflate(b"".join(columns)), b"".join(sections))


def numbered(count: int) -> list[bytes]:
    """Names in ascending order."""
    return [bytes([i >> 14, i >> 7 & 127, i & 127]) for i in range(count)]


def open_or_refuse(data: bytes) -> None:
    try:
        with OpqFile(data) as file:
            for name in file:
                file.array(name)
    except FormatError:
        return


def peak_bytes(data: bytes) -> int:
    tracemalloc.start()
    try:
        open_or_refuse(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_long_shared_prefixes_take_little_memory():
    """Names that repeat 65,000 bytes of the previous one cannot make a small file take 100 MB of memory."""
    first = b"a" * 65_000
    data = hostile_file([first, *numbered(1500)], [b""], references=[0] + [1] * 1500, shared=[0] + [65_000] * 1500)
    assert len(data) < 10_000
    assert peak_bytes(data) < 32 * MEBIBYTE


def test_a_header_of_millions_of_empty_metadata_is_refused():
    """A few kilobytes that inflate to millions of empty metadata are refused before they are parsed."""
    pairs = 2**21
    data = wrap(deflate(varint(pairs) + bytes(2 * pairs)))
    assert len(data) < 10_000
    with pytest.raises(FormatError, match="inflates to more than"):
        OpqFile(data)
    assert peak_bytes(data) < 4 * MEBIBYTE


@pytest.mark.parametrize(
    ("count", "message"), [(2**17, "are left"), (2**17 + 1, "must be at most")], ids=["as many as may be", "one more"]
)
def test_the_number_of_tensors_is_bounded(count, message):
    """More tensors than the format allows are refused by their number."""
    with pytest.raises(FormatError, match=message):
        OpqFile(wrap(deflate(varint(0) + varint(count))))


def test_thousands_of_packs_are_read():
    """Each of thousands of packs is found by its number, and all are read."""
    count = 3000
    data = hostile_file(numbered(count), [b""] * count, references=[0] * count)
    with OpqFile(data) as file:
        assert all(len(file.members(section)) == 1 for section in range(count))
        assert len(file.arrays()) == count


def test_a_pack_is_decoded_once(monkeypatch):
    """Tensors that alternate between two packs do not make the reader decode a pack again."""
    count = 20
    pack = varint(100) + bytes(100)
    sizes = [10] * count
    data = hostile_file(numbered(count), [pack, pack], references=[0, 0] + [1, 2] * (count // 2 - 1), sizes=sizes)
    decoded = []
    plain = opq.codec.file_reader.decode_pack

    def counting(section, *rest):
        decoded.append(section)
        return plain(section, *rest)

    monkeypatch.setattr(opq.codec.file_reader, "decode_pack", counting)
    open_or_refuse(data)
    assert len(decoded) <= 2


@pytest.mark.parametrize("storage", [0, 2], ids=["exact", "codes"])
def test_decoding_takes_memory_in_proportion(storage):
    """Decoding takes at most 32 bytes per declared element beyond the tensor itself."""
    count = 2**20
    values = np.eye(1, count, dtype=np.int32)[0]
    section = encode_codes(values) if storage == 2 else encode_pack([values.astype(np.uint8)])
    data = hostile_file([b"w"], [section], references=[0], sizes=[count], dtype=9 if storage == 2 else 1, storage=storage)
    assert len(data) < 1000
    assert peak_bytes(data) < 34 * count + MEBIBYTE


@pytest.mark.parametrize("rank", [1, 32])
def test_huge_shapes_are_refused_before_they_are_allocated(rank):
    """Dense bytes beyond the limit are refused when the file is opened, before anything is allocated."""
    for storage, dtype in ((0, 12), (2, 11)):
        data = hostile_file([b"w"], [b"\0\1"], references=[0], sizes=[2**31 - 1], dtype=dtype, storage=storage)
        columns = zlib.decompress(data[12:-2], -15)
        size = varint(2**31 - 1)
        at = columns.index(size)
        wide = columns[: at - 1] + varint(rank) + b"\1" * (rank - 1) + columns[at:]
        hostile = wrap(deflate(wide), data[-2:])
        with pytest.raises(FormatError, match="see max_bytes"):
            OpqFile(hostile)
        assert peak_bytes(hostile) < MEBIBYTE


def test_tied_weights_count_each_time():
    """Each tensor of a shared section counts towards the limit with its dense bytes."""
    count = 2000
    section = b"\0\1"
    sizes = [2**16] * count
    data = hostile_file(numbered(count), [section], references=[0] + [1] * (count - 1), sizes=sizes, dtype=11, storage=2)
    with pytest.raises(FormatError, match="see max_bytes"):
        OpqFile(data)


def test_a_huge_header_length_is_refused():
    """A header length beyond the file is refused without reading that much."""
    for length in (1, 2**31, 2**32 - 1):
        start = struct.pack("<3sBI", b"OPQ", 1, length)
        with pytest.raises(FormatError, match="truncated"):
            OpqFile(start + struct.pack("<I", zlib.crc32(start)))


def test_huge_section_lengths_are_refused():
    """Section lengths beyond the file, also with a sum beyond 64 bits, are refused when the file is opened."""
    for length in (2**31, 2**63 - 1):
        columns = varint(0) + varint(3) + b"\0\0\0\1\1\1abc" + b"\0" * 6 + b"\0\0\0" + b"\0\0\0" + varint(length) * 3
        with pytest.raises(FormatError, match="truncated"):
            OpqFile(wrap(deflate(columns + bytes(12))))
