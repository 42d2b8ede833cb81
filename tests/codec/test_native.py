"""The native module: bytes that every build must give, and the checks of its buffers.

`make portable` runs this for a build without the instructions of x86-64, which is what other processors compile.
"""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
import pytest

from opq.codec import _native


def random_numbers(count: int, seed: int) -> np.ndarray:
    """Numbers from 0 to 2^32 - 1 of a generator that is defined here, so that they do not depend on a library."""
    state, numbers = seed, np.empty(count, dtype=np.int64)
    for k in range(count):
        state = (6364136223846793005 * state + 1442695040888963407) % 2**64
        numbers[k] = state >> 32
    return numbers


def random_codes(count: int, limit: int, seed: int) -> np.ndarray:
    """Codes of magnitudes below `limit`, small ones most often: products of two random numbers."""
    numbers = random_numbers(2 * count, seed)
    magnitudes = (numbers[:count] * limit // 2**32) * numbers[count:] // 2**32
    return np.where(numbers[:count] % 2, magnitudes, -magnitudes).astype(np.int32)


@pytest.mark.parametrize(
    ("geometry", "limit", "raw_bits", "digest"),
    [
        ((33, 90, 1, 1), 4, 0, "6c11aa61af094cc8"),
        ((10, 300, 1, 1), 200, 2, "10ec32c7fe79f6f2"),
        ((9, 90, 1, 1), 2**24 - 1, 20, "fa0b9fec877a299d"),
        ((30, 21, 9, 3), 3, 0, "43d5cf0ef715b7ff"),
        ((30, 21, 9, 3), 6, 0, "655338b30d2c8e67"),
        ((31, 20, 9, 3), 60, 0, "633551c00754eae4"),
        ((31, 20, 9, 3), 600, 3, "6ad522c163681288"),
        ((13, 10, 9, 3), 2**24 - 1, 0, "6283b8e8ef1b06f0"),
        ((13, 17, 25, 5), 6, 0, "98b90434fff4d2f5"),
        ((7, 5, 49, 7), 15, 1, "a7bc88f44df37d87"),
        ((6, 5, 128, 128), 6, 0, "acc0254ad26c2475"),
        ((6, 5, 128, 16), 6, 0, "08ed0db79bd61e89"),
        ((40, 20, 4, 2), 4, 0, "960d8c285cde9232"),
        ((40, 20, 7, 1), 4, 0, "0ddd266a5ac3f76a"),
    ],
    ids=str,
)
def test_streams_of_random_codes_never_change(geometry, limit, raw_bits, digest):
    """The bytes of these random codes never change; three streams in a list are decoded to the same codes."""
    outputs, inputs, positions, _ = geometry
    codes = random_codes(outputs * inputs * positions, limit, seed=positions)
    first = raw_bits | 1 << 5
    stream = _native.encode_codes(codes.data, *geometry, first)
    assert hashlib.sha256(stream).hexdigest()[:16] == digest
    decoded = np.empty((3, codes.size), dtype=np.int32)
    assert _native.decode_codes([(stream, buffer.data, *geometry, first) for buffer in decoded], bytearray(8)) == 3
    assert (decoded == codes).all()


@pytest.mark.parametrize(("limit", "digest"), [(60, "d48db91eaed0c43c"), (2000, "f25aa9f35a965b66")])
def test_streams_of_random_planes_never_change(limit, digest):
    """The bytes of these byte planes never change, without a plane above and with one."""
    codes = random_codes(4000, limit, seed=limit)
    upper, lower = (codes >> 8).astype(np.uint8), codes.astype(np.uint8)
    streams = [_native.encode_plane(upper.data, b""), _native.encode_plane(lower.data, upper.data)]
    assert hashlib.sha256(b"".join(streams)).hexdigest()[:16] == digest
    for stream, above, plane in ((streams[0], b"", upper), (streams[1], upper.data, lower)):
        decoded = np.empty_like(plane)
        assert _native.decode_plane(stream, above, decoded.data)
        assert (decoded == plane).all()


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_codes_must_be_aligned(offset):
    """Codes that are not aligned to four bytes are a ValueError in both directions, and are not written to."""
    buffer = np.full(25, 7, dtype=np.int32).view(np.uint8)
    codes = buffer[offset : offset + 96].data
    with pytest.raises(ValueError, match="multiple of four"):
        _native.encode_codes(codes, 4, 6, 1, 1, 0)
    with pytest.raises(ValueError, match="multiple of four"):
        _native.decode_codes([(b"\1", codes, 4, 6, 1, 1, 0)], bytearray(8))
    assert (buffer.view(np.int32) == 7).all()


def test_checksums_are_those_of_zlib():
    """crc32 is zlib's for any number of bytes, at any address, after any bytes before."""
    data = random_numbers(1200, seed=3).astype(np.uint8).tobytes()
    for size in range(600):
        part = memoryview(data)[size % 37 : size % 37 + size]
        assert _native.crc32(part) == zlib.crc32(part)
        assert _native.crc32(part, zlib.crc32(data)) == zlib.crc32(part, zlib.crc32(data))


def _grid(rows=2, columns=3):
    """The arguments of a grid of elements, all of class 0, with the keys 0."""
    ends = np.arange(1, rows + 1) * columns
    zeros = (np.zeros(size, dtype=np.uint8).data for size in (rows, columns, 256))
    return np.zeros(rows * columns, dtype=np.uint8).data, ends.data, *zeros


_EIGHT, _SIX, _TABLE = np.zeros(8, dtype=np.int64), np.zeros(6, dtype=np.uint8), np.zeros(2**16)
_WRONG = {
    "words of another size": ("changed_bits", _EIGHT.data, _EIGHT[:7].data, 8),
    "no size of words": ("changed_bits", _EIGHT.data, _EIGHT.data, 3),
    "too few differences": ("subtract_words", _EIGHT.data, _EIGHT.data, 4, True, 0, _EIGHT.data),
    "too large a shift": ("subtract_words", _EIGHT.data, _EIGHT.data, 8, True, 64, _EIGHT.copy().data),
    "too small an output": ("add_words", _EIGHT.data, _EIGHT.data, 8, False, 0, _EIGHT[:4].copy().data),
    "too few symbols": ("difference_symbols", _EIGHT.data, bytearray(7)),
    "too few counts": ("count_differences", *_grid(), _SIX.data, bytearray(4)),
    "rows that end later": ("count_differences", bytes(5), *_grid()[1:], bytes(5), bytearray(4 * 766 * 256)),
    "no context": ("difference_contexts", *_grid(), 0, 0, bytearray(6), np.zeros(256, dtype=np.int64).data),
    "too few sums": ("sum_differences", *_grid(), _SIX.data, _TABLE.data, _EIGHT[:2].data, 1.0, bytearray(16), bytearray(8)),
    "places beyond the lines": ("sort_symbols", _SIX.data, np.full(256, 3).data, bytearray(6), bytearray(8), False),
    "a negative place": ("sort_symbols", _SIX.data, np.full(256, -1).data, bytearray(6), bytearray(8), True),
    "an unknown symbol": ("write_raw_bits", _EIGHT.data, bytes([151] * 8)),
    "an unknown symbol to read": ("read_raw_bits", bytes([151] * 8), b"", _EIGHT.copy().data),
    "numbers that would overflow": ("follow_trellis", np.full(4, 2**30, dtype=np.int32).data, 2),
    "numbers that fill no row": ("follow_trellis", np.zeros(4, dtype=np.int32).data, 3),
}


@pytest.mark.parametrize("call", _WRONG.values(), ids=_WRONG)
def test_buffers_of_differences_are_checked(call):
    """Buffers and numbers that do not fit each other are a ValueError in every function of differences."""
    name, *arguments = call
    with pytest.raises(ValueError, match=r"fit|symbol"):
        getattr(_native, name)(*arguments)
