"""Fast sections: static tables and interleaved rANS (docs/format.md, "Fast sections")."""

from __future__ import annotations

import numpy as np
import pytest
from codec_strategies import encode_file, leveled_as, on_trellis, scaled_as, stepped, trellised_as
from hypothesis import given, settings
from hypothesis import strategies as st
from thoroughness import examples

import opq.numpy
from opq.codec import _native, fast_tables, section_choice
from opq.codec.code_section import decode_batch, decode_codes, decode_pieces
from opq.codec.code_stream import StreamError, encode_codes
from opq.codec.fast_encoder import encode_fast
from opq.codec.fast_section import FastSection, is_fast
from opq.codec.file_reader import OpqFile
from opq.codec.file_writer import write
from opq.codec.section_choice import EncodedWeight, choose_sections
from opq.codec.verify import verify
from opq.codec.weight_section import split
from opq.errors import FormatError
from opq.quantization.compressed_tensor import CompressedTensor

SHAPES = st.sampled_from(
    [(4096,), (1, 5000), (2, 2100), (31, 140), (32, 128), (33, 130), (64, 65), (70, 9, 3, 3), (97, 50, 1, 1), (20, 2, 12, 11),
     (4200, 1), (130, 700), (40, 8200)]
)  # fmt: skip
WEIGHTS = st.builds(
    lambda shape, scale, spread, seed: ragged(shape, scale, spread, seed),
    SHAPES,
    st.sampled_from([0.02, 0.3, 2.0, 12.0]),
    st.sampled_from([0.0, 0.5, 1.5]),
    st.integers(0, 2**32 - 1),
)


def ragged(shape: tuple[int, ...], scale: float, spread: float, seed: int) -> np.ndarray:
    """Laplace codes whose rows differ in magnitude, and a few that are far from all others."""
    random = np.random.default_rng(seed)
    codes = random.laplace(0.0, scale, shape) * np.exp(spread * random.normal(size=(shape[0],) + (1,) * (len(shape) - 1)))
    codes = np.clip(np.rint(codes), -100, 120).astype(np.int32)
    flat = codes.reshape(-1)
    flat[random.integers(0, len(flat), 3)] = 1, random.integers(-(2**22), 2**22), 130
    return codes


def encode(codes: np.ndarray, *, trellis: bool = False) -> bytes:
    """The fast section of codes, which they must have."""
    flat = codes.reshape(-1)
    section = encode_fast(codes.shape, lambda start, stop: flat[start:stop], trellis=trellis)
    assert section is not None
    return section


@settings(deadline=None)
@given(WEIGHTS)
def test_codes_come_back(codes):
    """Codes come back from a fast section, whole and in pieces."""
    section = encode(codes)
    assert is_fast(section)
    assert np.array_equal(decode_codes(section, codes.shape), codes)
    assert np.array_equal(np.concatenate(list(decode_pieces(section, codes.shape))), codes.reshape(-1))


@examples(30)
@given(WEIGHTS.filter(lambda codes: codes[0].size > 1 or codes.ndim < 3))
def test_codes_of_a_trellis_come_back(indices):
    """Codes that follow a trellis come back; patches do not disturb the states of their rows."""
    if indices.ndim == 4 and indices.shape[1] > 2 and indices[0, 0].size > 1:
        indices = indices.reshape(len(indices), -1)
    codes = on_trellis(indices)
    section = encode(codes, trellis=True)
    assert section[0] == 63
    assert np.array_equal(decode_codes(section, codes.shape), codes)


@examples(30)
@given(WEIGHTS, st.data())
def test_rows_are_decoded_alone(codes, data):
    """Every index of axis 0 gives what NumPy gives of the whole weight, for every dtype."""
    kind = data.draw(st.sampled_from(["float16", "bfloat16", "float32", "float64"]))
    layout = write({"w": stepped(np.clip(codes, -100, 100), 0.01, kind)}, speed="fast")
    ends = st.none() | st.integers(-5000, 5000)
    index = data.draw(
        st.slices(codes.shape[0])
        | st.integers(0, codes.shape[0] - 1)
        | st.builds(slice, ends, ends, st.sampled_from([None, 1, 2, 37, -1, -3]))
    )
    whole = opq.numpy.load(b"".join(layout.pieces()))["w"]
    with OpqFile(b"".join(layout.pieces())) as file:
        assert file.direct("w") is not None
        reader = opq.codec.tensor_reader.TensorReader(file, lambda array: array)
        for chosen in (index, (index, ...)):
            found = reader.get_slice("w")[chosen]
            assert (found.shape, found.tobytes()) == (whole[chosen].shape, whole[chosen].tobytes())


