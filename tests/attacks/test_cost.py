"""What reading costs: files with right checksums that declare much and hold little."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from codec_strategies import encode_file, stepped, with_sections
from hostile_files import multiply, with_entries, with_header

import opq
import opq.numpy
from opq.codec import weight_section
from opq.codec.entry import Entry
from opq.quantization.codebook import LevelTable
from opq.quantization.compressed_tensor import CompressedTensor

SECONDS = 4.0
"""Processor time that no file below may take. With a section decoded for each tensor some took a minute."""

TENSORS = 5_000


def tied_levels(shapes: list[tuple[int, ...]]) -> bytes:
    """Weights of one element with a table of levels, which share a section and take their shapes in turn."""
    table = LevelTable(np.array([0.5], dtype=np.float32))
    whole = encode_file({"w": CompressedTensor(np.array([1], dtype=np.int32), table, "float32")})
    many = with_header(whole, lambda header: multiply(header, TENSORS))
    return with_entries(many, lambda entry: replace(entry, shape=shapes[int(entry.name[1:]) % len(shapes)]))


def cpu_time(run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


@pytest.mark.parametrize("verb", [opq.verify, opq.inspect, opq.compare, opq.numpy.load], ids=lambda verb: verb.__name__)
def test_tied_weights_cost_as_much_as_one(verb):
    """A section that many tensors share is decoded, and encoded by `verify`, once per geometry, not once per tensor."""
    data = tied_levels([(), (1,), (1, 1)])
    assert cpu_time(lambda: verb(data)) < SECONDS


def test_a_shared_section_is_decoded_once(monkeypatch):
    """Reading all weights of one section calls the decoder for one stream."""
    numbers = []
    decode = weight_section.decode_batch
    monkeypatch.setattr(
        weight_section, "decode_batch", lambda parts: decode(numbers.append(len(parts := list(parts))) or parts)
    )
    arrays = opq.numpy.load(tied_levels([(), (1,)]))
    assert numbers == [1]
    assert {(array.shape, float(array.sum())) for array in arrays.values()} == {((), 0.5), ((1,), 0.5)}


def test_tied_arrays_are_not_one_array():
    """Arrays of tied weights do not share memory: a change of one leaves the others."""
    arrays = opq.numpy.load(tied_levels([(1,)]))
    arrays["w00000"][0] = 7.0
    assert arrays["w00001"][0] == 0.5


@pytest.mark.parametrize("shape", [(2**25,), (2**12, 2**13), (2**25 // 16, 1, 4, 4)], ids=str)
def test_codes_that_end_early_are_given_up(shape):
    """A few bytes of codes that declare 64 MiB are refused in the time of their bytes, whatever the shape, and only once."""
    whole = encode_file({"w": stepped(np.array([[1, -2, 0], [0, 3, 40]], dtype=np.int32), 0.5)})
    data = with_entries(whole, lambda entry: replace(entry, shape=shape, dtype="float16"))

    def read() -> None:
        with pytest.raises(opq.FormatError, match="tensor 'w'"):
            opq.numpy.load(data)

    assert cpu_time(read) < 1.0


def test_planes_that_end_early_are_given_up():
    """Two bytes that declare a plane of 64 MiB are refused in the time of two bytes, by one thread once."""
    whole = encode_file({"a": np.zeros(2**12, dtype=np.uint8)})
    data = with_entries(with_sections(whole, [b"\x01\x00"]), lambda entry: replace(entry, shape=(2**26,)))

    def read() -> None:
        with pytest.raises(opq.FormatError):
            opq.numpy.load(data)

    assert cpu_time(read) < 1.0


def test_a_damaged_weight_is_named_and_decoded_once(monkeypatch):
    """The error of a damaged weight among whole ones names it, and comes from the one time that it is decoded."""
    sections = {name: stepped(np.arange(6 * k, dtype=np.int32).reshape(2, -1), 0.5) for k, name in enumerate("abc", 1)}
    whole = encode_file(sections)
    calls = []
    decode = weight_section.decode_batch
    monkeypatch.setattr(weight_section, "decode_batch", lambda parts: decode(calls.append(1) or parts))

    def shorter(entry: Entry) -> Entry:
        return replace(entry, shape=(3, 3)) if entry.name == "b" else entry

    with pytest.raises(opq.FormatError, match="tensor 'b'"):
        opq.numpy.load(with_entries(whole, shorter))
    assert len(calls) == 1
