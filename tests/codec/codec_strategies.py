"""Hypothesis strategies for codes, auxiliary tensors and whole files; and files put together from given parts."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from opq import dtypes
from opq.codec.code_stream import Geometry
from opq.codec.file_writer import write
from opq.codec.header import Header, decode_header, encode_header
from opq.config import Speed
from opq.quantization.codebook import Codebook, LevelTable, ScaledCodebook, UniformCodebook, codebook_of
from opq.quantization.compressed_tensor import CompressedTensor
from opq.quantization.float_order import from_ordinals, to_ordinals

LARGEST = 2**24 - 1
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=6)
SHAPES_WITH_EMPTY = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(["conv1.weight", "conv1.bias", "é.ü"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
STEPS = st.floats(2.0**-20, 2.0**10, width=32)

MAGNITUDES = st.integers(0, 2) | st.integers(0, 40) | st.integers(0, LARGEST) | st.integers(4, 24).map(lambda k: 2**k - 1)
CODES = arrays.arrays(np.int32, SHAPES, elements=st.builds(lambda m, sign: m * sign, MAGNITUDES, st.sampled_from([1, -1])))
SMALL_CODES = arrays.arrays(np.int32, SHAPES, elements=st.integers(-20, 20))


@st.composite
def bit_patterns(draw, kind: np.dtype, shapes=SHAPES_WITH_EMPTY) -> NDArray[np.generic]:
    """An array of a dtype whose bits may be anything: NaNs with payloads, infinities, negative zeros."""
    shape = draw(shapes)
    count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if kind == np.bool_ or dtypes.BITS[kind.name] < 8:
        largest = 1 if kind == np.bool_ else 2 ** dtypes.BITS[kind.name] - 1
        raw = draw(arrays.arrays(np.uint8, count, elements=st.integers(0, largest)))
    else:
        raw = draw(arrays.arrays(np.uint8, count, elements=st.integers(0, 255), fill=st.sampled_from([0, 0x80, 0xFF, 0x7F])))
    return raw.view(kind).reshape(shape)


AUXILIARY = st.sampled_from(sorted(dtypes.NUMPY)).flatmap(lambda name: bit_patterns(dtypes.NUMPY[name]))
VECTORS = arrays.arrays(
    st.sampled_from([np.float32, np.float64]),
    st.integers(16, 40),
    elements=st.floats(-2, 2, width=32) | st.floats(0.5, 2, width=32),
    fill=st.sampled_from([0.0, 1.0, -1.0]),
)
HALVABLE = arrays.arrays(
    np.float32, SHAPES, elements=st.floats(-60000, 60000, width=32).filter(lambda x: not 0 < abs(x) < 1e-4)
)
STEPPED = st.builds(CompressedTensor, SMALL_CODES, STEPS.map(UniformCodebook), st.sampled_from(sorted(dtypes.COMPRESSIBLE)))


@st.composite
def leveled(draw, codes=SMALL_CODES) -> CompressedTensor:
    """A weight with a table of levels: subnormal and huge ones, -0.0, of one sign or both. Some may be unused."""
    kind = draw(st.sampled_from(sorted(dtypes.COMPRESSIBLE)))
    dtype = dtypes.NUMPY[kind]
    infinity = int(to_ordinals(np.array([np.inf]).astype(dtype))[0])
    near = st.integers(-60, 60)
    ordinals = draw(st.lists(near | st.integers(-infinity, infinity - 1), min_size=1, max_size=12, unique=True))
    array = draw(codes)
    chosen = np.array((sorted(set(ordinals) - {0}) or [1])[: array.size], dtype=f"i{dtype.itemsize}")
    negatives = int((chosen < 0).sum())
    clipped = np.clip(array, -negatives, len(chosen) - negatives)
    return CompressedTensor(clipped, LevelTable(from_ordinals(chosen, dtype)), kind)


@st.composite
def scaled(draw, codes=SMALL_CODES) -> CompressedTensor:
    """A weight whose rows, columns or both have scales, which change a step by at most two octaves; any of them may be 0."""
    array = draw(codes.filter(lambda array: array.ndim > 0))
    lengths = {"rows": len(array), "columns": array[0].size}
    axes = draw(st.sampled_from([("rows",), ("columns",), ("rows", "columns")]))
    found = {axis: draw(arrays.arrays(np.int8, lengths[axis], elements=st.integers(-8, 4))) for axis in axes}
    codebook = codebook_of(draw(STEPS), found.get("rows"), found.get("columns"))
    return CompressedTensor(array, codebook, draw(st.sampled_from(sorted(dtypes.COMPRESSIBLE))))


def on_trellis(indices: NDArray[np.int32]) -> NDArray[np.int32]:
    """The codes n of docs/format.md, "Trellis", that these k give, row by row; the weight has no kernels."""
    rows = indices.reshape(Geometry.of(indices.shape).outputs, -1)
    codes = np.zeros_like(rows)
    for row, found in zip(rows.tolist(), codes, strict=True):
        s2 = s1 = s0 = 0
        for place, k in enumerate(row):
            found[place] = 0 if k == 0 else (2 * abs(k) - s0) * (1 if k > 0 else -1)
            s2, s1, s0 = s1, s0, (abs(k) ^ s1 ^ s2) & 1
    return codes.reshape(indices.shape)


FLAT_SHAPES = SHAPES.filter(lambda shape: Geometry.of(shape).positions == 1)
INDICES = arrays.arrays(
    np.int32, FLAT_SHAPES, elements=st.integers(-3, 3) | st.integers(-20, 20) | st.integers(1 - 2**23, 2**23 - 1)
)


@st.composite
def trellised(draw) -> CompressedTensor:
    """A weight whose codes follow the trellis, with or without scales of rows."""
    codes = on_trellis(draw(INDICES))
    rows = draw(arrays.arrays(np.int8, len(codes), elements=st.integers(-8, 4))) if codes.ndim and draw(st.booleans()) else None
    kind = draw(st.sampled_from(["float32", "float64"]))
    return CompressedTensor(codes, codebook_of(draw(STEPS), rows, None), kind, trellis=True)


WEIGHTS = STEPPED | leveled() | scaled() | trellised()


def stepped(codes: NDArray[np.int32], step: float = 1.0, dtype: str = "float32") -> CompressedTensor:
    """A weight of these codes, with the float32 number nearest to `step`."""
    return CompressedTensor(codes, UniformCodebook(float(np.float32(step))), dtype)


def trellised_as(indices: NDArray[np.int32], step: float = 1.0, dtype: str = "float32") -> CompressedTensor:
    """A weight whose codes follow the trellis, from its k, with the float32 number nearest to `step`."""
    return CompressedTensor(on_trellis(indices), UniformCodebook(float(np.float32(step))), dtype, trellis=True)


def scaled_as(
    codes: NDArray[np.int32],
    step: float = 1.0,
    dtype: str = "float32",
    *,
    rows: Sequence[int] | None = None,
    columns: Sequence[int] | None = None,
) -> CompressedTensor:
    """A weight of these codes and scales, with the float32 number nearest to `step`."""
    return CompressedTensor(codes, codebook_of(float(np.float32(step)), rows, columns), dtype)


def leveled_as(codes: NDArray[np.int32], levels: NDArray[np.generic]) -> CompressedTensor:
    """A weight of these codes and levels, in the dtype of the levels."""
    return CompressedTensor(codes, LevelTable(levels), levels.dtype.name)


def encode_file(
    tensors: Mapping[str, CompressedTensor | NDArray[np.generic]],
    storage: str = "exact",
    metadata: Mapping[str, str] | None = None,
    speed: Speed = "small",
) -> bytes:
    """A file of these tensors."""
    return b"".join(write(tensors, storage=storage, metadata=metadata, speed=speed).pieces())


@st.composite
def files(draw, storages=("exact", "float16", "uint8")) -> bytes:
    """The tensors of a file: weights, some of them tied, auxiliary tensors of every kind, and metadata."""
    tensors = draw(st.dictionaries(NAMES, WEIGHTS | AUXILIARY | HALVABLE | VECTORS, max_size=6))
    for name, tensor in list(tensors.items()):
        if isinstance(tensor, CompressedTensor) and draw(st.booleans()):
            has_rows = tensor.trellis or isinstance(tensor.codebook, ScaledCodebook)
            tied = {"dtype": "float32"} if has_rows else {"codes": tensor.codes.reshape(-1)}
            tensors[name + "+"] = replace(tensor, **tied)
    metadata = draw(st.dictionaries(TEXTS, TEXTS, max_size=3))
    return encode_file(tensors, draw(st.sampled_from(storages)), metadata)


def small_file() -> bytes:
    """A file of some hundred bytes with tensors of every kind, for tests that go through all its bytes."""
    codes = np.array([0, 1, -1, 0, 0, 2, -3, 0, 0, 0, 1, 0, -20, 0, 0, 1000, 0, 0, -1, 0, 4, 0, 0, 1], dtype=np.int32)
    tensors = {
        "features.0.weight": stepped(codes.reshape(2, 3, 2, 2), 0.0625),
        "features.3.weight": stepped(codes[::-1].copy().reshape(4, 6), 0.125, "float16"),
        "features.6.weight": scaled_as(codes.reshape(3, 2, 2, 2), 0.5, rows=[8, 0, -3], columns=[1] * 7 + [-9]),
        "head.weight": stepped(codes.reshape(4, 6), 0.25, "float64"),
        "mixer.weight": trellised_as(codes.reshape(3, 8), 0.25),
        "scale": stepped(np.array(-5, dtype=np.int32), 0.1, "bfloat16"),
    }
    ramp = np.arange(40)
    tensors |= {
        "features.0.bias": (ramp / 64 + 0.5).astype(np.float32),
        "features.1.num_batches_tracked": np.array(123456789, dtype=np.int64),
        "features.1.running_var": np.sqrt(ramp[1:] / 7.0),
        "features.3.bias": np.full(6, 0.5, dtype=dtypes.NUMPY["bfloat16"]),
        "head.empty": np.zeros((0, 3), dtype=np.float32),
        "head.mask": ramp % 3 == 0,
    }
    return encode_file(tensors, "float16", {"format": "pt", "note": "é"})


def inflate(data: bytes) -> bytes:
    """The inflated header of a file."""
    length = struct.unpack_from("<I", data, 4)[0]
    return zlib.decompress(data[12 : 12 + length], -15)


def deflate(columns: bytes) -> bytes:
    """`columns` as a raw deflate stream."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(columns) + compressor.flush()


