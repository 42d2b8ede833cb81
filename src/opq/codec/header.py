"""The header: the entries of all tensors, as deflated columns.

In columns similar values are adjacent, so they deflate to very few bytes, which matters for files of 30 kB. docs/format.md is
the normative text.
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
from opq.codec.difference_words import SUPPORTED
from opq.codec.entry import EIGHT_BITS, LARGEST_TENSOR, NO_SECTION, OF_BASE, STEPPED, Entry, contents_of
from opq.errors import FormatError, TargetError, WeightError

LARGEST_HEADER, HEADER_START, HEADER_EXPANSION = 2**26, 2**20, 64
"""An inflated header has at most min(LARGEST_HEADER, HEADER_START + HEADER_EXPANSION * deflated bytes) bytes."""

LARGEST_COUNT = 2**17
"""The largest number of tensors in a file."""

_LARGEST_NAME = 2**16 - 1
_LARGEST_NAMES = 2**24
_LARGEST_RANK = 32
_LARGEST_METADATA = 2**12
_WHERE = "header"
_STORAGE = ("exact", "float16", "codes", "levels", "linear8", "relative8", "scaled", *OF_BASE)
DIGEST = 32
"""Bytes of the digest of a delta's base."""

_WIDE = frozenset({"float32", "float64"})
_ALLOWED = {
    "float16": dtypes.COMPRESSIBLE,
    "codes": dtypes.COMPRESSIBLE,
    "levels": dtypes.COMPRESSIBLE,
    "linear8": _WIDE,
    "relative8": _WIDE,
    "scaled": dtypes.COMPRESSIBLE,
    "difference": SUPPORTED,
}


@dataclass(frozen=True)
class Header:
    """The index of a file.

    Args:
        entries: The tensors, in ascending order of their UTF-8 names.
        lengths: Bytes of each section, in the order of the file.
        checksums: CRC-32 of each section.
        metadata: {text: text}.
        base: Of a delta the digest of its base, DIGEST bytes; otherwise empty.
    """

    entries: Sequence[Entry]
    lengths: Sequence[int]
    checksums: Sequence[int]
    metadata: Mapping[str, str] = field(default_factory=dict)
    base: bytes = b""


def encode_header(header: Header) -> bytes:
    """Encode and deflate a header.

    Raises:
        WeightError: A name is too long, or a tensor has too many dimensions.
        TargetError: There are too many tensors, names or metadata.
    """
    _check_writable(header)
    columns = header_columns(header)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflate.compress(columns) + deflate.flush()
    if len(columns) > _largest_header(len(packed)):
        raise TargetError(
            f"the header must have at most {_largest_header(len(packed)):,} bytes, got {len(columns):,}; "
            "reduce the number of tensors, or the metadata"
        )
    return packed


def decode_header(data: bytes, *, delta: bool = False) -> Header:
    """Inverse of `encode_header`.

    Args:
        data: The deflated header, untrusted.
        delta: Whether it is that of a delta.

    Raises:
        FormatError: The header breaks a rule of the format.
    """
    return _parse(inflate_header(data), delta)


def _check_writable(header: Header) -> None:
    """Check the limits that readers check."""
    for entry in header.entries:
        if len(entry.name.encode()) > _LARGEST_NAME:
            raise WeightError(entry.name[:80], entry.shape, f"its name must have at most {_LARGEST_NAME:,} bytes")
        if len(entry.shape) > _LARGEST_RANK:
            raise WeightError(entry.name, entry.shape, f"it must have at most {_LARGEST_RANK} dimensions")
    if len(header.entries) > LARGEST_COUNT or sum(len(entry.name.encode()) for entry in header.entries) > _LARGEST_NAMES:
        raise TargetError(f"a file must have at most {LARGEST_COUNT:,} tensors, and {_LARGEST_NAMES:,} bytes of names")
    if len(header.metadata) > _LARGEST_METADATA:
        raise TargetError(f"a file must have at most {_LARGEST_METADATA:,} metadata, got {len(header.metadata):,}")


