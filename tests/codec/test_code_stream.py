"""Codes to bytes and back."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from codec_strategies import CODES, LARGEST
from hypothesis import assume, given
from hypothesis import strategies as st
from thoroughness import examples

import opq.codec.code_stream
from opq.codec import _native
from opq.codec.byte_reader import varint
from opq.codec.code_length import ContextGain, context_gain, contextless_bits
from opq.codec.code_stream import decode_batch, decode_codes, encode_codes
from opq.errors import FormatError
from opq.rate_distortion.layers import LayerStatistics

SHAPES = [
    (),
    (1,),
    (300,),
    (17, 23),
    (1, 200),
    (200, 1),
    (8, 9, 1, 1),
    (6, 5, 3, 3),
    (12, 1, 3, 3),
    (4, 3, 5, 5),
    (5, 4, 7),
    (3, 2, 2, 3, 4),
    (2, 3, 1, 9),
    (2, 3, 9, 1),
    (2, 3, 11, 11),
    (2, 2, 128),
    (3, 2, 129),
    (2, 3, 12, 11),
    (2, 1, 16, 16),
    (2, 2, 2, 1, 2, 1, 2),
]


def entropy_bits(codes: np.ndarray) -> float:
    counts = np.unique(codes, return_counts=True)[1]
    return -float(counts @ np.log2(counts / codes.size))


def laplace(shape: tuple[int, ...], scale: float, seed: int = 1) -> np.ndarray:
    """Independent codes."""
    return np.rint(np.random.default_rng(seed).laplace(scale=scale, size=shape)).astype(np.int32)


def smooth(outputs: int, inputs: int) -> np.ndarray:
    """3x3 kernels, each a plane of random height and slope with a little noise, so that neighbours predict each other."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[-1:2, -1:2]
    height, down, right = rng.laplace(scale=2.0, size=(3, outputs, inputs, 1, 1))
    noise = rng.normal(scale=0.7, size=(outputs, inputs, 3, 3))
    return np.rint(height + 0.5 * (down * y + right * x) + noise).astype(np.int32)


def comes_back(codes: np.ndarray) -> bool:
    decoded = decode_codes(encode_codes(codes), codes.shape)
    return decoded.dtype == np.int32 and decoded.shape == codes.shape and bool((decoded == codes).all())


@pytest.mark.slow
@given(CODES)
def test_codes_come_back(codes):
    """Decoding a section gives the codes that were encoded, in their shape, as int32."""
    assert comes_back(codes)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@examples(30)
@given(st.integers(0, 24), st.integers(0, 24), st.integers(0, 2**32 - 1))
def test_codes_of_every_shape_come_back(shape, bits, rare_bits, seed):
    """Codes of any width come back for rows and kernels of any size, also of more than 128 positions."""
    rng = np.random.default_rng(seed)
    rare = rng.random(shape) < 0.02
    magnitudes = np.where(rare, rng.integers(0, 2**rare_bits, shape), rng.integers(0, 2**bits, shape))
    assert comes_back(np.asarray(magnitudes * rng.choice([-1, 1], shape), dtype=np.int32))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("value", [0, 1, -1, 13, 14, -15, LARGEST, -LARGEST])
def test_constant_codes_come_back(shape, value):
    """A tensor of one code, or of both its signs, comes back in every shape."""
    codes = np.full(shape, value, dtype=np.int32)
    assert comes_back(codes)
    assert comes_back(codes * np.random.default_rng(0).choice(np.array([-1, 1], dtype=np.int32), shape))


@pytest.mark.parametrize(
    "codes",
    [
        np.arange(-2000, 2000, dtype=np.int32),
        (2 ** np.arange(24)).astype(np.int32),
        (1 - 2 ** np.arange(1, 25)).astype(np.int32),
        np.array([0] * 5000 + [LARGEST] + [0] * 5000, dtype=np.int32),
        np.array([LARGEST] * 50 + [0, 1, -1] * 50, dtype=np.int32),
    ],
    ids=["ramp", "powers", "widest", "lone", "fall"],
)
def test_codes_at_the_edges_come_back(codes):
    """The smallest and the largest code of each width come back, and a large code among small ones."""
    for shape in ((-1,), (1, 1, -1), (-1, 1)):
        assert comes_back(codes.reshape(shape))


