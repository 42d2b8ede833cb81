"""The header: what tensors a file holds and where, as columns, deflated.

Columns, not rows: equal things stand together and deflate to almost nothing, which is what a file of 30 kB can afford.
docs/format.md is the normative text.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from opq import dtypes
from opq.codec.byte_reader import ByteReader, varint
from opq.errors import FormatError, TargetError, WeightError

LARGEST_HEADER, HEADER_START, HEADER_EXPANSION = 2**26, 2**20, 64
"""Bytes an inflated header may have: at most the first, and at most the second plus the third times its deflated bytes."""

LARGEST_TENSOR = 2**31 - 1
"""Elements a tensor may have."""

LARGEST_COUNT = 2**17
"""Tensors a file may have."""

_LARGEST_NAME = 2**16 - 1
_LARGEST_NAMES = 2**24
_LARGEST_RANK = 32
_LARGEST_METADATA = 2**12
_WHERE = "header"
_STORAGE = ("exact", "float16", "codes", "levels", "linear8", "relative8")

EIGHT_BITS = ("linear8", "relative8")
"""Storages that have bounds."""

_WIDE = frozenset({"float32", "float64"})
_ALLOWED = {
    "float16": dtypes.COMPRESSIBLE,
    "codes": dtypes.COMPRESSIBLE,
    "levels": dtypes.COMPRESSIBLE,
    "linear8": _WIDE,
    "relative8": _WIDE,
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    name     state-dict key
    shape    sizes, all >= 0; at most LARGEST_TENSOR elements
    dtype    name of the dtype it comes back in
    storage  of a weight "codes" (with a step) or "levels" (with a table in its section); of an auxiliary tensor "exact",
             "float16", "linear8" or "relative8" (see opq.codec.auxiliary)
    section  number of the section that holds it; tensors may share one
    step     quantization step of a tensor stored as codes, else None
    bounds   lowest and highest value of an 8-bit grid, float32 numbers; None for other storages
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    storage: str
    section: int
    step: float | None = None
    bounds: tuple[float, float] | None = None

    @property
    def is_weight(self) -> bool:
        """Whether it has codes; otherwise it is an auxiliary tensor."""
        return self.storage in ("codes", "levels")

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the tensor as its dtype stores it."""
        return self.count * dtypes.NUMPY[self.dtype].itemsize


@dataclass(frozen=True)
class Header:
    """The index of a file: entries in ascending order of their UTF-8 names; length and CRC-32 of each section in file order."""

    entries: Sequence[Entry]
    lengths: Sequence[int]
    checksums: Sequence[int]
    metadata: Mapping[str, str] = field(default_factory=dict)


def encode_header(header: Header) -> bytes:
    """The header's bytes, raw deflate; WeightError or TargetError for what no reader would take."""
    _check_writable(header)
    columns = header_columns(header)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflate.compress(columns) + deflate.flush()
    if len(columns) > _largest_header(len(packed)):
        raise TargetError(
            f"a header of {len(columns):,} bytes is more than readers take: too many tensors, or too large metadata"
        )
    return packed


def decode_header(data: bytes) -> Header:
    """The header in `data`; FormatError when anything about it breaks a rule of the format."""
    return _parse(inflate_header(data))


def _check_writable(header: Header) -> None:
    """Hold what is written to the limits that hold for what is read."""
    for entry in header.entries:
        if len(entry.name.encode()) > _LARGEST_NAME:
            raise WeightError(entry.name[:80], entry.shape, f"its name has more than {_LARGEST_NAME:,} bytes")
        if len(entry.shape) > _LARGEST_RANK:
            raise WeightError(entry.name, entry.shape, f"it has more than {_LARGEST_RANK} dimensions")
    if len(header.entries) > LARGEST_COUNT or sum(len(entry.name.encode()) for entry in header.entries) > _LARGEST_NAMES:
        raise TargetError(f"more than {LARGEST_COUNT:,} tensors, or {_LARGEST_NAMES:,} bytes of names, do not go into a file")
    if len(header.metadata) > _LARGEST_METADATA:
        raise TargetError(f"more than {_LARGEST_METADATA:,} metadata do not go into a file")


