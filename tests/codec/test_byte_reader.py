"""Reading untrusted bytes, and LEB128 integers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opq.codec.byte_reader import ByteReader, varint
from opq.errors import FormatError

INTEGERS = st.integers(0, 2**63 - 1) | st.integers(0, 63).flatmap(lambda k: st.sampled_from([2**k - 1, 2**k - (k == 63)]))


@given(st.lists(INTEGERS))
def test_varints_come_back(values):
    """Integers below 2^63 that are written in sequence are read back, and no byte is left."""
    reader = ByteReader(b"".join(map(varint, values)), "here")
    assert [reader.varint() for _ in values] == values
    reader.end()


@given(INTEGERS)
def test_a_varint_takes_a_byte_per_seven_bits(value):
    """The length of a varint is its bits over seven, rounded up, and one byte for 0."""
    assert len(varint(value)) == max(1, -(-value.bit_length() // 7))


@given(INTEGERS, INTEGERS)
def test_a_varint_has_one_form(a, b):
    """Different values have different bytes, and neither is a prefix of the other."""
    assert a == b or not varint(a).startswith(varint(b))


@given(st.binary(min_size=1, max_size=12))
def test_bytes_are_a_varint_in_its_only_form_or_an_error(data):
    """Bytes that read as an integer are the bytes of that integer; others are a FormatError."""
    reader = ByteReader(data, "here")
    try:
        value = reader.varint()
    except FormatError:
        return
    assert data.startswith(varint(value))
    assert 0 <= value < 2**63


@given(INTEGERS, st.integers(1, 4))
def test_a_longer_form_is_an_error(value, zeros):
    """A varint with zero bits on top is refused."""
    short = varint(value)
    long = short[:-1] + bytes([short[-1] | 0x80]) + b"\x80" * (zeros - 1) + b"\0"
    with pytest.raises(FormatError, match=r"shortest form|longer than 9 bytes"):
        ByteReader(long, "here").varint()


@given(INTEGERS, st.data())
def test_a_varint_cut_off_is_an_error(value, data):
    """No proper prefix of a varint is a varint."""
    short = varint(value)
    cut = data.draw(st.integers(0, len(short) - 1))
    with pytest.raises(FormatError, match="are left"):
        ByteReader(short[:cut], "here").varint()


@given(INTEGERS, INTEGERS)
def test_a_varint_is_at_most_its_limit(value, limit):
    """A value is read if and only if it is not above the limit."""
    reader = ByteReader(varint(value), "here")
    if value <= limit:
        assert reader.varint(limit) == value
    else:
        with pytest.raises(FormatError, match="at most"):
            reader.varint(limit)


@pytest.mark.parametrize("data", [varint(2**63 - 1)[:-1] + b"\x80\x01", b"\xff" * 9 + b"\x01", b"\xff" * 10, b"\xff" * 1000])
def test_integers_of_2_to_63_and_more_are_errors(data):
    """No integer of 2^63 or more is read, of any length."""
    with pytest.raises(FormatError):
        ByteReader(data, "here").varint()


@given(st.binary(max_size=40), st.lists(st.integers(0, 12), max_size=8))
def test_reads_return_the_bytes_in_order_and_never_more(data, counts):
    """Successive pieces are the data; a piece beyond the end is an error and consumes no byte."""
    reader = ByteReader(data, "here")
    taken = b""
    for count in counts:
        if len(taken) + count > len(data):
            with pytest.raises(FormatError, match="are left"):
                reader.take(count)
        else:
            taken += reader.take(count)
    assert taken + reader.rest() == data
    reader.end()


@given(st.binary(min_size=1))
def test_remaining_bytes_are_an_error(data):
    """`end` accepts the end of the data only."""
    reader = ByteReader(data, "here")
    reader.take(len(data) - 1)
    with pytest.raises(FormatError, match="1 bytes too many"):
        reader.end()
    reader.take(1)
    reader.end()


def test_errors_name_the_place():
    """The `where` of the reader is in the message."""
    reader = ByteReader(b"abc", "header")
    reader.take(1)
    with pytest.raises(FormatError, match="header: expected 5 bytes at 1, but only 2 are left"):
        reader.take(5)


@pytest.mark.parametrize(
    ("value", "data"),
    [(0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (16383, "ff7f"), (16384, "808001"), (2**63 - 1, "ffffffffffffffff7f")],
)
def test_bytes_of_varints(value, data):
    """The bytes of these varints never change."""
    assert varint(value).hex() == data
