"""Damaged and hostile files: reading gives a FormatError or tensors, never another error."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from codec_strategies import deflate, files, inflate, sections_of, small_file, with_columns, with_sections, wrap
from hypothesis import given
from hypothesis import strategies as st
from thoroughness import examples

from opq import dtypes
from opq.codec.file_reader import OpqFile
from opq.codec.verify import verify
from opq.errors import FormatError

SMALL = small_file()
LARGEST = 2**20
"""Largest number of dense bytes that a file may declare in these tests."""


def read_or_refuse(data: bytes) -> bool:
    """Read all tensors of a file and check them against its header. Returns whether the file is valid."""
    try:
        with OpqFile(data, max_bytes=LARGEST) as file:
            for entry in file.entries:
                array = file.array(entry.name)
                assert array.shape == entry.shape
                assert array.dtype == dtypes.NUMPY[entry.dtype]
    except FormatError:
        return False
    return True


def verify_or_refuse(data: bytes) -> None:
    """`verify` accepts or refuses a file that can be read. Only for small files, since `verify` has no `max_bytes`."""
    try:
        verify(data)
    except FormatError:
        return


def test_the_file_itself_is_valid():
    """The file that the tests below change is valid and has less than a kilobyte."""
    assert read_or_refuse(SMALL)
    assert 300 < len(SMALL) < 1024


def test_every_truncation_is_refused():
    """No proper prefix of a file can be opened."""
    for length in range(len(SMALL)):
        with pytest.raises(FormatError):
            OpqFile(SMALL[:length])


@pytest.mark.slow
@given(files(), st.data())
def test_truncations_of_any_file_are_refused(data, draw):
    """Any file is refused if it is cut off or continued."""
    with pytest.raises(FormatError):
        OpqFile(data[: draw.draw(st.integers(0, len(data) - 1))])
    with pytest.raises(FormatError):
        OpqFile(data + draw.draw(st.binary(min_size=1, max_size=9)))


@pytest.mark.parametrize("mask", [0x01, 0x10, 0x80, 0xFF])
def test_every_changed_byte_is_refused(mask):
    """A file with any changed byte is a FormatError when its tensors are read."""
    for at in range(len(SMALL)):
        changed = bytearray(SMALL)
        changed[at] ^= mask
        assert not read_or_refuse(bytes(changed)), f"byte {at}"


def test_a_damaged_section_affects_its_own_tensors_only():
    """With one damaged section the tensors in it are refused by name, and all others are read."""
    with OpqFile(SMALL) as file:
        entries = {entry.name: entry.section for entry in file.entries}
        expected = {name: file.array(name).tobytes() for name in file}
    sections = sections_of(SMALL)
    for number in range(len(sections)):
        changed = bytearray(SMALL)
        changed[len(SMALL) - sum(map(len, sections[number:]))] ^= 0x20
        with OpqFile(bytes(changed)) as file:
            for name, section in entries.items():
                if section == number:
                    first = next(name for name, own in entries.items() if own == number)
                    with pytest.raises(FormatError, match=rf"'({first}|{name})'.*checksum"):
                        file.array(name)
                else:
                    assert file.array(name).tobytes() == expected[name]


def test_every_changed_bit_of_the_columns_is_harmless():
    """With any changed bit of the inflated header, and a correct checksum, a file is refused or read."""
    columns = inflate(SMALL)
    body = b"".join(sections_of(SMALL))
    read = 0
    for at in range(len(columns)):
        for bit in range(8):
            changed = columns[:at] + bytes([columns[at] ^ 1 << bit]) + columns[at + 1 :]
            read += read_or_refuse(wrap(deflate(changed), body))
    assert read > 0  # names, metadata and steps may be others


def test_every_changed_byte_of_the_sections_is_harmless():
    """With any changed byte of a section, and a correct checksum, a tensor is refused or has other values."""
    sections = sections_of(SMALL)
    for number, section in enumerate(sections):
        for at in range(len(section)):
            for mask in (0x01, 0x08, 0x80, 0xFF):
                changed = section[:at] + bytes([section[at] ^ mask]) + section[at + 1 :]
                read_or_refuse(with_sections(SMALL, [*sections[:number], changed, *sections[number + 1 :]]))


@st.composite
def edits(draw, data: bytes) -> bytes:
    """`data` with some pieces replaced, inserted or removed."""
    edited = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(edited)))
        piece = draw(st.binary(max_size=4) | st.sampled_from([b"\xff" * 8 + b"\x7f", b"\0" * 6, b"\xff\xff\xff\xff\x07"]))
        edited[at : at + draw(st.integers(0, 5))] = piece
    return bytes(edited)


@pytest.mark.slow
@examples(300)
@given(files() | st.just(SMALL), st.data())
def test_edited_columns_are_harmless(data, draw):
    """With any edited header, and a correct checksum, a file is refused or read, also by `verify`."""
    changed = with_columns(data, draw.draw(edits(inflate(data))))
    if read_or_refuse(changed):
        verify_or_refuse(changed)


@pytest.mark.slow
@examples(300)
@given(files() | st.just(SMALL), st.data())
def test_edited_sections_are_harmless(data, draw):
    """With any edited sections, and correct checksums, each tensor is refused or read, also by `verify`."""
    sections = [draw.draw(edits(section) | st.just(section)) for section in sections_of(data)]
    changed = with_sections(data, sections)
    if read_or_refuse(changed):
        verify_or_refuse(changed)


@examples(300)
@given(st.binary(max_size=100))
def test_random_bytes_are_refused(data):
    """Bytes without a correct checksum are refused, whatever they start with."""
    for start in (b"", b"OPQ", b"OPQ\1", b"OPQ\1" + len(data[8:]).to_bytes(4, "little")):
        assert not read_or_refuse(start + data)


@examples(300)
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_random_bytes_under_right_checksums_are_harmless(header, body):
    """Random headers, deflated or not, with a correct checksum are refused or read."""
    read_or_refuse(wrap(header, body))
    read_or_refuse(wrap(deflate(header), body))


def test_other_deflate_streams_of_the_header_are_read():
    """Another deflate stream of the header gives the same tensors; a zlib frame around it is refused."""
    columns = inflate(SMALL)
    body = b"".join(sections_of(SMALL))
    for level in (0, 1, 6, 9):
        compressor = zlib.compressobj(level, zlib.DEFLATED, -9, 1, zlib.Z_HUFFMAN_ONLY)
        packed = compressor.compress(columns[:50]) + compressor.flush(zlib.Z_FULL_FLUSH)
        packed += compressor.compress(columns[50:]) + compressor.flush()
        assert read_or_refuse(wrap(packed, body))
    with pytest.raises(FormatError, match="inflate"):
        OpqFile(wrap(zlib.compress(columns), body))


def test_sections_in_another_order_are_refused():
    """Permuted sections do not match their checksums; with permuted checksums they do not match their tensors."""
    sections = sections_of(SMALL)
    shuffled = sections[1:] + sections[:1]
    assert not read_or_refuse(SMALL[: len(SMALL) - sum(map(len, sections))] + b"".join(shuffled))
    assert not read_or_refuse(with_sections(SMALL, shuffled))


def test_an_error_does_not_affect_later_reads():
    """After a tensor is refused, the others are read as before, and it is refused again."""
    changed = bytearray(SMALL)
    changed[-1] ^= 1
    with OpqFile(bytes(changed)) as file:
        last = max(file.entries, key=lambda entry: entry.section).name
        for _ in range(3):
            with pytest.raises(FormatError):
                file.array(last)
            assert np.isfinite(file.array("features.0.weight")).all()