def header_columns(header: Header) -> bytes:
    """The header's bytes before they are deflated."""
    entries = header.entries
    names = [entry.name.encode() for entry in entries]
    shared = [_shared_prefix(a, b) for a, b in pairwise([b"", *names])]
    suffixes = [name[length:] for name, length in zip(names, shared, strict=True)]
    opened = 0
    references = []
    for entry in entries:
        references.append(0 if entry.section == opened else entry.section + 1)
        opened = max(opened, entry.section + 1)
    pairs = sorted((key.encode(), value.encode()) for key, value in header.metadata.items())
    return b"".join(
        [
            varint(len(pairs)),
            *(varint(len(text)) + text for pair in pairs for text in pair),
            varint(len(entries)),
            *map(varint, shared),
            *(varint(len(suffix)) for suffix in suffixes),
            *suffixes,
            bytes(dtypes.CODE[entry.dtype] for entry in entries),
            bytes(_STORAGE.index(entry.storage) for entry in entries),
            *(varint(len(entry.shape)) for entry in entries),
            *(varint(size) for entry in entries for size in entry.shape),
            *map(varint, references),
            *(struct.pack("<f", entry.step) for entry in entries if entry.step is not None),
            *_encode_bounds([entry.bounds for entry in entries if entry.bounds is not None]),
            *map(varint, header.lengths),
            *(struct.pack("<I", checksum) for checksum in header.checksums),
        ]
    )


def _encode_bounds(bounds: Sequence[tuple[float, float]]) -> Iterator[bytes]:
    """The highest byte of each number, then the next lower one: the lowest are mostly zero, and deflate to nothing."""
    words = b"".join(struct.pack("<ff", *pair) for pair in bounds)
    return (words[place::4] for place in (3, 2, 1, 0))


def _decode_bounds(reader: ByteReader, count: int) -> list[tuple[float, float]]:
    planes = [reader.take(2 * count) for _ in range(4)]
    words = b"".join(bytes(word[::-1]) for word in zip(*planes, strict=True))
    return list(struct.iter_unpack("<ff", words))


def _shared_prefix(a: bytes, b: bytes) -> int:
    length = min(len(a), len(b))
    # As one number: its leading zero bytes are what the two share.
    difference = int.from_bytes(a[:length], "big") ^ int.from_bytes(b[:length], "big")
    return length - (difference.bit_length() + 7) // 8


def inflate_header(data: bytes) -> bytes:
    """The header's bytes, inflated; FormatError when they do not inflate, or to too many."""
    inflate = zlib.decompressobj(-15)
    limit = _largest_header(len(data))
    try:
        columns = inflate.decompress(data, limit)
    except zlib.error as error:
        raise FormatError(_WHERE, f"it does not inflate: {error}") from None
    if not inflate.eof or inflate.unused_data:
        raise FormatError(_WHERE, f"it is cut off, has bytes too many, or inflates to more than {limit:,} bytes")
    return columns


def _largest_header(packed: int) -> int:
    return min(LARGEST_HEADER, HEADER_START + HEADER_EXPANSION * packed)


def _parse(columns: bytes) -> Header:
    reader = ByteReader(columns, _WHERE)
    metadata = _metadata(reader, reader.varint(_LARGEST_METADATA))
    count = reader.varint(LARGEST_COUNT)
    names = _names(reader, count)
    kinds = [_lookup(dtypes.NAME, code, "dtype") for code in reader.take(count)]
    storages = [_lookup(dict(enumerate(_STORAGE)), code, "storage") for code in reader.take(count)]
    ranks = [reader.varint(_LARGEST_RANK) for _ in range(count)]
    shapes = [_shape(reader, rank, name) for rank, name in zip(ranks, names, strict=True)]
    sections = _sections(reader, count)
    steps = [struct.unpack("<f", reader.take(4))[0] if storage == "codes" else None for storage in storages]
    grids = iter(_decode_bounds(reader, sum(storage in EIGHT_BITS for storage in storages)))
    bounds = [next(grids) if storage in EIGHT_BITS else None for storage in storages]
    opened = max(sections, default=-1) + 1
    lengths = [reader.varint() for _ in range(opened)]
    checksums = [struct.unpack("<I", reader.take(4))[0] for _ in range(opened)]
    reader.end()
    rows = zip(names, shapes, kinds, storages, sections, steps, bounds, strict=True)
    entries = [Entry(*row) for row in rows]
    _check(entries)
    return Header(entries, lengths, checksums, metadata)


