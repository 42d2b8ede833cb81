"""Sections of weights: round trips, and the errors of sections that no writer produces."""

from __future__ import annotations

import numpy as np
import pytest
from codec_strategies import (
    CODES,
    WEIGHTS,
    encode_file,
    leveled,
    leveled_as,
    same_bits,
    same_codebooks,
    scaled,
    scaled_as,
    sections_of,
)
from hypothesis import given
from hypothesis import strategies as st

from opq import dtypes
from opq.codec.byte_planes import encode_pack
from opq.codec.byte_reader import varint
from opq.codec.code_stream import encode_codes
from opq.codec.entry import Entry
from opq.codec.section_choice import EncodedWeight
from opq.codec.weight_section import decode_pieces, decode_weight, encode_weight, entry_of, split
from opq.errors import FormatError, WeightError
from opq.quantization.codebook import LevelTable, ScaledCodebook, UniformCodebook

ONE = np.array([[1]], dtype=np.int32)
FOUR = np.ones((2, 2), dtype=np.int32)


@pytest.mark.slow
@given(leveled(CODES))
def test_levels_and_codes_come_back(tensor):
    """Levels come back bit for bit, used or not, and so do codes, for any dtype."""
    section = encode_weight(tensor).adaptive
    again = decode_weight(section, entry_of("w", tensor))
    assert same_bits(again.codebook.levels, tensor.codebook.levels)
    assert same_bits(again.codes, tensor.codes)
    ways = [encode_codes(tensor.codes, extra_raw_bits=bits) for bits in range(4)]
    assert split(section, entry_of("w", tensor))[1] == min(ways, key=len)


@given(WEIGHTS)
def test_sections_hold_any_weight(tensor):
    """A weight comes back from its section, in one piece or in several, and the number of nonzero codes is right."""
    encoded = encode_weight(tensor)
    section, nonzero = encoded.adaptive, encoded.nonzero
    entry = entry_of("w", tensor, 7)
    assert (entry.name, entry.shape, entry.dtype, entry.section) == ("w", tensor.shape, tensor.dtype, 7)
    storage = {LevelTable: "levels", UniformCodebook: "codes", ScaledCodebook: "scaled"}[type(tensor.codebook)]
    assert (entry.storage, entry.step) == (storage, getattr(tensor.codebook, "step", None))
    assert nonzero == tensor.num_kept == np.count_nonzero(tensor.codes)
    again = decode_weight(section, entry)
    assert same_bits(again.codes, tensor.codes)
    assert same_codebooks(again.codebook, tensor.codebook)
    assert again.trellis == (tensor.trellis and nonzero > 0)
    assert same_bits(again.values(), tensor.values())
    pieces = [piece.values().reshape(-1) for piece in decode_pieces(section, entry)]
    assert np.concatenate(pieces).tobytes() == tensor.values().tobytes()


@given(st.lists(st.floats(2.0**-20, 2.0**10, width=32), min_size=1, max_size=300, unique=True))
def test_a_table_is_not_larger_than_its_levels(values):
    """A table takes at most the bytes of its levels, and a few for each of four planes and the counts."""
    levels = np.sort(np.array(values, dtype=np.float32))
    tensor = leveled_as(np.zeros(len(levels), dtype=np.int32), levels)
    assert len(encode_weight(tensor).adaptive) <= levels.nbytes + 4 * 2 + 6


def table(positives: int, negatives: int, gaps: list[int], kind: str = "uint32") -> bytes:
    packed = encode_pack([np.array(gaps, dtype=kind)])
    return varint(positives) + varint(negatives) + varint(len(packed)) + packed


def decode(section: bytes, kind: str = "float32"):
    """The weight of four elements that a section of levels holds."""
    return decode_weight(section, Entry("w", (2, 2), kind, "levels", 0))


LAST = {
    "float16": 0x7BFF,
    "bfloat16": 0x7F7F,
    "float32": 0x7F7FFFFF,
    "float64": 0x7FEFFFFFFFFFFFFF,
}


@pytest.mark.parametrize("kind", sorted(LAST))
def test_levels_are_finite(kind):
    """The largest finite number of each sign is a level; infinity, and a sum of gaps that overflows, are refused."""
    width = 8 * dtypes.NUMPY[kind].itemsize
    last, word = LAST[kind], f"uint{width}"
    largest = decode(table(1, 1, [last, last + 1], word), kind)
    values = largest.codebook.levels.astype(np.float64)
    assert values[1] == -values[0] == float(np.nextafter(np.array(np.inf, dtypes.NUMPY[kind]), np.array(0, dtypes.NUMPY[kind])))
    for gaps, sides in (([last + 1], (1, 0)), ([last + 2], (0, 1)), ([last, 2**width - last], (2, 0)), ([1, 0], (2, 0))):
        with pytest.raises(FormatError, match="must be strictly ascending and finite"):
            decode(table(*sides, gaps, word), kind)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (b"", "are left"),
        (table(0, 0, []), "at least one level"),
        (varint(4) + varint(1), "at most 0"),
        (varint(5), "at most 4"),
        (table(1, 0, [5]) + encode_codes(2 * FOUR), "codes must lie in"),
        (table(1, 0, [5]) + encode_codes(-FOUR), "codes must lie in"),
        (table(0, 1, [5]) + encode_codes(FOUR), "codes must lie in"),
        (table(1, 0, [5, 6]), "must be at most 1, got"),
        (table(2, 0, [5]), "do not end with its"),
        (table(1, 0, [5]) + encode_codes(FOUR) + b"\1\1\1\1\1\1\1\1\1", "do not end"),
    ],
    ids=str,
)
def test_each_rule_of_a_table(section, problem):
    """A section of levels that breaks a rule is a FormatError that names the rule."""
    with pytest.raises(FormatError, match=problem):
        decode(section)


