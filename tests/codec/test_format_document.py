"""The reader in docs/format.md, which does not use opq, reads every file as opq does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from codec_strategies import CODES, encode_file, files, sections_of, small_file, stepped, with_sections
from hypothesis import given
from hypothesis import strategies as st
from thoroughness import examples

import opq.numpy
from opq import dtypes
from opq.codec import code_stream, file_writer, header
from opq.codec.file_reader import OpqFile
from opq.codec.file_start import FORMAT_VERSION
from opq.errors import FormatError
from opq.quantization.codebook import LARGEST_TABLE

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")


def reference_reader(chunk="2**22"):
    """`read` of the document's only code block, with another size of chunks."""
    blocks = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    assert blocks[0].count("2**22 // (") == 1
    names: dict = {}
    exec(compile(blocks[0].replace("2**22 // (", f"{chunk} // ("), "format.md", "exec"), names)  # noqa: S102 - the document's code is ours
    imported = {name for name, value in names.items() if isinstance(value, type(re))}
    assert imported == {"math", "struct", "zlib"}
    return names["read"]


read = reference_reader()


def described(arrays: dict[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Arrays in the form that `read` returns."""
    return {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()}


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "golden").glob("*.opq")), ids=lambda path: path.name)
def test_golden_files_are_read_alike(path):
    """Both readers give the same bits for the golden files."""
    assert read(path.read_bytes()) == described(opq.numpy.load_file(path))


@pytest.mark.slow
@given(files())
def test_files_are_read_alike(data):
    """Both readers give the same bits for any file, in the same order of names."""
    expected = described(opq.numpy.load(data))
    found = read(data)
    assert found == expected
    assert list(found) == list(expected)


SHAPES = [
    (),
    (1,),
    (40,),
    (5, 6),
    (9, 1),
    (3, 4, 1, 1),
    (2, 3, 3, 3),
    (2, 2, 5, 5),
    (2, 3, 7),
    (2, 2, 2, 3, 3),
    (2, 3, 1, 7),
    (1, 2, 11, 11),
]


@examples(60)
@given(st.sampled_from([*SHAPES, (2, 1, 12, 11), (3, 1, 129)]), st.integers(0, 24), st.integers(0, 2**32 - 1))
def test_codes_of_every_shape_are_read_alike(shape, bits, seed):
    """Codes of any width are equal for rows and kernels of any size."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-(2**bits) + 1, 2**bits, shape, dtype=np.int32) * rng.integers(0, 2, shape, dtype=np.int32)
    data = encode_file({"w": stepped(codes)})
    assert read(data) == described(opq.numpy.load(data))


@pytest.mark.parametrize("shape", [(50, 1), (9, 11), (2, 90), (60,), (7, 2, 3, 3), (5, 1, 130)])
def test_chunks_are_read_alike(shape, monkeypatch):
    """With smaller chunks both readers split a tensor at the same rows."""
    monkeypatch.setattr(code_stream, "CHUNK", 40)
    codes = np.random.default_rng(1).integers(-9, 10, shape, dtype=np.int32)
    data = encode_file({"w": stepped(codes)})
    assert reference_reader(chunk="40")(data) == described(opq.numpy.load(data))


@examples(60)
@given(CODES, st.floats(2.0**-149, 2.0**100, width=32), st.sampled_from(sorted(dtypes.COMPRESSIBLE)))
def test_wide_codes_and_steps_are_read_alike(codes, step, kind):
    """Codes of any width and steps of any size, also subnormal ones, give equal values."""
    codes = np.clip(codes, -(2**16), 2**16)
    largest = {"float16": 65504.0, "bfloat16": 3e38, "float32": 3e38, "float64": 3e38}[kind]
    step = min(step, float(np.float32(largest / 2**17)))
    data = encode_file({"w": stepped(codes, step, kind)})
    assert read(data) == described(opq.numpy.load(data))


@pytest.mark.slow
@examples(200)
@given(files(storages=["exact"]), st.data())
def test_edited_files_are_read_alike(data, draw):
    """Any section that opq accepts has the same meaning for both readers, whether a writer produces it or not."""
    sections = []
    for section in sections_of(data):
        edited = bytearray(section)
        for _ in range(draw.draw(st.integers(0, 2)) if edited else 0):
            edited[draw.draw(st.integers(0, len(edited) - 1))] = draw.draw(st.integers(0, 255))
        sections.append(bytes(edited))
    changed = with_sections(data, sections)
    try:
        with np.errstate(over="ignore"):
            expected = described(opq.numpy.load(changed))
    except FormatError:
        return
    assert read(changed) == expected


@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_the_reference_reader_finds_damage(mask):
    """The reader of the document refuses a change of any byte."""
    data = small_file()
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= mask
        with pytest.raises(ValueError, match=r"format|damaged|cut off|left over"):
            read(bytes(changed))


def table_after(heading: str) -> list[list[str]]:
    """The cells of the first table after a line of the document."""
    rows = re.search(re.escape(heading) + r".*?\n((?:\|[^\n]*\n)+)", TEXT, re.DOTALL)[1].splitlines()
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in rows]


def test_the_table_of_dtypes_is_right():
    """Codes, names and sizes of the dtypes in the document are those of opq."""
    rows = table_after("S is the number of tensors that open a section")[2:]
    found = {int(row[i]): (row[i + 1], int(row[i + 2])) for row in rows for i in range(0, 12, 3) if row[i]}
    assert found == {code: (name, dtypes.NUMPY[name].itemsize) for name, code in dtypes.CODE.items()}


def test_the_limits_are_right():
    """The limits in the document are those of opq."""
    limits = {row[0]: row[1] for row in table_after("* a bool is 0 or 1,")[2:]}
    assert limits == {
        "bytes of a name": f"{header._LARGEST_NAME:,}",
        "dimensions of a tensor": str(header._LARGEST_RANK),
        "elements of a tensor": "2^31 - 1",
        "inflated header": f"2^26 bytes, and 2^20 + {header.HEADER_EXPANSION} * H",
        "tensors": f"{header.LARGEST_COUNT:,}",
        "metadata pairs": f"{header._LARGEST_METADATA:,}",
        "all `shared` and suffix lengths together": "2^24",
        "magnitude of a code": "2^24 - 1",
        "levels of a table": f"{LARGEST_TABLE:,}",
    }
    assert (header.HEADER_START, header._LARGEST_NAMES) == (2**20, 2**24)
    assert header.LARGEST_TENSOR == 2**31 - 1
    assert header.LARGEST_HEADER == 2**26
    assert f"2^26 + {file_writer.EXPANSION} * (bytes of the file)" in TEXT
    assert file_writer.EXPANSION_START == 2**26
    assert code_stream.CHUNK == 2**22
    assert "max(1, floor(2^22 / (inputs * positions)))" in TEXT
    assert f"K > {code_stream._LARGEST_KERNEL}" in TEXT
    assert f"If t is at most {code_stream._LARGEST_SHIFT}, s = t" in TEXT
    assert f"From {code_stream._TRELLIS} on s = t - {code_stream._TRELLIS}" in TEXT
    assert file_writer.LARGEST_PACK == 2**20
    assert "above 2^20 dense bytes" in TEXT


def test_the_document_names_the_version_of_the_format():
    """The heading has the version that opq writes."""
    assert TEXT.startswith(f"# The .opq file format, version {FORMAT_VERSION}\n")
    with OpqFile(small_file()) as file:
        assert file.format_version == FORMAT_VERSION