def _metadata(reader: ByteReader, count: int) -> dict[str, str]:
    texts = [_text(reader.take(reader.varint())) for _ in range(2 * count)]
    keys = texts[::2]
    if any(a.encode() >= b.encode() for a, b in pairwise(keys)):
        raise FormatError(_WHERE, "metadata keys are not in ascending order")
    return dict(zip(keys, texts[1::2], strict=True))


def _names(reader: ByteReader, count: int) -> list[str]:
    shared = [reader.varint(_LARGEST_NAME) for _ in range(count)]
    lengths = [reader.varint(_LARGEST_NAME) for _ in range(count)]
    if sum(shared) + sum(lengths) > _LARGEST_NAMES:
        raise FormatError(_WHERE, f"its names have more than {_LARGEST_NAMES:,} bytes")
    names: list[str] = []
    last = b""
    for keep, length in zip(shared, lengths, strict=True):
        if keep > len(last) or keep + length > _LARGEST_NAME:
            raise FormatError(_WHERE, "a name repeats more of the one before it than there is, or is too long")
        name = last[:keep] + reader.take(length)
        if names and name <= last:
            raise FormatError(_WHERE, f"names are not in ascending order at {name[:80]!r}")
        names.append(_text(name))
        last = name
    return names


def _shape(reader: ByteReader, rank: int, name: str) -> tuple[int, ...]:
    shape = tuple(reader.varint(LARGEST_TENSOR) for _ in range(rank))
    if math.prod(size for size in shape if size) > LARGEST_TENSOR:
        raise FormatError(_WHERE, f"tensor {name!r} has more than {LARGEST_TENSOR:,} elements")
    return shape


def _sections(reader: ByteReader, count: int) -> list[int]:
    sections: list[int] = []
    opened = 0
    for _ in range(count):
        reference = reader.varint(opened)
        sections.append(reference - 1 if reference else opened)
        opened += reference == 0
    return sections


def _check(entries: Sequence[Entry]) -> None:
    held: dict[int, object] = {}
    for entry in entries:
        where = f"tensor {entry.name!r}"
        if entry.dtype not in _ALLOWED.get(entry.storage, dtypes.CODE):
            raise FormatError(_WHERE, f"{where}: {entry.dtype} cannot be stored as {entry.storage}")
        if entry.is_weight and entry.count == 0:
            raise FormatError(_WHERE, f"{where}: an empty tensor has no codes")
        if entry.step is not None and not (0.0 < entry.step < math.inf):
            raise FormatError(_WHERE, f"{where}: step must be positive and finite, got {entry.step}")
        if entry.bounds is not None and not _is_range(entry.storage, *entry.bounds):
            raise FormatError(_WHERE, f"{where}: {entry.bounds} are not the bounds of a grid")
        if held.setdefault(entry.section, contents_of(entry)) != contents_of(entry):
            raise FormatError(_WHERE, f"{where}: it shares a section with a tensor of another kind or size")


def contents_of(entry: Entry) -> object:
    """What the tensors of a section have in common: tied weights their size, and their dtype where they have levels."""
    return (entry.storage, entry.count, entry.dtype if entry.storage == "levels" else "") if entry.is_weight else "pack"


def repeated_weights(entries: Sequence[Entry]) -> set[str]:
    """Names of weights that equal, bit for bit, a weight of an earlier name."""
    first: dict[object, str] = {}
    return {
        entry.name
        for entry in entries
        if entry.is_weight and first.setdefault((entry.section, entry.shape, entry.dtype, entry.step), entry.name) != entry.name
    }


def _is_range(storage: str, lowest: float, highest: float) -> bool:
    smallest = 2.0**-126 if storage == "relative8" else -math.inf
    return math.isfinite(lowest) and math.isfinite(highest) and smallest <= lowest <= highest


def _lookup(table: Mapping[int, str], code: int, what: str) -> str:
    if code not in table:
        raise FormatError(_WHERE, f"unknown {what} {code}; a newer opq may read this file")
    return table[code]


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise FormatError(_WHERE, f"{data[:80]!r} is not UTF-8") from None
