"""Auxiliary tensors to byte planes and back, bit for bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from codec_strategies import AUXILIARY, SHAPES_WITH_EMPTY, bit_patterns, same_bits
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy
from thoroughness import examples

from opq import dtypes
from opq.codec import _native
from opq.codec.byte_planes import decode_pack, encode_fast_pack, encode_pack, estimate_pack
from opq.codec.byte_reader import varint
from opq.errors import FormatError

KINDS = sorted(dtypes.NUMPY)


def there_and_back(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return decode_pack(encode_pack(arrays), [array.shape for array in arrays], [array.dtype for array in arrays])


@given(st.lists(AUXILIARY, max_size=6))
def test_packs_come_back_bit_for_bit(arrays):
    """Tensors of any dtypes and shapes, also empty ones and scalars, come back in order with every bit."""
    decoded = there_and_back(arrays)
    assert len(decoded) == len(arrays)
    assert all(map(same_bits, decoded, arrays))


@pytest.mark.parametrize("name", KINDS)
@examples(20)
@given(st.data())
def test_each_dtype_comes_back_bit_for_bit(name, data):
    """A tensor of each dtype of the format comes back with every bit."""
    array = data.draw(bit_patterns(dtypes.NUMPY[name]))
    assert same_bits(there_and_back([array])[0], array)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("float16", [0x8000, 0x7C00, 0xFC00, 0x7E01, 0xFE00, 0x7C01, 0x0001, 0x7BFF]),
        ("bfloat16", [0x8000, 0x7F80, 0xFF80, 0x7FC1, 0xFFC0, 0x7F81, 0x0001, 0x7F7F]),
        ("float32", [0x80000000, 0x7F800000, 0xFF800000, 0x7FC12345, 0xFFC00000, 0x7F800001, 1, 0x7F7FFFFF]),
        ("float64", [1 << 63, 0x7FF << 52, 0xFFF << 52, (0x7FF8 << 48) + 5, 0xFFF8 << 48, (0x7FF << 52) + 1, 1]),
        ("float8_e4m3fn", [0x80, 0x7F, 0xFF, 0x7E, 0x01]),
        ("float8_e5m2", [0x80, 0x7C, 0xFC, 0x7D, 0x7E, 0xFF, 0x01]),
    ],
)
def test_special_floats_come_back(name, words):
    """Negative zero, infinities, NaNs with their payloads and subnormal numbers keep their bits."""
    kind = dtypes.NUMPY[name]
    array = np.array(words, dtype=f"u{kind.itemsize}").view(kind)
    assert same_bits(there_and_back([array])[0], array)


@pytest.mark.parametrize("name", KINDS)
def test_large_and_constant_tensors_come_back(name):
    """Coded, uncoded and constant planes of tens of thousands of elements come back."""
    kind = dtypes.NUMPY[name]
    rng = np.random.default_rng(0)
    for high in (1, 2, 3, 256):
        raw = rng.integers(0, high, 20_000 * kind.itemsize)
        array = (raw % (2 if name == "bool" else 2 ** min(dtypes.BITS[name], 8))).astype(np.uint8).view(kind).reshape(100, 200)
        assert same_bits(there_and_back([array])[0], array)


@given(bit_patterns(dtypes.NUMPY["float32"]), st.randoms(use_true_random=False))
def test_strides_make_no_difference(array, random):
    """Tensors of other memory orders and strides are stored as their row-major copies."""
    axes = list(range(array.ndim))
    random.shuffle(axes)
    for view in (
        array.transpose(axes),
        np.repeat(array.reshape(-1), 2)[::2],
        np.asfortranarray(array),
        array.reshape(-1)[::-1],
    ):
        copy = np.ascontiguousarray(view).reshape(view.shape)
        assert encode_pack([view]) == encode_pack([copy])
        assert same_bits(there_and_back([view])[0], copy)


@pytest.mark.parametrize("name", ["float16", "float32", "float64", "int64", "complex64"])
def test_alignment_makes_no_difference(name):
    """An array at an odd address, as a file that was read whole has them, gives the bytes of an aligned one."""
    kind = dtypes.NUMPY[name]
    aligned = np.arange(40).astype(kind)
    odd = np.frombuffer(bytes(1) + aligned.tobytes(), np.uint8)[1:].view(kind)
    assert encode_pack([odd]) == encode_pack([aligned])
    assert encode_fast_pack([odd]) == encode_fast_pack([aligned])


@pytest.mark.parametrize("name", ["uint16", "float32", "float64", "complex64", "complex128"])
def test_byte_order_makes_no_difference(name):
    """Values of the other byte order are stored as the same values in native order."""
    array = np.arange(1, 100).astype(dtypes.NUMPY[name])
    assert encode_pack([array.astype(array.dtype.newbyteorder())]) == encode_pack([array])


@given(st.lists(AUXILIARY, max_size=4))
def test_arguments_are_not_changed(arrays):
    """Encoding does not write to its arguments, and accepts read-only arrays."""
    before = [array.tobytes() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    encode_pack(arrays)
    assert [array.tobytes() for array in arrays] == before


@given(st.lists(bit_patterns(np.dtype(np.uint8)), max_size=5))
def test_an_incompressible_plane_takes_one_byte_more(arrays):
    """A plane of few bytes takes at most one byte more than these."""
    count = sum(array.size for array in arrays)
    assert len(encode_pack(arrays)) <= count + (count > 0) + (count > 127)


@given(hypothesis_numpy.arrays(np.uint16, st.integers(1, 60), elements=st.integers(0, 1000), fill=st.just(3)))
def test_planes_are_those_of_the_format(array):
    """A plane, highest first, is a length and a stream if bytes repeat and that is shorter; else it is its bytes."""
    high, low = (array >> 8).astype(np.uint8).tobytes(), (array & 255).astype(np.uint8).tobytes()
    expected = b""
    for plane, above in ((high, b""), (low, high)):
        stream = _native.encode_plane(plane, above)
        meet = sum(plane.count(bytes([value])) ** 2 for value in range(256))
        chosen = stream if 256 * meet > len(plane) ** 2 + 512 * len(plane) and len(stream) < len(plane) else plane
        expected += bytes([len(chosen)]) + chosen
    assert encode_pack([array]) == expected


@given(st.lists(AUXILIARY, max_size=6))
def test_the_estimate_of_small_packs_is_within_their_bytes(arrays):
    """The estimate of a pack is at most its dense bytes and four per plane."""
    planes = sum({array.dtype.itemsize for array in arrays if array.size})
    assert 0 <= estimate_pack(arrays) <= sum(array.nbytes for array in arrays) + 5 * planes


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0])
def test_the_estimate_is_close(scale):
    """The estimate is within 3% for tensors as networks have them."""
    rng = np.random.default_rng(5)
    arrays = [rng.normal(1.0, scale, 5000).astype(np.float32), np.full(50, 77, dtype=np.int64)]
    assert estimate_pack(arrays) == pytest.approx(len(encode_pack(arrays)), rel=0.03, abs=60)


def test_usual_tensors_get_smaller():
    """Trained values, equal exponents and counters take less than their dense bytes."""
    rng = np.random.default_rng(2)
    variance = rng.uniform(0.5, 2.0, 4096).astype(np.float32)
    assert len(encode_pack([variance])) < 0.8 * variance.nbytes
    counters = np.full(100, 123_456, dtype=np.int64)
    assert len(encode_pack([counters])) < 100


def test_the_plane_above_is_context():
    """A byte that depends on the one above it takes at most two thirds of its bytes without that context."""
    high = np.random.default_rng(0).integers(0, 16, 20_000).astype(np.uint16)
    low = high * 37 % 256
    both, alone, below = (len(encode_pack([array])) for array in (high << 8 | low, high << 8, low))
    assert both - alone < 2 / 3 * below


def test_threads_make_no_difference():
    """Eight threads that encode and decode the same tensors give what one thread gives."""
    arrays = [np.random.default_rng(k).normal(size=3000 + k).astype(np.float32) for k in range(4)]
    packs = [encode_pack([array]) for array in arrays]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda array: encode_pack([array]), arrays * 4)) == packs * 4
        assert all(pool.map(lambda array: same_bits(there_and_back([array])[0], array), arrays * 4))


@given(SHAPES_WITH_EMPTY.filter(lambda shape: 0 in shape))
def test_empty_tensors_take_no_bytes(shape):
    """A pack of empty tensors has no bytes, and they come back with their shapes."""
    array = np.zeros(shape, dtype=np.float32)
    assert encode_pack([array, array]) == b""
    assert same_bits(there_and_back([array])[0], array)


@given(st.lists(AUXILIARY, min_size=1, max_size=3), st.data())
def test_a_damaged_pack_is_an_error_or_tensors(arrays, data):
    """Any change of a pack gives a FormatError or tensors of the same shapes and dtypes."""
    pack = bytearray(encode_pack(arrays))
    for _ in range(data.draw(st.integers(1, 3)) if pack else 0):
        pack[data.draw(st.integers(0, len(pack) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_pack(bytes(pack), [array.shape for array in arrays], [array.dtype for array in arrays])
    except FormatError:
        return
    for got, array in zip(decoded, arrays, strict=True):
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
        assert array.dtype != np.bool_ or got.view(np.uint8).max(initial=0) <= 1


@pytest.mark.slow
@given(st.lists(AUXILIARY, min_size=1, max_size=3), st.binary(min_size=1, max_size=5), st.data())
def test_a_pack_of_another_length_is_an_error(arrays, tail, data):
    """A pack that is cut off or continued is a FormatError."""
    pack = encode_pack(arrays)
    shapes, kinds = [array.shape for array in arrays], [array.dtype for array in arrays]
    with pytest.raises(FormatError):
        decode_pack(pack + tail, shapes, kinds)
    if pack:
        with pytest.raises(FormatError):
            decode_pack(pack[: data.draw(st.integers(0, len(pack) - 1))], shapes, kinds)


@pytest.mark.parametrize(
    ("pack", "problem"),
    [
        (b"", "are left"),
        (varint(4) + b"abc", "are left"),
        (varint(4) + b"abcde", "too many"),
        (varint(5) + b"abcde", "at most 4"),
        (varint(2**63 - 1), "at most 4"),
        (b"\x84\0abcd", "shortest"),
        (varint(2) + b"a", "are left"),
        (varint(2) + b"a\0", "do not end"),
        (varint(2) + b"abc", "do not end"),
    ],
)
def test_each_rule_of_a_plane(pack, problem):
    """A plane that breaks a rule is a FormatError that names the rule."""
    with pytest.raises(FormatError, match=problem):
        decode_pack(pack, [(4,)], [np.dtype(np.uint8)])


def test_data_longer_than_their_plane_are_refused():
    """A stream that continues after the last byte of its plane is refused."""
    stream = _native.encode_plane(bytes(100), b"")
    decode_pack(varint(len(stream)) + stream, [(100,)], [np.dtype(np.uint8)])
    with pytest.raises(FormatError, match="do not end"):
        decode_pack(varint(40) + stream + b"\1" * (40 - len(stream)), [(100,)], [np.dtype(np.uint8)])


def test_a_bool_is_0_or_1():
    """A bool of another byte is a FormatError, since arrays of such bools behave unpredictably."""
    with pytest.raises(FormatError, match="bool"):
        decode_pack(varint(3) + b"\0\1\2", [(3,)], [np.dtype(np.bool_)])


@pytest.mark.parametrize(
    ("array", "pack"),
    [
        (np.array([7, 7, 7], dtype=np.uint8), "02f8da"),
        (np.array([1, 2, 3], dtype=np.uint8), "03010203"),
        (np.array(1.0, dtype=np.float32), "017f" "0100" "0100" "0100"),
        (np.array(-1.0, dtype=np.float32), "017f" "0100" "0100" "0101"),
        (np.array([258, 259], dtype=np.int16), "020101" "020203"),
        (np.array([1 + 2j], dtype=np.complex64), "0140" "0100" "0100" "0100" "013f" "0180" "0100" "0100"),
        (np.zeros(40, dtype=np.uint8), "03fffef8"),
        (np.full(40, 3, dtype=np.uint16), "03fffef8" "04fcec3d80"),
    ],
)  # fmt: skip
def test_bytes_of_packs(array, pack):
    """The bytes of these packs never change."""
    assert encode_pack([array]).hex() == pack


@pytest.mark.parametrize("name", KINDS)
def test_estimates_are_near(name):
    """The estimate of a pack is within a fifth and 40 bytes of its size, for every dtype."""
    array = (np.arange(400) % 2 ** min(dtypes.BITS[name], 8) % (2 if name == "bool" else 256)).astype(dtypes.NUMPY[name])
    size = len(encode_pack([array]))
    assert abs(estimate_pack([array]) - size) <= 0.2 * size + 40
