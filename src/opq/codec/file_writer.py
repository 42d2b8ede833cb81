"""Tensors to the bytes of a .opq file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.codec.auxiliary import store
from opq.codec.byte_planes import encode_pack, estimate_pack
from opq.codec.header import LARGEST_TENSOR, Entry, Header, contents_of, encode_header
from opq.codec.sections import Section
from opq.errors import SourceError, TargetError, WeightError

MAGIC = b"OPQ"
FORMAT_VERSION = 1
PREFIX = struct.Struct("<3sBII")
"""Magic, format version, length of the header, CRC-32 of the eight bytes before it and of the header."""

LARGEST_PACK = 2**20
"""Dense bytes of auxiliary tensors that go into one section, unless a single tensor is larger."""

EXPANSION, EXPANSION_START = 4096, 2**26
"""A file of n bytes may hold tensors of at most EXPANSION_START + EXPANSION * n dense bytes."""


@dataclass(frozen=True)
class EncodedWeight:
    """A quantized weight whose section is ready; fields as in Entry. Without a step it has levels."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    step: float | None
    section: Section | bytes


@dataclass(frozen=True)
class AuxiliaryPack:
    """Auxiliary tensors whose common section is ready, in order of their names; the section's number is not known yet."""

    entries: tuple[Entry, ...]
    section: bytes


def pack_auxiliary(
    tensors: Iterable[tuple[str, NDArray[np.generic]]], storage: str, *, estimated: bool = False
) -> list[AuxiliaryPack]:
    """Encode auxiliary tensors, which come in ascending order of their UTF-8 names.

    `storage` is "exact", "half" or "8bit": what becomes of each, see `opq.codec.auxiliary.store`. Tensors are drawn one at a
    time. With `estimated` sections are empty bytes of about the length that coding would give, which is all that a plan needs.
    """
    packs: list[AuxiliaryPack] = []
    pending: list[Entry] = []
    arrays: list[NDArray[np.generic]] = []
    size = 0

    def close() -> None:
        nonlocal size
        if pending:
            packs.append(AuxiliaryPack(tuple(pending), bytes(estimate_pack(arrays)) if estimated else encode_pack(arrays)))
        pending.clear()
        arrays.clear()
        size = 0

    for name, array in tensors:
        check_text(name)
        kind = dtypes.name_of(array.dtype)
        if kind not in dtypes.NUMPY:
            raise WeightError(name, array.shape, f"dtype {kind} is not supported")
        if array.size > LARGEST_TENSOR:
            raise WeightError(name, array.shape, f"more than {LARGEST_TENSOR:,} elements")
        if size + array.nbytes > LARGEST_PACK:
            close()
        how, bounds, stored = store(array, storage)
        pending.append(Entry(name, array.shape, kind, how, 0, bounds=bounds))
        arrays.append(stored)
        size += array.nbytes
    close()
    return packs


def check_text(text: str) -> None:
    """Raise SourceError for a name or metadata that is no text, or that UTF-8 cannot express."""
    try:
        text.encode()
    except (UnicodeEncodeError, AttributeError):
        raise SourceError(f"name or metadata {text!r}", "it is not text that UTF-8 can express") from None


@dataclass(frozen=True)
class Layout:
    """A whole file, ready to be written: prefix and header, and the sections that follow in this order."""

    header: bytes
    sections: Sequence[Section]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + sum(section.size for section in self.sections)

    def pieces(self) -> Iterator[bytes]:
        """The bytes of the file, a section at a time."""
        yield self.header
        for section in self.sections:
            yield section.read()


def assemble(weights: Sequence[EncodedWeight], packs: Sequence[AuxiliaryPack], metadata: Mapping[str, str]) -> bytes:
    """The bytes of the file that `lay_out` plans."""
    return b"".join(layout(weights, packs, metadata).pieces())


def layout(weights: Sequence[EncodedWeight], packs: Sequence[AuxiliaryPack], metadata: Mapping[str, str]) -> Layout:
    """The whole file. Tensors stand in order of their names whatever the order given; equal sections are stored once.

    Raises TargetError when the file would hold more than readers expand it to (see `largest_content`).
    """
    entries, sections = _number_sections(weights, packs)
    for text in [*metadata, *metadata.values()]:
        check_text(text)
    layout = Layout(_prefixed_header(entries, sections, metadata), sections)
    dense = sum(entry.dense_bytes for entry in entries)
    if dense > largest_content(layout.size):
        raise TargetError(
            f"{dense:,} bytes of tensors would go into a file of {layout.size:,}: readers refuse to expand that far; "
            "ask for a larger file, or leave constant tensors out"
        )
    return layout


def fixed_bytes(
    weights: Iterable[tuple[str, tuple[int, ...], str]], packs: Sequence[AuxiliaryPack], metadata: Mapping[str, str]
) -> int:
    """Bytes of the file that are not codes, for weights of these names, shapes and dtypes.

    A close estimate: their steps, lengths and checksums are not known yet, so arbitrary ones stand for them.
    """
    stand_ins = [
        EncodedWeight(name, shape, dtype, (number * 0.6180339887) % 1.0 + 0.5, number.to_bytes(4, "big") * 50)
        for number, (name, shape, dtype) in enumerate(weights)
    ]
    entries, sections = _number_sections(stand_ins, packs)
    return len(_prefixed_header(entries, sections, metadata)) + sum(len(pack.section) for pack in packs)


def largest_content(file_bytes: int) -> int:
    """Dense bytes that a file of `file_bytes` may declare, unless its reader is told otherwise."""
    return EXPANSION_START + EXPANSION * file_bytes


def _number_sections(weights: Sequence[EncodedWeight], packs: Sequence[AuxiliaryPack]) -> tuple[list[Entry], list[Section]]:
    """Entries in order of names, and the sections they refer to in order of first use."""
    # A section of codes is known by its bytes and size, a pack by its number: packs of equal bytes hold different tensors.
    rows: list[tuple[Entry, tuple[object, bytes] | int, Section]] = []
    for weight in weights:
        check_text(weight.name)
        storage = "codes" if weight.step is not None else "levels"
        entry = Entry(weight.name, weight.shape, weight.dtype, storage, 0, weight.step)
        section = Section.of(weight.section)
        rows.append((entry, (contents_of(entry), section.digest), section))
    for number, pack in enumerate(packs):
        section = Section.of(pack.section)
        rows += [(entry, number, section) for entry in pack.entries]
    rows.sort(key=lambda row: row[0].name.encode())
    numbers: dict[tuple[object, bytes] | int, int] = {}
    sections: list[Section] = []
    entries = []
    for entry, key, section in rows:
        if key not in numbers:
            numbers[key] = len(sections)
            sections.append(section)
        entries.append(replace(entry, section=numbers[key]))
    return entries, sections


def _prefixed_header(entries: Sequence[Entry], sections: Sequence[Section], metadata: Mapping[str, str]) -> bytes:
    lengths, checksums = [section.size for section in sections], [section.checksum for section in sections]
    packed = encode_header(Header(entries, lengths, checksums, metadata))
    start = PREFIX.pack(MAGIC, FORMAT_VERSION, len(packed), 0)[:8]
    return start + zlib.crc32(packed, zlib.crc32(start)).to_bytes(4, "little") + packed