@pytest.mark.parametrize("shape", [(70,), (70, 1), (9, 25), (3, 90), (7, 2, 3, 3), (5, 1, 130), (40, 2, 3)], ids=str)
@pytest.mark.parametrize("scale", [0.05, 2.0, 1e5])
def test_chunks_come_back(shape, scale, monkeypatch):
    """A tensor of several chunks comes back; without one of its bytes it is refused or decodes to another tensor."""
    codes = laplace(shape, scale)
    codes.reshape(-1)[0] = 1
    whole = encode_codes(codes)
    monkeypatch.setattr(opq.codec.code_stream, "CHUNK", 40)
    section = encode_codes(codes)
    assert comes_back(codes)
    assert len(shape) == 1 or section != whole
    for at in range(len(section)):
        check_decodes_or_fails(section[:at] + section[at + 1 :], shape)


@examples(30)
@given(st.lists(CODES, max_size=6), st.sampled_from([30, 2**22]))
def test_a_batch_gives_what_single_sections_give(batch, chunk):
    """Sections that are decoded together give the codes they give alone, in one chunk or in several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opq.codec.code_stream, "CHUNK", chunk)
        decoded = decode_batch([(encode_codes(codes), codes.shape) for codes in batch])
    assert len(decoded) == len(batch)
    for codes, found in zip(batch, decoded, strict=True):
        assert found.shape == codes.shape
        assert (found == codes).all()


def test_the_native_module_counts_valid_jobs():
    """`decode_codes` returns how many jobs of a list come before the first damaged one."""
    codes = np.arange(6, dtype=np.int32)
    good, bad = (bytes(_native.encode_codes(codes.data, 1, 6, 1, 1, 0)) + extra for extra in (b"", b"\0\0\0"))
    buffer = np.empty(6, dtype=np.int32).data
    jobs = [(stream, buffer, 1, 6, 1, 1, 0) for stream in (good, good, bad, good)]
    assert [_native.decode_codes(jobs[:count], bytearray(8)) for count in range(5)] == [0, 1, 2, 2, 2]
    with pytest.raises(TypeError, match="list"):
        _native.decode_codes(tuple(jobs), bytearray(8))
    with pytest.raises(ValueError, match="eight bytes"):
        _native.decode_codes(jobs, bytearray(7))


def test_threads_share_the_jobs_of_a_list():
    """Threads take jobs from a shared counter; a counter beyond the list ends the work."""
    codes = np.arange(6, dtype=np.int32)
    stream = _native.encode_codes(codes.data, 1, 6, 1, 1, 0)
    for begun, expected in ((0, 3), (2, 1), (3, 0), (2**62, 0), (-1, 0)):
        buffers = np.zeros((3, 6), dtype=np.int32)
        counter = np.array([begun])
        assert _native.decode_codes([(stream, buffer.data, 1, 6, 1, 1, 0) for buffer in buffers], counter.data) == 3
        if begun >= 0:
            assert [bool((buffer == codes).all()) for buffer in buffers] == [k >= 3 - expected for k in range(3)]


KERNELS = st.sampled_from([(3, 3), (3, 3), (1, 2), (5, 5), (1, 1)])


@examples(100)
@given(
    st.lists(st.tuples(st.integers(1, 13), st.integers(1, 5), KERNELS), min_size=2, max_size=6),
    st.sampled_from([0.2, 1, 30, 4000]),
    st.data(),
)
def test_interleaved_decoding_gives_the_same_codes(shapes, scale, data):
    """Interleaved kernels of one shape give the codes and the errors of each section decoded alone."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    draws = np.random.default_rng(seed)
    batch = [np.rint(draws.laplace(scale=scale, size=(o, i, *kernel))).astype(np.int32) for o, i, kernel in shapes]
    jobs = []
    for codes in batch:
        section = encode_codes(codes)
        if section:
            kernel = codes.shape[2] * codes.shape[3]
            geometry = (codes.shape[0], codes.shape[1], kernel, codes.shape[3] if kernel > 1 else 1, section[0])
            jobs.append((section[1:], np.full(codes.shape, 7, dtype=np.int32), geometry))
    damaged = data.draw(st.integers(-1, len(jobs) - 1))
    if damaged >= 0:
        stream = bytearray(jobs[damaged][0])
        stream[data.draw(st.integers(0, len(stream) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        jobs[damaged] = (bytes(stream), *jobs[damaged][1:])
    alone = [(np.empty_like(buffer), stream, geometry) for stream, buffer, geometry in jobs]
    wholes = [
        _native.decode_codes([(stream, buffer.reshape(-1).data, *geometry)], bytearray(8)) for buffer, stream, geometry in alone
    ]
    together = [(stream, buffer.reshape(-1).data, *geometry) for stream, buffer, geometry in jobs]
    assert _native.decode_codes(together, bytearray(8)) == [*wholes, 0].index(0)
    for (_, buffer, _), (expected, _, _), valid in zip(jobs, alone, wholes, strict=True):
        assert not valid or (buffer == expected).all()


def test_chunks_are_coded_independently(monkeypatch):
    """A section is its first byte, the lengths of all streams but the last, and the streams of the chunks."""
    codes = laplace((7, 4), 1.0)
    monkeypatch.setattr(opq.codec.code_stream, "CHUNK", 12)
    first = 1 << 5  # no raw bits, means from 1 on
    streams = [_native.encode_codes(codes[rows], len(codes[rows]), 4, 1, 1, first) for rows in np.split(np.arange(7), [3, 6])]
    assert encode_codes(codes) == bytes([first]) + varint(len(streams[0])) + varint(len(streams[1])) + b"".join(streams)


@pytest.mark.slow
@given(CODES)
def test_a_section_depends_on_the_codes_alone(codes):
    """Strides, writability and earlier calls make no difference; the codes are not written to."""
    before = codes.copy()
    section = encode_codes(codes)
    wide = np.repeat(codes.reshape(-1), 2)[::2].reshape(codes.shape)
    backwards = np.flip(np.flip(codes).copy())
    codes.flags.writeable = False
    for same in (codes, wide, backwards, np.asfortranarray(codes).reshape(codes.shape)):
        assert encode_codes(same) == section
    assert (codes == before).all()


def test_codes_of_a_mapped_file_are_encoded(tmp_path):
    """Codes in read-only memory, to which a write would end the process, are encoded like others."""
    codes = laplace((20, 30), 1.0)
    np.save(tmp_path / "codes.npy", codes)
    script = """if True:
        import sys
        import numpy as np
        from opq.codec.code_stream import encode_codes
        sys.stdout.write(encode_codes(np.load(sys.argv[1], mmap_mode="r")).hex())
    """
    arguments = [sys.executable, "-c", script, tmp_path / "codes.npy"]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, encode_codes(codes).hex())


def test_threads_make_no_difference():
    """Eight threads that encode and decode the same codes give what one thread gives."""
    tensors = [laplace((40, 20, 3, 3), 0.5 + k, seed=k) for k in range(4)]
    sections = [encode_codes(codes) for codes in tensors]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(encode_codes, tensors * 8)) == sections * 8
        decoded = pool.map(lambda k: decode_codes(sections[k], tensors[k].shape), [0, 1, 2, 3] * 8)
        assert all((got == codes).all() for got, codes in zip(decoded, tensors * 8, strict=True))


@pytest.mark.parametrize("count", [1, 1000, 10**6])
def test_zeros_take_no_bytes(count):
    """A tensor of zeros takes no bytes; with one other code it takes a few."""
    codes = np.zeros(count, dtype=np.int32)
    assert encode_codes(codes) == b""
    codes[count // 2] = -1
    assert len(encode_codes(codes)) < 60


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 5.0, 40.0, 1000.0])
@pytest.mark.parametrize("shape", [(400, 500), (200, 100, 3, 3)], ids=str)
def test_the_size_is_near_the_entropy(scale, shape):
    """Independent codes take within 1% and 200 bytes of their zero-order entropy."""
    codes = laplace(shape, scale)
    assert 8.0 * len(encode_codes(codes)) <= 1.01 * entropy_bits(codes) + 1600.0