def test_a_slice_decodes_only_its_streams(monkeypatch):
    """A row of a weight of many streams takes one of them, and a damaged stream does not harm rows of others."""
    codes = ragged((640, 8192), 1.0, 0.0, 1)
    layout = write({"w": stepped(codes)}, speed="fast")
    with OpqFile(b"".join(layout.pieces())) as file:
        direct = file.direct("w")
        decoded = []
        decode = FastSection.decode
        monkeypatch.setattr(
            FastSection, "decode", lambda self, block, *rest: (decoded.append(block.top), decode(self, block, *rest))
        )
        assert np.array_equal(direct.rows(100, 101)[0], codes[100])
        assert decoded == [96]
        assert np.array_equal(direct.rows(95, 97), codes[95:97])
        assert sorted(decoded[1:]) == [64, 96]


KINDS = {
    "codes": lambda codes: stepped(codes, 0.3),
    "levels": lambda codes: leveled_as(np.sign(codes), np.array([-2, 3], dtype=np.float16)),
    "rows": lambda codes: scaled_as(codes, 0.5, rows=[row % 40 - 20 for row in range(len(codes))]),
    "columns": lambda codes: scaled_as(codes, 0.5, rows=[3] * len(codes), columns=[-2] * codes[0].size),
    "trellis": lambda codes: trellised_as(codes, 0.5),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("speed", ["small", "balanced", "fast"])
def test_files_of_every_speed_have_the_same_values(kind, speed):
    """The speed changes no value; files are verified, and "fast" gives fast sections."""
    codes = ragged((120, 70), 1.5, 0.3, 7)
    weight = KINDS[kind](codes)
    data = b"".join(write({"w": weight, "tied": weight, "x": np.arange(3.0)}, speed=speed).pieces())
    values = opq.numpy.load(data)
    assert values["w"].tobytes() == values["tied"].tobytes() == weight.values().tobytes()
    assert not np.shares_memory(values["w"], values["tied"])
    assert verify(data).sections == 2
    with OpqFile(data) as file:
        assert isinstance(file["w"], CompressedTensor)
        assert np.array_equal(file["w"].codes, weight.codes)
        assert file["w"].trellis == weight.trellis
        assert dict(file.weights())["w"].values().tobytes() == weight.values().tobytes()
        assert np.array_equal(np.concatenate([piece.codes for piece in file.pieces("w")]), weight.codes)
        if speed == "fast":
            assert is_fast(split(file.section(file.entry("w").section), file.entry("w"))[1])


def test_speeds_bound_the_growth():
    """Small sections never grow, balanced ones by at most 0.5%; kernels that predict each other stay adaptive."""
    smooth = np.cumsum(ragged((80, 30, 3, 3), 0.7, 0.0, 3), axis=-1, dtype=np.int32) // 2
    matrix = ragged((400, 500), 2.0, 0.0, 3)
    for codes in (smooth, matrix):
        sizes = {speed: sum(map(len, write({"w": stepped(codes)}, speed=speed).sections)) for speed in section_choice.GROWTH}
        adaptive = len(encode_codes(codes))
        assert sizes["small"] <= adaptive
        assert sizes["balanced"] <= 1.005 * adaptive
        assert sizes["fast"] == len(encode(codes))
    assert is_fast(write({"w": stepped(matrix)}).sections[0])
    assert not is_fast(write({"w": stepped(smooth)}).sections[0])


@given(
    st.lists(st.tuples(st.integers(1, 400), st.none() | st.integers(1, 500)), min_size=1, max_size=8),
    st.sampled_from(list(section_choice.GROWTH)),
    st.randoms(),
)
def test_sections_grow_within_the_bound_of_all(sizes, speed, random):
    """All chosen sections together, equal ones once, grow by at most the bound; the order of the weights changes nothing."""
    weights = [
        EncodedWeight(bytes([len(str(small))]) * small, None if fast is None else b"f" * fast, 0)
        for small, fast in dict(sizes).items()
    ]
    chosen = choose_sections(weights, [0] * len(weights), speed)
    assert sum(map(len, chosen)) <= (1 + section_choice.GROWTH[speed][1]) * sum(len(weight.adaptive) for weight in weights)
    shuffled = random.sample(range(len(weights)), len(weights))
    again = choose_sections([weights[k] for k in shuffled], [0] * len(weights), speed)
    assert again == [chosen[k] for k in shuffled]
    assert choose_sections(weights * 2, [0] * (2 * len(weights)), speed) == chosen * 2
    if speed == "small":
        assert all(len(part) <= len(weight.adaptive) for part, weight in zip(chosen, weights, strict=True))
    if speed == "fast":
        assert chosen == [weight.adaptive if weight.fast is None else weight.fast for weight in weights]


def test_contexts_follow_rows_and_columns():
    """Contexts save what rows and columns of different magnitudes are worth: at least 5% here."""
    random = np.random.default_rng(0)
    scales = np.exp(random.normal(0, 0.7, (300, 1)) + random.normal(0, 0.7, (1, 400)))
    codes = np.rint(random.laplace(0, 1.5, (300, 400)) * scales).astype(np.int32)
    shuffled = random.permutation(codes.reshape(-1)).reshape(codes.shape)
    assert len(encode(codes)) < 0.95 * len(encode(shuffled))


def test_codes_that_do_not_fit_have_no_fast_section():
    """Zeros, few codes, and codes of which more than one in 64 is beyond a byte have none."""
    for codes in (np.zeros((64, 64)), np.ones((63, 64)), np.arange(4096) * 300):
        flat = codes.astype(np.int32).reshape(-1)
        assert encode_fast(codes.shape, lambda start, stop, flat=flat: flat[start:stop]) is None


@examples(30)
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=256).filter(any))
def test_shares_are_near_frequencies(counts):
    """Shares sum to 4096, are positive where a symbol occurs, and cost at most 1% and 0.05 bits more than the entropy."""
    array = np.array([counts], dtype=np.uint32)
    shares = fast_tables.shares_of(fast_tables.table_bytes(array))
    assert shares.sum() == fast_tables.SHARES
    assert (shares[0, : len(counts)][array[0] > 0] > 0).all()
    used = array[0][array[0] > 0] / array.sum()
    entropy = -float(used @ np.log2(used))
    mean_bits = fast_tables.symbol_bits(np.pad(array, ((0, 0), (0, 256 - len(counts)))), shares).sum() / 4096 / array.sum()
    assert mean_bits <= 1.01 * entropy + 0.05


