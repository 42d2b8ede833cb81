"""Sections of weights with levels: what goes in comes out, and what no writer wrote is refused."""

from __future__ import annotations

import numpy as np
import pytest
from codec_strategies import CODES, encode_file, leveled, same_bits, sections_of
from hypothesis import given
from hypothesis import strategies as st

from opq import dtypes
from opq.codec.byte_planes import encode_pack
from opq.codec.byte_reader import varint
from opq.codec.code_stream import encode_codes
from opq.codec.weight_section import decode_weight, encode_weight, table_bytes
from opq.errors import FormatError, WeightError
from opq.quantization.compressed_tensor import CompressedTensor

ONE = np.array([[1]], dtype=np.int32)
FOUR = np.ones((2, 2), dtype=np.int32)


@given(leveled(CODES))
def test_levels_and_codes_come_back(tensor):
    """Levels bit for bit, used or not, and codes, whatever the dtype."""
    section = encode_weight(tensor)
    again = decode_weight(section, tensor.shape, tensor.dtype, None)
    assert same_bits(again.levels, tensor.levels)
    assert same_bits(again.codes, tensor.codes)
    ways = [encode_codes(tensor.codes, coarser=bits) for bits in range(4)]
    assert section[table_bytes(section) :] == min(ways, key=len)


@given(st.lists(st.floats(2.0**-20, 2.0**10, width=32), min_size=1, max_size=300, unique=True))
def test_a_table_takes_little_more_than_its_values(values):
    """At most the levels as they are, and a few bytes for each of four planes and the counts."""
    levels = np.sort(np.array(values, dtype=np.float32))
    tensor = CompressedTensor(np.zeros(len(levels), dtype=np.int32), None, "float32", levels)
    assert len(encode_weight(tensor)) <= levels.nbytes + 4 * 2 + 6


def table(positives: int, negatives: int, gaps: list[int], kind: str = "uint32") -> bytes:
    packed = encode_pack([np.array(gaps, dtype=kind)])
    return varint(positives) + varint(negatives) + varint(len(packed)) + packed


LAST = {
    "float16": 0x7BFF,
    "bfloat16": 0x7F7F,
    "float32": 0x7F7FFFFF,
    "float64": 0x7FEFFFFFFFFFFFFF,
}


@pytest.mark.parametrize("kind", sorted(LAST))
def test_the_largest_numbers_are_levels_and_infinity_is_none(kind):
    """On both sides the table reaches to the largest finite number and no further; a sum that overflows is refused as well."""
    width = 8 * dtypes.NUMPY[kind].itemsize
    last, word = LAST[kind], f"uint{width}"
    largest = decode_weight(table(1, 1, [last, last + 1], word), (2, 2), kind, None)
    values = largest.levels.astype(np.float64)
    assert values[1] == -values[0] == float(np.nextafter(np.array(np.inf, dtypes.NUMPY[kind]), np.array(0, dtypes.NUMPY[kind])))
    for gaps, sides in (([last + 1], (1, 0)), ([last + 2], (0, 1)), ([last, 2**width - last], (2, 0)), ([1, 0], (2, 0))):
        with pytest.raises(FormatError, match="do not ascend, or lead beyond"):
            decode_weight(table(*sides, gaps, word), (2, 2), kind, None)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (b"", "are left"),
        (table(0, 0, []), "there are none"),
        (varint(4) + varint(1), "at most 0"),
        (varint(5), "at most 4"),
        (table(1, 0, [5]) + encode_codes(2 * FOUR), "beyond its table of 1 levels"),
        (table(1, 0, [5]) + encode_codes(-FOUR), "beyond its table of 1 levels"),
        (table(0, 1, [5]) + encode_codes(FOUR), "beyond its table of 1 levels"),
        (table(1, 0, [5, 6]), "where at most 1 is allowed"),
        (table(2, 0, [5]), "do not end where its values do"),
        (table(1, 0, [5]) + encode_codes(FOUR) + b"\1\1\1\1\1\1\1\1\1", "do not end"),
    ],
    ids=str,
)
def test_each_rule_of_a_table(section, problem):
    """Each way a section of levels can break a rule is a FormatError that names it."""
    with pytest.raises(FormatError, match=problem):
        decode_weight(section, (2, 2), "float32", None)


@given(leveled(), st.data())
def test_a_changed_section_is_an_error_or_a_weight(tensor, data):
    """Any change of the bytes gives a FormatError or a weight of the shape asked for; nothing else."""
    section = bytearray(encode_weight(tensor))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(section)))
        section[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        found = decode_weight(bytes(section), tensor.shape, tensor.dtype, None)
    except FormatError:
        return
    assert found.values().shape == tensor.shape
    assert np.isfinite(found.values()).all()


def test_tied_weights_with_levels_are_stored_once():
    """Equal tables and codes share a section, but not over dtypes, whose words mean other numbers."""
    single = CompressedTensor(ONE, None, "float16", np.array([1.0], dtype=np.float16))
    other = CompressedTensor(ONE, None, "bfloat16", single.levels.view(dtypes.NUMPY["bfloat16"]))
    assert encode_weight(single) == encode_weight(other)
    assert len(sections_of(encode_file({"a": single, "b": single}, {}))) == 1
    assert len(sections_of(encode_file({"a": single, "b": other}, {}))) == 2


def test_a_table_has_no_more_levels_than_the_weight_has_elements():
    """Neither written nor read: a thousand tiny weights could each make a reader unpack a table of 65,536 levels."""
    levels = np.arange(1, 6, dtype=np.float32)
    with pytest.raises(WeightError, match="more levels than elements"):
        encode_weight(CompressedTensor(FOUR, None, "float32", levels))
    with pytest.raises(FormatError):
        decode_weight(table(5, 0, [1] * 5) + encode_codes(FOUR), (2, 2), "float32", None)
    decode_weight(table(4, 0, [1] * 4) + encode_codes(FOUR), (2, 2), "float32", None)