def scales(flags: int, values: list[int]) -> bytes:
    """The start of a section of scaled codes: which axes have scales, and these."""
    packed = encode_pack([np.array(values, dtype=np.uint8)])
    return bytes([flags]) + varint(len(packed)) + packed


def decode_scaled(section: bytes, step: float = 0.5):
    """The weight of two rows of three elements that a section of scaled codes holds."""
    return decode_weight(section, Entry("w", (2, 3), "float32", "scaled", 0, step))


def test_sections_of_scaled_codes_are_those_of_the_format():
    """The bytes are the axes, the packed scales plus 128, rows first, and a section of codes."""
    codes = np.array([[1, -2, 0], [3, 0, 1]], dtype=np.int32)
    for flags, rows, columns in ((1, [8, -3], None), (2, None, [0, 1, 127]), (3, [-127, 0], [5, 6, 7])):
        values = [scale + 128 for axis in (rows, columns) for scale in axis or ()]
        tensor = scaled_as(codes, 0.5, rows=rows, columns=columns)
        assert encode_weight(tensor) == EncodedWeight(scales(flags, values) + encode_codes(codes), None, 4)
        assert same_bits(decode_scaled(scales(flags, values) + encode_codes(codes)).values(), tensor.values())
    zeros = scaled_as(0 * codes, 0.5, rows=[1, 1])
    assert encode_weight(zeros) == EncodedWeight(scales(1, [129, 129]), None, 0)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (b"", "are left"),
        (scales(0, []), "must be 1, 2 or 3, got 0"),
        (scales(4, [129, 129]), "must be 1, 2 or 3, got 4"),
        (scales(1, [129]), "do not end with its"),
        (scales(1, [10, 200, 30]), "must be at most 2, got 3"),
        (scales(3, [129] * 3), "do not end with its"),
        (scales(1, [0, 129]), r"rows must lie in \[-127, 127\], got -128 to 1"),
        (scales(2, [129, 129, 0]), r"columns must lie in \[-127, 127\], got -128 to 1"),
        (scales(1, [128, 128]), "not all 0"),
        (scales(3, [129, 128, 128, 128, 128]), "not all 0"),
        (scales(1, [129, 129]) + b"\0", "do not end"),
    ],
    ids=str,
)
def test_each_rule_of_scales(section, problem):
    """A section of scaled codes that breaks a rule is a FormatError that names the rule."""
    with pytest.raises(FormatError, match=problem):
        decode_scaled(section)


@pytest.mark.parametrize(
    ("step", "values", "valid"),
    [
        (2.0**-126, [128, 129], True),
        (2.0**-126, [127, 129], False),
        (2.0**-127, [129, 136], False),
        (2.0**127, [135, 128], True),
        (2.0**127, [136, 128], False),
        (2.0**127 * 1.5, [120, 120], False),
        (2.0**-111, [8, 128], True),
        (2.0**-111, [7, 128], False),
    ],
)
def test_steps_stay_normal(step, values, valid):
    """The step of the header is from 2^-126 to 2^127, and those of the lowest and the highest scale are normal numbers."""
    section = scales(1, values) + encode_codes(np.ones((2, 3), dtype=np.int32))
    if valid:
        assert np.isfinite(decode_scaled(section, step).values()).all()
        return
    with pytest.raises(FormatError, match="must be normal float32"):
        decode_scaled(section, step)


@given(leveled() | scaled(), st.data())
def test_a_changed_section_is_an_error_or_a_weight(tensor, data):
    """Any change of the bytes gives a FormatError or a weight of the given shape, with levels a finite one."""
    section = bytearray(encode_weight(tensor).adaptive)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(section)))
        section[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        found = decode_weight(bytes(section), entry_of("w", tensor))
    except FormatError:
        return
    values = found.values()
    assert values.shape == tensor.shape
    assert isinstance(found.codebook, ScaledCodebook | UniformCodebook) or np.isfinite(values).all()


def test_tied_weights_with_levels_are_stored_once():
    """Equal tables and codes of one dtype share a section; those of other dtypes do not, as their words mean other numbers."""
    single = leveled_as(ONE, np.array([1.0], dtype=np.float16))
    other = leveled_as(ONE, single.codebook.levels.view(dtypes.NUMPY["bfloat16"]))
    assert encode_weight(single) == encode_weight(other)
    assert len(sections_of(encode_file({"a": single, "b": single}))) == 1
    assert len(sections_of(encode_file({"a": single, "b": other}))) == 2


def test_a_table_has_no_more_levels_than_the_weight_has_elements():
    """A larger table is neither written nor read, so that small weights cannot make a reader decode large tables."""
    levels = np.arange(1, 6, dtype=np.float32)
    with pytest.raises(WeightError, match="more levels than elements"):
        encode_weight(leveled_as(FOUR, levels))
    with pytest.raises(FormatError):
        decode(table(5, 0, [1] * 5) + encode_codes(FOUR))
    decode(table(4, 0, [1] * 4) + encode_codes(FOUR))