CODES = ragged((70, 64), 1.5, 0.3, 11)


@examples(300)
@given(st.data())
def test_damaged_sections_are_refused_or_read(data):
    """A section with changed bytes, cut off or with more bytes, is a FormatError, or gives codes of its shape."""
    codes = data.draw(st.sampled_from([CODES, on_trellis(CODES)]))
    section = bytearray(encode(codes, trellis=codes is not CODES))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 200) | st.integers(0, len(section) - 1))
        section[at % len(section)] = data.draw(st.integers(0, 255))
    end = data.draw(st.just(len(section)) | st.integers(0, len(section)))
    try:
        found = decode_codes(bytes(section[:end]) + data.draw(st.binary(max_size=4)), codes.shape)
    except FormatError:
        return
    assert found.shape == codes.shape
    assert np.abs(found).max() < 2**24


def with_bytes(at: int, *values: int) -> bytes:
    """The section of CODES with other bytes at a position."""
    section = bytearray(encode(CODES))
    section[at : at + len(values)] = values
    return bytes(section)


@pytest.mark.parametrize(
    ("section", "shape", "problem"),
    [
        (with_bytes(0, 95), (70, 64), "first byte of a fast section must be 31 or 63, got 95"),
        (with_bytes(0, 63), (10, 50, 3, 3), "with kernels cannot follow the trellis"),
        (with_bytes(1, 129), (70, 64), "range of symbols"),
        (with_bytes(2, 0), (70, 64), "range of symbols"),
        (with_bytes(1, 0, 128), (70, 64), "range of symbols"),
        (with_bytes(3, 1), (70, 64), "at most 1 contexts of 4,480 elements, got 2"),
        (encode(CODES), (4095,), "at most 0 contexts of 4,095 elements"),
        (encode(CODES)[:-2], (70, 64), "do not end"),
        (encode(CODES) + b"\0\0", (70, 64), "do not end"),
        (encode(CODES)[:3], (70, 64), "are left"),
    ],
    ids=["first", "kernels", "below", "one symbol", "above", "contexts", "elements", "cut off", "longer", "no tables"],
)
def test_each_rule_of_a_section(section, shape, problem):
    """A section that breaks a rule is a FormatError that names the rule."""
    with pytest.raises(FormatError, match=problem):
        decode_codes(section, shape)


def test_a_damaged_section_among_others_is_named():
    """The error has the number of the damaged section, whatever the kinds of the others."""
    good = [(encode_codes(CODES), CODES.shape), (encode(CODES), CODES.shape)]
    bad = [(encode(CODES)[:-2], CODES.shape), (encode_codes(CODES) + b"\1" * 9, CODES.shape)]
    for number, part in ((2, bad[0]), (0, bad[1]), (1, bad[0])):
        parts = [*good * 2]
        parts[number] = part
        with pytest.raises(StreamError) as error:
            decode_batch(parts)
        assert error.value.number == number