def header_columns(header: Header) -> bytes:
    """The bytes of a header before deflation."""
    entries = header.entries
    names = [entry.name.encode() for entry in entries]
    shared = [_shared_prefix(a, b) for a, b in pairwise([b"", *names])]
    suffixes = [name[length:] for name, length in zip(names, shared, strict=True)]
    num_sections = 0
    references = []
    for entry in entries:
        if entry.section == NO_SECTION:
            continue
        references.append(0 if entry.section == num_sections else entry.section + 1)
        num_sections = max(num_sections, entry.section + 1)
    pairs = sorted((key.encode(), value.encode()) for key, value in header.metadata.items())
    return b"".join(
        [
            header.base,
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
    """The highest bytes of all numbers, then the next lower ones, and so on: the lowest are mostly zero."""
    words = b"".join(struct.pack("<ff", *pair) for pair in bounds)
    return (words[byte::4] for byte in (3, 2, 1, 0))


def _decode_bounds(reader: ByteReader, count: int) -> list[tuple[float, float]]:
    planes = [reader.take(2 * count) for _ in range(4)]
    words = b"".join(bytes(word[::-1]) for word in zip(*planes, strict=True))
    return list(struct.iter_unpack("<ff", words))


def _shared_prefix(a: bytes, b: bytes) -> int:
    length = min(len(a), len(b))
    # Of the difference as one integer, the leading zero bytes are the common prefix.
    difference = int.from_bytes(a[:length], "big") ^ int.from_bytes(b[:length], "big")
    return length - (difference.bit_length() + 7) // 8


def inflate_header(data: bytes) -> bytes:
    """Inflate a header; FormatError if that fails, or gives too many bytes."""
    inflate = zlib.decompressobj(-15)
    limit = _largest_header(len(data))
    try:
        columns = inflate.decompress(data, limit)
    except zlib.error as error:
        raise FormatError(_WHERE, f"it cannot be inflated: {error}") from None
    if not inflate.eof or inflate.unused_data:
        raise FormatError(_WHERE, f"it is truncated, has bytes too many at the end, or inflates to more than {limit:,} bytes")
    return columns


def _largest_header(packed: int) -> int:
    return min(LARGEST_HEADER, HEADER_START + HEADER_EXPANSION * packed)


def _parse(columns: bytes, delta: bool) -> Header:
    reader = ByteReader(columns, _WHERE)
    base = reader.take(DIGEST) if delta else b""
    metadata = _metadata(reader, reader.varint(_LARGEST_METADATA))
    count = reader.varint(LARGEST_COUNT)
    names = _names(reader, count)
    kinds = [_lookup(dtypes.NAME, code, "dtype") for code in reader.take(count)]
    known = {code: storage for code, storage in enumerate(_STORAGE) if delta or storage not in OF_BASE}
    storages = [_lookup(known, code, "storage") for code in reader.take(count)]
    ranks = [reader.varint(_LARGEST_RANK) for _ in range(count)]
    shapes = [_shape(reader, rank, name) for rank, name in zip(ranks, names, strict=True)]
    sections = _sections(reader, storages)
    steps = [struct.unpack("<f", reader.take(4))[0] if storage in STEPPED else None for storage in storages]
    grids = iter(_decode_bounds(reader, sum(storage in EIGHT_BITS for storage in storages)))
    bounds = [next(grids) if storage in EIGHT_BITS else None for storage in storages]
    num_sections = max(sections, default=-1) + 1
    lengths = [reader.varint() for _ in range(num_sections)]
    checksums = [struct.unpack("<I", reader.take(4))[0] for _ in range(num_sections)]
    reader.end()
    rows = zip(names, shapes, kinds, storages, sections, steps, bounds, strict=True)
    entries = [Entry(*row) for row in rows]
    _check(entries)
    return Header(entries, lengths, checksums, metadata, base)


def _metadata(reader: ByteReader, count: int) -> dict[str, str]:
    texts = [_text(reader.take(reader.varint())) for _ in range(2 * count)]
    keys = texts[::2]
    if any(a.encode() >= b.encode() for a, b in pairwise(keys)):
        raise FormatError(_WHERE, "metadata keys must be in ascending order")
    return dict(zip(keys, texts[1::2], strict=True))


def _names(reader: ByteReader, count: int) -> list[str]:
    shared = [reader.varint(_LARGEST_NAME) for _ in range(count)]
    lengths = [reader.varint(_LARGEST_NAME) for _ in range(count)]
    if sum(shared) + sum(lengths) > _LARGEST_NAMES:
        raise FormatError(_WHERE, f"its names must have at most {_LARGEST_NAMES:,} bytes together")
    names: list[str] = []
    last = b""
    for prefix, length in zip(shared, lengths, strict=True):
        if prefix > len(last) or prefix + length > _LARGEST_NAME:
            raise FormatError(_WHERE, "a name repeats more bytes than the name before it has, or is too long")
        name = last[:prefix] + reader.take(length)
        if names and name <= last:
            raise FormatError(_WHERE, f"names must be in ascending order, got {name[:80]!r} after {last[:80]!r}")
        names.append(_text(name))
        last = name
    return names


def _shape(reader: ByteReader, rank: int, name: str) -> tuple[int, ...]:
    shape = tuple(reader.varint(LARGEST_TENSOR) for _ in range(rank))
    if math.prod(size for size in shape if size) > LARGEST_TENSOR:
        raise FormatError(_WHERE, f"tensor {name!r} must have at most {LARGEST_TENSOR:,} elements, got shape {shape}")
    return shape


def _sections(reader: ByteReader, storages: Sequence[str]) -> list[int]:
    sections: list[int] = []
    num_sections = 0
    for storage in storages:
        if storage == "base":
            sections.append(NO_SECTION)
            continue
        reference = reader.varint(num_sections)
        sections.append(reference - 1 if reference else num_sections)
        num_sections += reference == 0
    return sections


def _check(entries: Sequence[Entry]) -> None:
    contents: dict[int, object] = {}
    for entry in entries:
        where = f"tensor {entry.name!r}"
        if entry.dtype not in _ALLOWED.get(entry.storage, dtypes.CODE):
            raise FormatError(_WHERE, f"{where}: {entry.dtype} cannot be stored as {entry.storage}")
        if (entry.is_weight or entry.storage == "difference") and entry.count == 0:
            raise FormatError(_WHERE, f"{where}: an empty tensor must not be stored as {entry.storage}")
        if entry.storage == "scaled" and not entry.shape:
            raise FormatError(_WHERE, f"{where}: a tensor without dimensions must not be stored as {entry.storage}")
        if entry.step is not None and not (0.0 < entry.step < math.inf):
            raise FormatError(_WHERE, f"{where}: step must be positive and finite, got {entry.step}")
        if entry.bounds is not None and not _are_bounds(entry.storage, *entry.bounds):
            raise FormatError(_WHERE, f"{where}: the bounds of a grid must be finite and ascending, got {entry.bounds}")
        if entry.section != NO_SECTION and contents.setdefault(entry.section, contents_of(entry)) != contents_of(entry):
            raise FormatError(_WHERE, f"{where}: it must not share a section with a tensor of another kind or size")


def _are_bounds(storage: str, lowest: float, highest: float) -> bool:
    smallest = 2.0**-126 if storage == "relative8" else -math.inf
    return math.isfinite(lowest) and math.isfinite(highest) and smallest <= lowest <= highest


def _lookup(table: Mapping[int, str], code: int, what: str) -> str:
    if code not in table:
        raise FormatError(_WHERE, f"unknown {what} {code}; a newer version of opq may read this file")
    return table[code]


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise FormatError(_WHERE, f"text must be UTF-8, got {data[:80]!r}") from None
