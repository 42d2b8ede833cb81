"""`verify`: what it accepts, and the errors that it finds in spite of correct checksums."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
from codec_strategies import deflate, encode_file, files, sections_of, small_file, stepped, wrap
from hypothesis import given
from thoroughness import examples

from opq.codec import _native
from opq.codec.code_stream import encode_codes
from opq.codec.entry import Entry
from opq.codec.file_reader import OpqFile
from opq.codec.file_writer import AuxiliaryPack, write
from opq.codec.header import Header, header_columns
from opq.codec.verify import verify
from opq.errors import FormatError, SourceError
from opq.quantization.compressed_tensor import CompressedTensor


@examples(60)
@given(files())
def test_written_files_pass(data):
    """A written file passes, and its weights, tensors and sections are counted."""
    found = verify(data)
    with OpqFile(data) as file:
        assert found.weights == sum(isinstance(content, CompressedTensor) for content in file.values())
        assert found.weights + found.auxiliary == len(file)
    assert found.sections == len(sections_of(data))
    assert found.file_bytes == len(data)


def test_paths_are_verified(tmp_path):
    """A path has the result of its bytes; a missing one is a SourceError."""
    path = tmp_path / "model.opq"
    path.write_bytes(small_file())
    assert verify(path) == verify(small_file())
    with pytest.raises(SourceError):
        verify(tmp_path / "missing.opq")


@pytest.mark.parametrize(("kind", "step"), [("float16", 2.0**14), ("float32", 2.0**127), ("bfloat16", 2.0**127)])
def test_infinite_values_are_refused(kind, step):
    """A step that makes a code infinite in its dtype is refused."""
    codes = np.array([0, 1, -1, 10, -10], dtype=np.int32)
    with pytest.raises(FormatError, match=f"'w'.*overflows {kind}"):
        verify(encode_file({"w": stepped(codes, step, kind)}))


def test_a_code_that_becomes_zero_is_refused():
    """A step that is too small for its dtype, so that a nonzero code has the value zero, is refused."""
    data = encode_file({"w": stepped(np.array([1, 100], dtype=np.int32), 2.0**-30, "float16")})
    with pytest.raises(FormatError, match="overflows float16"):
        verify(data)


def file_of(entries: list[Entry], sections: list[bytes]) -> bytes:
    """A file of these entries and sections, with correct checksums."""
    columns = header_columns(Header(entries, list(map(len, sections)), list(map(zlib.crc32, sections))))
    return wrap(deflate(columns), b"".join(sections))


def test_other_bytes_than_the_writers_are_refused():
    """Another number of raw bits, or a plane that is not coded, can be read, but `verify` refuses it."""
    codes = np.array([0, 1, 0, 1], dtype=np.int32)
    section = b"\1" + _native.encode_codes(codes, 1, 4, 1, 1, 1)
    data = file_of([Entry("w", (4,), "float32", "codes", 0, 1.0)], [section])
    with OpqFile(data) as file:
        assert file["w"].codes.tolist() == [0, 1, 0, 1]
    with pytest.raises(FormatError, match=r"'w'.*other bytes"):
        verify(data)
    plane = b"\x32" + bytes(50)
    pack = AuxiliaryPack((Entry("a", (50,), "uint8", "exact", 0),), plane)
    with pytest.raises(FormatError, match=r"'a'.*other bytes"):
        verify(b"".join(write({}, packs=[pack]).pieces()))


def test_every_tied_weight_is_decoded():
    """Of weights that share a section with other shapes, each is decoded, not only the first."""
    codes = np.arange(128, dtype=np.int32).reshape(16, 8)
    section = encode_codes(codes)
    entries = [Entry(name, codes.shape, "float32", "codes", 0, 1.0) for name in "ab"]
    assert verify(file_of(entries, [section])).weights == 2
    with pytest.raises(FormatError, match="'b'"):
        verify(file_of([entries[0], replace(entries[1], shape=(8, 2, 2, 4))], [section]))
