"""Sections whose codes follow a trellis."""

from __future__ import annotations

import numpy as np
import pytest
from codec_strategies import FLAT_SHAPES, INDICES, encode_file, leveled_as, on_trellis, sections_of, trellised_as
from hypothesis import given
from hypothesis import strategies as st
from thoroughness import examples

import opq.codec.code_stream
import opq.numpy
from opq.codec import _native
from opq.codec.code_stream import Geometry, decode_codes, encode_codes, is_trellis
from opq.codec.entry import Entry
from opq.codec.file_reader import OpqFile
from opq.codec.weight_section import decode_weight, encode_weight, entry_of
from opq.errors import FormatError, WeightError


@given(INDICES)
def test_codes_come_back(indices):
    """Codes come back from a section, which says that they follow a trellis unless all are 0."""
    codes = on_trellis(indices)
    section = encode_codes(codes, trellis=True)
    assert is_trellis(section) == bool(codes.any())
    assert np.array_equal(decode_codes(section, codes.shape), codes)


@examples(30)
@given(FLAT_SHAPES, st.integers(0, 23), st.integers(0, 2**32 - 1))
def test_chunks_come_back(shape, bits, seed):
    """Weights of several chunks come back; each row of a chunk begins in state 0."""
    indices = np.random.default_rng(seed).integers(1 - 2**bits, 2**bits, shape, dtype=np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opq.codec.code_stream, "CHUNK", 5)
        codes = on_trellis(indices)
        assert np.array_equal(decode_codes(encode_codes(codes, trellis=True), shape), codes)


@given(INDICES.filter(np.any), st.data())
def test_codes_that_break_the_trellis_are_refused(indices, data):
    """A code that is not one of its state's quantizer is a WeightError."""
    codes = on_trellis(indices)
    at = data.draw(st.sampled_from(np.flatnonzero(codes).tolist()))
    codes.reshape(-1)[at] += 1 if codes.reshape(-1)[at] > 0 else -1
    with pytest.raises(WeightError, match="do not follow the trellis"):
        encode_codes(codes, trellis=True)


@pytest.mark.parametrize("code", [2**24, 2**24 + 2, -(2**24), 2**31 - 2, -(2**31)])
def test_codes_of_more_than_24_bits_are_refused(code):
    """A code of magnitude 2^24 or more cannot be encoded."""
    with pytest.raises(ValueError, match="do not follow the trellis"):
        _native.encode_codes(np.array([code, 0], dtype=np.int32).data, 1, 2, 1, 1, 30)


@pytest.mark.parametrize("index", [2**23 - 1, 1 - 2**23])
def test_decoded_codes_have_at_most_24_bits(index):
    """The largest code is read; if its state were another one, it would be too large, and is refused."""
    codes = on_trellis(np.array([index, index], dtype=np.int32))
    assert np.array_equal(decode_codes(encode_codes(codes, trellis=True), (2,)), codes)
    plain = _native.encode_codes(np.array([2**23, 0], dtype=np.int32).data, 1, 2, 1, 1, 9)
    with pytest.raises(FormatError):
        decode_codes(bytes([30]) + plain, (2,))


def test_kernels_have_no_trellis():
    """Weights with kernels are refused; kernels of one position and of more than 128 are rows."""
    for shape in ((2, 3, 1, 1), (2, 3, 129)):
        assert Geometry.of(shape).positions == 1
        codes = on_trellis(np.full(shape, 2, dtype=np.int32))
        assert np.array_equal(decode_codes(encode_codes(codes, trellis=True), shape), codes)
    with pytest.raises(WeightError, match="with kernels cannot follow the trellis"):
        encode_codes(np.zeros((2, 3, 2), dtype=np.int32), trellis=True)


def test_levels_have_no_trellis():
    """A section of levels whose codes follow a trellis is refused."""
    levels = leveled_as(np.array([[1, 2, 3, 4]], dtype=np.int32), np.arange(1, 5, dtype=np.float32))
    section = encode_weight(levels).adaptive
    table = section[: 3 + section[2]]
    codes = encode_codes(on_trellis(np.ones((1, 4), dtype=np.int32)), trellis=True)
    with pytest.raises(FormatError, match="levels cannot follow the trellis"):
        decode_weight(table + codes, Entry("w", (1, 4), "float32", "levels", 0))


def test_the_quantizer_is_a_context():
    """Codes whose probabilities depend on the quantizer take fewer bytes than those of the same k in another order."""
    rng = np.random.default_rng(0)
    indices = np.zeros((256, 256), dtype=np.int32)
    states = np.zeros((3, 256), dtype=np.int32)
    for column in range(256):
        odd = states[2] == 1
        k = np.where(odd, rng.integers(0, 3, 256), rng.integers(0, 2, 256) * 5).astype(np.int32)
        indices[:, column] = k
        states = np.stack([states[1], states[2], (k ^ states[1] ^ states[0]) & 1])
    codes = on_trellis(indices)
    shuffled = on_trellis(rng.permuted(indices, axis=1))
    assert len(encode_codes(codes, trellis=True)) < 0.85 * len(encode_codes(shuffled, trellis=True))


def test_tied_weights_share_a_section():
    """Weights of equal codes and other steps share a section; each reader and slice keeps the trellis."""
    indices = np.random.default_rng(0).integers(-3, 4, (6, 8), dtype=np.int32)
    tensors = {"a": trellised_as(indices), "b": trellised_as(indices, 0.5, "float16"), "c": trellised_as(indices)}
    data = encode_file(tensors)
    assert len(sections_of(data)) == 1
    with OpqFile(data) as file:
        assert all(file[name].trellis for name in tensors)
        assert all(piece.trellis for piece in file.pieces("b"))
    section = encode_weight(tensors["b"]).adaptive
    assert decode_weight(section, entry_of("b", tensors["b"])).trellis
    assert np.array_equal(opq.numpy.load(data)["b"], tensors["b"].values())
    assert [tensor.trellis for tensor in opq.inspect(data).tensors] == [True] * 3
    assert "0.5, trellis" in opq.inspect(data).table(every=True)