def sections_of(data: bytes) -> list[bytes]:
    """The sections of a file."""
    at = 12 + struct.unpack_from("<I", data, 4)[0]
    sections = []
    for length in decode_header(deflate(inflate(data))).lengths:
        sections.append(data[at : at + length])
        at += length
    return sections


def wrap(packed: bytes, body: bytes = b"", version: int = 1, magic: bytes = b"OPQ") -> bytes:
    """A file with this deflated header, these bytes after it, and a correct checksum of the header."""
    start = struct.pack("<3sBI", magic, version, len(packed))
    return start + struct.pack("<I", zlib.crc32(start + packed)) + packed + body


def with_columns(data: bytes, columns: bytes) -> bytes:
    """A file with another inflated header and its correct checksum."""
    return wrap(deflate(columns), b"".join(sections_of(data)))


def with_sections(data: bytes, sections: list[bytes]) -> bytes:
    """A file with other sections, and correct checksums and lengths."""
    header = decode_header(deflate(inflate(data)))
    lengths, checksums = [len(section) for section in sections], [zlib.crc32(section) for section in sections]
    return wrap(encode_header(Header(header.entries, lengths, checksums, header.metadata)), b"".join(sections))


def same_codebooks(a: Codebook, b: Codebook) -> bool:
    """Whether two codebooks give the same values."""
    keys = [
        [type(book), getattr(book, "step", None), *(np.array(getattr(book, key, None)).tolist() for key in ("rows", "columns"))]
        for book in (a, b)
    ]
    return keys[0] == keys[1] and same_bits(*(getattr(book, "levels", np.zeros(0)) for book in (a, b)))


def same_bits(a: NDArray[np.generic], b: NDArray[np.generic]) -> bool:
    """Whether two arrays have the same dtype, shape and bytes."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