def matrix_arguments(**changed):
    """Arguments of the native functions for a matrix of 40 x 3 in one context."""
    given = {
        "rows": 40, "columns": 3, "row_classes": bytes(40), "column_classes": bytes(3), "contexts": 1, "base": 0, "trellis": 0,
        "lowest": 0,
    }  # fmt: skip
    return (given | changed).values()


@pytest.mark.parametrize(
    "changed",
    [
        {"rows": 0}, {"rows": 41},
        {"columns": 2**62}, {"row_classes": bytes(39)}, {"column_classes": bytes(4)}, {"contexts": 0},
        {"contexts": 17}, {"base": -1}, {"base": 256}, {"contexts": 2}, {"trellis": 1},
    ],
    ids=str,
)  # fmt: skip
def test_the_native_module_checks_its_arguments(changed):
    """Sizes that do not fit each other are a ValueError in all three functions."""
    matrix = list(matrix_arguments(**changed))
    symbols, shares = bytes(120), np.full((1, 256), 16, dtype=np.uint16)
    tables = fast_tables.decoding_tables(shares)
    stream = _native.fast_encode(*matrix_arguments(), symbols, shares.data)
    values, output = np.arange(256, dtype=np.int32), np.empty(120, dtype=np.int32)
    assert _native.fast_decode(*matrix_arguments(), stream, tables.data, values.data, 4, bytes(40), output.data)
    with pytest.raises(ValueError, match="fit"):
        _native.fast_encode(*matrix, symbols, shares.data)
    with pytest.raises(ValueError, match="fit"):
        _native.fast_decode(*matrix, stream, tables.data, values.data, 4, bytes(40), output.data)
    with pytest.raises(ValueError, match="fit"):
        _native.fast_count(*matrix, symbols, np.zeros(256, dtype=np.uint32).data)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("shape", [(1, 130), (33, 31), (64, 32), (70, 100)])
def test_values_of_every_size_are_written(kind, shape):
    """Symbols become values of 1, 2, 4 or 8 bytes, in whole tiles and in the rest; other sizes are a ValueError."""
    symbols = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    shares = np.full((1, 256), 16, dtype=np.uint16)
    matrix = (*shape, bytes(shape[0]), bytes(shape[1]), 1, 0, 0, 0)
    stream = _native.fast_encode(*matrix, symbols.reshape(-1).data, shares.data)
    values, output = (np.arange(512) - 77).astype(kind), np.empty(symbols.size, dtype=kind)
    raw, size, sets = values.view(np.uint8).data, values.itemsize, np.arange(shape[0]).astype(np.uint8) % 2
    tables = fast_tables.decoding_tables(shares).data
    assert _native.fast_decode(*matrix, stream, tables, raw, size, sets.data, output.view(np.uint8).data)
    assert np.array_equal(output.reshape(shape), values.reshape(2, 256)[sets[:, None], symbols])
    for wrong in (
        (raw, size, bytes(shape[0] + 1)),
        (raw, size, bytes([2] * shape[0])),
        (raw, 3, sets.data),
        (raw[1:], size, sets.data),
    ):
        with pytest.raises(ValueError, match="fit the output"):
            _native.fast_decode(*matrix, stream, tables, *wrong, output.view(np.uint8).data)


def test_tables_are_those_of_their_shares():
    """An entry has its share, its place in it, and its symbol; shares that do not sum to 4096 are a ValueError."""
    shares = np.zeros((2, 256), dtype=np.uint16)
    shares[0, [3, 200]], shares[1, 7] = (1000, 3096), 4096
    tables = fast_tables.decoding_tables(shares).reshape(2, 4096)
    assert tables[0, 999] == 999 | 999 << 12 | 3 << 24
    assert tables[0, 1000] == 3095 | 0 << 12 | 200 << 24
    assert tables[1, 4095] == 4095 | 4095 << 12 | 7 << 24
    for wrong in (4095, 4097):
        shares[1, 7] = wrong
        with pytest.raises(ValueError, match="do not fit"):
            fast_tables.decoding_tables(shares)


def test_a_symbol_without_a_share_is_refused():
    """Encoding a symbol that the table does not have is a ValueError."""
    shares = np.zeros((1, 256), dtype=np.uint16)
    shares[0, 0] = 4096
    with pytest.raises(ValueError, match="no share"):
        _native.fast_encode(*matrix_arguments(), bytes([1]) * 120, shares.data)


def test_loaded_weights_own_their_memory():
    """Loading a fast section gives an array that owns its memory, so that it can become a tensor without a copy."""
    data = encode_file({"w": stepped(CODES)})
    assert opq.numpy.load(data)["w"].flags.owndata
