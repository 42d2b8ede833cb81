"""Fast planes: bytes by static tables, in blocks that are decoded alone (docs/format.md, "Fast planes")."""

from __future__ import annotations

import hashlib
from contextlib import suppress

import ml_dtypes
import numpy as np
import pytest
from codec_strategies import same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from thoroughness import examples

from opq import dtypes
from opq.codec import _native, fast_planes, section_choice
from opq.codec.byte_planes import decode_pack, encode_fast_pack, encode_pack, is_fast_pack
from opq.codec.byte_reader import ByteReader, varint
from opq.codec.fast_planes import BLOCK, FEWEST
from opq.codec.file_reader import OpqFile
from opq.codec.file_writer import pack_auxiliary, write
from opq.codec.section_choice import choose_pack
from opq.codec.verify import verify
from opq.errors import FormatError

SIZES = st.sampled_from([FEWEST, 4097, 4127, 5000, 2**16 + 31, BLOCK, BLOCK + 1, BLOCK + 31, BLOCK + 255, 2 * BLOCK + 300])


def drawn(size: int, spread: float, drift: float, seed: int) -> np.ndarray:
    """Bytes around a mean that walks, all equal for spread = drift = 0."""
    random = np.random.default_rng(seed)
    means = 100 + np.cumsum(drift * random.normal(size=size // 256 + 1))
    return np.clip(np.rint(np.repeat(means, 256)[:size] + spread * random.normal(size=size)), 0, 255).astype(np.uint8)


PLANES = st.builds(
    drawn,
    SIZES,
    st.sampled_from([0.0, 0.01, 0.6, 3.0, 20.0, 500.0]),
    st.sampled_from([0.0, 0.5, 9.0]),
    st.integers(0, 2**32 - 1),
)


def encode(plane: np.ndarray) -> list[bytes]:
    """The blocks of a plane."""
    pieces = [plane[start : start + fast_planes.PIECE] for start in range(0, len(plane), fast_planes.PIECE)]
    return [bytes(block) for piece in pieces for block in fast_planes.encode_blocks(piece)]


def decode(blocks: list[bytes], size: int) -> np.ndarray:
    """The bytes of blocks."""
    plane = np.empty(size, dtype=np.uint8)
    for number, block in enumerate(blocks):
        fast_planes.merge([block], False, plane[number * BLOCK : (number + 1) * BLOCK], "plane")
    return plane


@examples(60)
@given(PLANES)
def test_bytes_come_back(plane):
    """Bytes of any spread come back from their blocks, none of which is longer than its bytes."""
    blocks = encode(plane)
    assert all(0 < len(block) <= min(BLOCK, len(plane) - number * BLOCK) for number, block in enumerate(blocks))
    assert np.array_equal(decode(blocks, len(plane)), plane)


@examples(30)
@given(st.lists(st.sampled_from(sorted(dtypes.NUMPY)), min_size=1, max_size=4, unique=True), SIZES, st.integers(0, 2**32 - 1))
def test_packs_come_back_bit_for_bit(kinds, size, seed):
    """Tensors of any dtypes come back in order from a fast pack, where floats and integers of a size share planes."""
    random = np.random.default_rng(seed)
    arrays = []
    for kind in kinds:
        low = random.integers(0, 3, size * dtypes.NUMPY[kind].itemsize, dtype=np.uint8)
        arrays.append((low % 2 if kind == "bool" else low).view(dtypes.NUMPY[kind]))
    pack = encode_fast_pack(arrays)
    assert pack is not None
    assert is_fast_pack(pack, [(array.size, array.dtype) for array in arrays])
    assert not is_fast_pack(encode_pack(arrays), [(array.size, array.dtype) for array in arrays])
    found = decode_pack(pack, [array.shape for array in arrays], [array.dtype for array in arrays])
    assert all(map(same_bits, found, arrays))


def test_every_bit_of_floats_comes_back():
    """All words of 16 bits, NaNs of every payload among them, and words of 32 bits with special exponents."""
    for kind in (np.float16, ml_dtypes.bfloat16):
        array = np.concatenate([np.arange(2**16), np.full(2**17, 0x3C00)]).astype(np.uint16).view(kind)
        pack = encode_fast_pack([array])
        assert pack is not None
        assert same_bits(decode_pack(pack, [array.shape], [array.dtype])[0], array)
    words = np.random.default_rng(0).integers(0, 2**32, 9000, dtype=np.uint32)
    array = np.where(words % 3 == 0, words, words & 0x80FFFFFF | 0x3F000000).astype(np.uint32).view(np.float32)
    pack = encode_fast_pack([array])
    assert pack is not None
    assert same_bits(decode_pack(pack, [array.shape], [array.dtype])[0], array)


def test_a_block_is_decoded_from_its_bytes_alone():
    """A damaged block does not change the others."""
    plane = drawn(3 * BLOCK, 3.0, 0.5, 1)
    blocks = encode(plane)
    blocks[1] = bytes(len(blocks[1]))
    found = np.empty(BLOCK, dtype=np.uint8)
    with pytest.raises(FormatError):
        fast_planes.merge([blocks[1]], False, found, "plane")
    fast_planes.merge([blocks[2]], False, found, "plane")
    assert np.array_equal(found, plane[2 * BLOCK :])


def test_groups_have_tables_of_their_own():
    """Bytes whose mean differs between groups take fewer bytes than those of one table, and at most eight tables are used."""
    steps = np.random.default_rng(0).integers(0, 8, BLOCK // 256)
    plane = (np.repeat(8 * steps, 256) + np.random.default_rng(1).integers(0, 6, BLOCK)).astype(np.uint8)
    (block,) = encode(plane)
    assert block[2] == 7
    assert len(block) < 0.72 * len(encode(np.random.default_rng(2).permutation(plane))[0])


@pytest.mark.parametrize(
    ("spread", "drift", "size", "digest"),
    [
        (0.6, 0.0, 5000, "c5e4d6c71a216264"),
        (3.0, 0.5, BLOCK + 77, "69e3869214fbf9b1"),
        (20.0, 9.0, BLOCK, "18f55e36b7e26265"),
        (0.0, 9.0, 2**16, "4d336a972f28c8b5"),
    ],
)
def test_blocks_never_change(spread, drift, size, digest):
    """The bytes of these blocks never change, on any machine."""
    numbers = np.frombuffer(hashlib.shake_256(b"blocks").digest(2 * size), "<u2").astype(np.int64)
    folded = (numbers % 64 * (numbers // 64 % 64) // 64 * int(4 * spread)) // 64
    walk = np.repeat(np.arange(size // 256 + 1) * int(2 * drift) % 61, 256)[:size]
    plane = (folded + walk).astype(np.uint8)
    assert hashlib.sha256(b"".join(encode(plane))).hexdigest()[:16] == digest


def test_reading_stays_within_the_blocks():
    """A block that is cut off, or continued, is a FormatError, at any place of a short one."""
    plane = drawn(FEWEST, 0.6, 2.0, 3)
    (block,) = encode(plane)
    words = np.empty(FEWEST, dtype=np.uint8)
    for length in range(len(block)):
        if length != 1:  # that is a block of equal bytes
            with pytest.raises(FormatError):
                fast_planes.merge([block[:length]], False, words, "plane")
    with pytest.raises(FormatError):
        fast_planes.merge([block + b"\0\0"], False, words, "plane")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_block_is_an_error_or_bytes(changes):
    """Any change of a block gives a FormatError or bytes."""
    block = bytearray(encode(drawn(FEWEST, 0.6, 2.0, 4))[0])
    for at, value in changes:
        block[at % len(block)] = value
    words = np.empty(FEWEST, dtype=np.uint8)
    with suppress(FormatError):
        fast_planes.merge([bytes(block)], False, words, "plane")


def test_adaptive_planes_may_follow_fast_ones():
    """A reader accepts a pack whose first plane is fast and whose second one is adaptive, with the first as its context."""
    words = (drawn(BLOCK + 999, 0.6, 0.5, 5).astype(np.uint16) << 8) | 3
    high, low = (words >> 8).astype(np.uint8), words.astype(np.uint8)
    blocks = encode(high)
    stream = _native.encode_plane(low.data, high.data)
    head = [varint(len(words) + 1), *(varint(len(block)) for block in blocks)]
    pack = b"".join([*head, *blocks, varint(len(stream)), stream])
    assert same_bits(decode_pack(pack, [words.shape], [words.dtype])[0], words)


@pytest.mark.parametrize("speed", ["small", "balanced", "fast"])
def test_files_pass_verification(speed):
    """A file of any speed passes `verify`, and comes back."""
    random = np.random.default_rng(0)
    arrays = {"a": random.normal(size=9000).astype(np.float32), "b": np.arange(5000), "c": np.zeros(70_000, dtype=np.float16)}
    data = b"".join(write({}, packs=pack_auxiliary(arrays.items(), "exact", speed=speed)).pieces())
    verify(data)
    with OpqFile(data) as file:
        assert all(same_bits(file.array(name), array) for name, array in arrays.items())


def test_the_speed_decides():
    """A pack of speed "small" is not fast, one of "fast" is; "balanced" is at most 0.5% larger where both are tried."""
    random = np.random.default_rng(0)
    normal = [random.normal(size=(200, 300)).astype(ml_dtypes.bfloat16)]
    structured = [np.sin(np.arange(2**17) / 9.0).astype(np.float32).round(2)]
    for arrays in (normal, structured):
        shape = [(array.size, array.dtype) for array in arrays]
        small, balanced, fast = (choose_pack(arrays, speed, compared=True) for speed in ("small", "balanced", "fast"))
        assert len(balanced) <= 1.005 * len(small)
        assert is_fast_pack(fast, shape)
        assert not is_fast_pack(small, shape)


def test_structure_is_found_in_a_sample(monkeypatch):
    """A large pack of equal rows is not fast, though only a sample of it shows that; a usual one is not compared."""
    random = np.random.default_rng(0)
    rows = [np.tile(np.repeat(random.integers(0, 2**16, 16, dtype=np.uint16), 8), 2000).view(np.float16)]
    usual = [random.normal(size=2**17).astype(np.float32)]
    assert not is_fast_pack(choose_pack(rows, "balanced"), [(rows[0].size, rows[0].dtype)])
    lengths = []
    plain = section_choice.encode_pack
    monkeypatch.setattr(section_choice, "encode_pack", lambda arrays: (lengths.append(arrays[0].size), plain(arrays))[1])
    assert is_fast_pack(choose_pack(usual, "balanced"), [(usual[0].size, usual[0].dtype)])
    assert max(lengths) < 2**13


def test_few_bytes_are_not_fast():
    """A pack of fewer than 4,096 elements has no fast planes."""
    assert encode_fast_pack([np.zeros(FEWEST - 1, dtype=np.float32)]) is None
    assert encode_fast_pack([np.zeros(FEWEST, dtype=np.float32)]) is not None


def test_noise_is_not_fast():
    """A pack that would not get smaller is not fast."""
    assert encode_fast_pack([np.random.default_rng(0).integers(0, 2**32, 9000, dtype=np.uint32)]) is None


def test_functions_check_their_buffers():
    """Buffers that do not fit each other are a ValueError."""
    eight = np.zeros(8, dtype=np.uint8)
    counts = np.zeros(8 * 256, dtype=np.uint32)
    for wrong in (
        lambda: _native.split_words(eight.data, 3, False, eight.data),
        lambda: _native.split_words(eight[:7].data, 2, False, eight[:7].data),
        lambda: _native.split_words(eight.data, 2, False, eight[:4].data),
        lambda: _native.split_words(np.zeros(9, dtype=np.uint8)[1:].data, 8, False, eight.data),
        lambda: _native.sum_groups(eight.data, eight[:3].data),
        lambda: _native.count_groups(eight.data, eight[:2].data, counts.data),
        lambda: _native.count_groups(eight.data, (eight[:1] + 8).data, counts.data),
        lambda: _native.count_groups(eight.data, eight[:1].data, counts[1:].data),
        lambda: _native.encode_block(eight.data, eight[:1].data, counts.view(np.uint16)[: 8 * 256].data),
        lambda: _native.encode_block(eight.data, eight[:1].data, counts.data),
        lambda: _native.merge_blocks([b"1"] * 3, False, np.zeros(3, dtype=np.uint8).data),
        lambda: _native.merge_blocks([], False, eight.data),
        lambda: _native.merge_blocks([b"1"], False, eight[:0].data),
        lambda: _native.merge_blocks([b"1"], False, np.zeros(BLOCK + 1, dtype=np.uint8).data),
    ):
        with pytest.raises(ValueError, match=r"not fit|no share|too many"):
            wrong()


def test_lengths_are_checked_before_blocks():
    """A block longer than its bytes, or a plane that ends early, is refused by its length."""
    with pytest.raises(FormatError, match="at most"):
        fast_planes.read_plane(ByteReader(varint(5001) + bytes(5001), "plane"), 5000)
    with pytest.raises(FormatError, match="are left"):
        fast_planes.read_plane(ByteReader(varint(1) + varint(1) + b"\0", "plane"), BLOCK + 1)


def test_a_block_is_coded_if_that_saves_one_byte_in_32():
    """Of bytes below 200 a block is coded, of bytes below 220 it is stored, for decoding them takes time and saves little."""
    random = np.random.default_rng(0)
    sizes = [len(encode(random.integers(0, limit, BLOCK, dtype=np.uint8))[0]) for limit in (200, 220)]
    assert sizes[0] < 31 * BLOCK // 32
    assert sizes[1] == BLOCK