@pytest.mark.parametrize("pruned", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("scale", [3.0, 100.0])
def test_pruned_weights_have_no_raw_bits(pruned, scale):
    """If many codes are 0 and the others wide, the section is within 12% and 300 bytes of the zero-order entropy."""
    weight = np.random.default_rng(0).laplace(size=(200, 200))
    kept = np.abs(weight) > np.quantile(np.abs(weight), pruned)
    codes = np.where(kept, np.rint(scale * weight), 0.0).astype(np.int32)
    assert 8.0 * len(encode_codes(codes)) <= 1.12 * entropy_bits(codes) + 2400.0


def test_correlated_neighbours_save_bytes():
    """If neighbouring weights are alike, the section is at least 3% below the zero-order entropy."""
    codes = smooth(64, 32)
    assert 8.0 * len(encode_codes(codes)) < 0.97 * entropy_bits(codes)


def test_the_gain_is_what_context_saves():
    """The gain is below 0.97 for smooth kernels, and within 3% of 1 for independent codes."""
    assert context_gain([smooth(64, 32)]).gain < 0.97
    for scale in (0.3, 1.0, 30.0):
        saving = context_gain([laplace((60, 30, 3, 3), scale), laplace((100, 100), scale)])
        assert 0.97 < saving.gain < 1.03
        assert 0.0 <= saving.start < 8.0 * 300
    assert context_gain([]) == ContextGain(1.0, 0.0)


@examples(40)
@given(
    st.sampled_from(["laplace", "normal"]),
    st.integers(0, 1000),
    st.sampled_from([(60, 70), (200, 150), (40, 30, 3, 3)]),
    st.floats(0.4, 1.5),
    st.floats(0.02, 2.0),
    st.floats(0.2, 0.6),
)
def test_contextless_bits_are_the_bits(kind, seed, shape, ratio, step, offset):
    """From all magnitudes, without codes, the size of a section without contexts is predicted within 4% and 100 bytes.

    This requires kept weights with codes of 1: rows start with a geometric distribution, and adapt slowly to a gap in it.
    """
    assume(ratio + offset <= 1.6)
    threshold = ratio * step
    rng = np.random.default_rng(seed)
    weight = {"laplace": rng.laplace, "normal": rng.normal}[kind](size=shape).astype(np.float32)
    magnitude = np.abs(weight)
    levels = np.maximum(1, np.floor(magnitude / step + offset))
    codes = np.where(magnitude > threshold, np.sign(weight) * levels, 0).astype(np.int32)
    scales = np.full(shape[0], magnitude.mean(), dtype=np.float64)
    ascending = np.sort(magnitude, axis=None)
    statistics = LayerStatistics(shape, float(magnitude.mean()), scales, 0, ascending, magnitude, 1, weight[:0])
    bits = 8.0 * len(encode_codes(codes))
    assert abs(contextless_bits(statistics, threshold, step, offset) - bits) <= 0.04 * bits + 800.0


@pytest.mark.slow
@given(CODES, st.data())
def test_a_damaged_section_is_an_error_or_codes(codes, data):
    """A changed section gives a FormatError or codes of the right shape and range."""
    section = bytearray(encode_codes(codes))
    for _ in range(data.draw(st.integers(1, 3)) if section else 0):
        section[data.draw(st.integers(0, len(section) - 1))] = data.draw(st.integers(0, 255))
    check_decodes_or_fails(bytes(section[: data.draw(st.integers(0, len(section)))]), codes.shape)


@examples(300)
@given(st.integers(0, 22), st.binary(max_size=40), st.sampled_from([b"", b"\xff" * 12]), st.sampled_from(SHAPES))
def test_any_bytes_are_an_error_or_codes(shift, stream, start, shape):
    """Random bytes give a FormatError or codes of the right shape and range."""
    check_decodes_or_fails(bytes([shift]) + start + stream, shape)


@pytest.mark.slow
@given(CODES, st.sampled_from(SHAPES))
def test_another_shape_is_an_error_or_codes(codes, shape):
    """The section of another tensor gives a FormatError or codes of the right shape and range."""
    check_decodes_or_fails(encode_codes(codes), shape)


def check_decodes_or_fails(section: bytes, shape: tuple[int, ...]) -> None:
    try:
        codes = decode_codes(section, shape)
    except FormatError:
        return
    assert codes.dtype == np.int32
    assert codes.shape == shape
    assert np.abs(codes).max() <= LARGEST
    assert comes_back(codes)


@pytest.mark.slow
@given(CODES.filter(np.any), st.binary(max_size=8))
def test_bytes_behind_a_section_are_an_error(codes, tail):
    """A section with bytes after its codes is refused or gives other codes, as raw bits are at its end."""
    section = encode_codes(codes)
    for longer in (section + b"\0", section + tail + b"\1" * 12):
        try:
            found = decode_codes(longer, codes.shape)
        except FormatError:
            continue
        assert not np.array_equal(found, codes)


@pytest.mark.parametrize(
    ("section", "shape", "problem"),
    [
        (b"\x15", (4, 1, 2), "with kernels cannot follow the trellis, got raw bits of 21"),
        (b"\xfe\1", (4, 3, 1, 7), "with kernels cannot follow the trellis, got raw bits of 30"),
        (b"\x1f\1", (4,), "expected an adaptive section"),
        (b"\x15", (4,), "do not end"),
        (b"\0", (4,), "do not end"),
        (b"\0\1\0", (4,), "do not end"),
        (b"\0\xff" + b"\1" * 40, (4,), "do not end"),
        (b"\0\5\1", (2, 2**22), "are left"),
        (b"\0\x81\0\1", (2, 2**22), "shortest"),
        (b"\0" + b"\xff" * 10, (2, 2**22), "longer than 9"),
        (b"\0", (2, 2**22), "are left"),
    ],
    ids=[
        "trellis",
        "wide trellis",
        "fast",
        "no trellis stream",
        "no stream",
        "zero byte",
        "rest",
        "cut stream",
        "varint",
        "long varint",
        "no lengths",
    ],
)
def test_each_rule_of_a_section(section, shape, problem):
    """A section that breaks a rule is a FormatError that names the rule."""
    with pytest.raises(FormatError, match=problem):
        decode_codes(section, shape)


@pytest.mark.parametrize(
    "geometry",
    [
        (0, 4, 1, 1, 0),
        (6, 0, 1, 1, 0),
        (6, 4, 0, 1, 0),
        (6, 4, 1, 0, 0),
        (-6, -4, 1, 1, 0),
        (6, 3, 1, 1, 0),
        (5, 4, 1, 1, 0),
        (1, 1, 24, 5, 0),
        (1, 24, 1, 2, 0),
        (2**62, 2**62, 24, 1, 0),
        (6, 4 + 2**62, 1, 1, 0),
        (2**61, 8, 3, 3, 0),
        (6, 4, 1, 1, -1),
        (6, 2, 2, 1, 21),
        (1, 6, 4, 2, 31),
        (6, 4, 1, 1, 256),
        (1, 1, 129, 1, 0),
    ],
    ids=str,
)
def test_the_native_module_checks_shapes(geometry):
    """A shape that does not fit the buffer is a ValueError, also if its size overflows."""
    codes = np.zeros(129 if geometry[2] == 129 else 24, dtype=np.int32)
    with pytest.raises(ValueError, match="does not fit"):
        _native.encode_codes(codes.data, *geometry)
    with pytest.raises(ValueError, match="does not fit"):
        _native.decode_codes([(b"\1", codes.data, *geometry)], bytearray(8))


def test_the_native_module_checks_buffers():
    """Bytes that are no integer number of codes, planes of other lengths and read-only output are errors."""
    with pytest.raises(ValueError, match="does not fit"):
        _native.encode_codes(bytes(23), 1, 6, 1, 1, 0)
    with pytest.raises(ValueError, match="does not fit"):
        _native.encode_plane(bytes(5), bytes(4))
    with pytest.raises(ValueError, match="does not fit"):
        _native.decode_plane(b"\1", bytes(4), bytearray(5))
    with pytest.raises((TypeError, BufferError)):
        _native.decode_codes([(b"\1", bytes(24), 1, 6, 1, 1, 0)], bytearray(8))


@pytest.mark.parametrize(
    ("codes", "section"),
    [
        ([0, 0, 0], ""),
        ([1], "205000"),
        ([-1], "205001"),
        ([0, 1, -1, 0, 0, 2], "4076a002"),
        ([0, 0, 100, -100000, 0, 3], "0cef613f800000569f4063"),
        ([[[[0, 1, 2], [1, 2, 3], [-1, 0, 0]], [[5, 4, 3], [4, 3, 2], [3, 2, 1]]],
          [[[-1, -1, -1], [0, 0, 0], [1, 1, 1]], [[-20, 9, -9], [0, 1, -1], [30, -300, 7]]]],
         "01caac547da70f3a9d325a0320eca0854b400110f9231048"),
    ],
    ids=["zeros", "one", "minus one", "small", "wide", "kernels"],
)  # fmt: skip
def test_bytes_of_sections(codes, section):
    """The bytes of these sections never change."""
    assert encode_codes(np.array(codes, dtype=np.int32)).hex() == section
