"""Changes files and corrects their checksums, because readers refuse randomly changed bytes at the first checksum.

A file is parsed, changed in one place, and written again. Most changes are of the header's fields of one tensor, often with
data that match them: files that are nearly valid reach more code than others.
"""

from __future__ import annotations

import math
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from codec_strategies import deflate, inflate, small_file, wrap

from opq import dtypes
from opq.codec.auxiliary import stored_dtype
from opq.codec.byte_planes import encode_pack
from opq.codec.entry import EIGHT_BITS, NO_SECTION, STEPPED, Entry
from opq.codec.file_start import DELTA_MAGIC, MAGIC
from opq.codec.header import DIGEST, Header, decode_header, header_columns
from opq.codec.weight_section import encode_weight
from opq.errors import OpqError
from opq.quantization.codebook import Codebook, LevelTable, UniformCodebook, codebook_of
from opq.quantization.compressed_tensor import CompressedTensor
from opq.quantization.float_order import from_ordinals

Mutate = Callable[[bytes, int], bytes]
"""(bytes, largest size) -> mutated bytes, as libFuzzer's mutator."""

_SIZES = (0, 1, 2, 3, 7, 16, 63, 64, 65, 255, 256, 4095, 2**16, 2**31 - 1)
_STORAGES = ("exact", "float16", "codes", "levels", "linear8", "relative8", "scaled")
_MOST_REFILLED = 2000


@dataclass
class _Parts:
    """A parsed file; the section of an entry is an index of `sections`."""

    entries: list[Entry]
    sections: list[bytes]
    metadata: dict[str, str]
    base: bytes


class Mutator:
    """Makes changed files, nearly always with correct checksums."""

    _magic = MAGIC

    def __init__(self, mutate_bytes: Mutate) -> None:
        self._mutate_bytes = mutate_bytes
        self._chance = random.Random()

    def __call__(self, data: bytes, max_size: int, seed: int) -> bytes:
        """A changed file of at most `max_size` bytes. Equal seeds and equal states of libFuzzer give the same file."""
        self._chance.seed(seed)
        try:
            changed = self._change(data, max_size)
        except (OpqError, ValueError, struct.error, zlib.error):  # it cannot be parsed, or cannot be written
            changed = (
                self._valid_file()
                if self._chance.random() < 0.1
                else wrap(deflate(self._mutate_bytes(data[12:200], 400)), data[200:], magic=self._magic)
            )
        return changed if len(changed) <= max_size else data

    def _valid_file(self) -> bytes:
        return small_file()

    def _change(self, data: bytes, max_size: int) -> bytes:
        choice = self._chance.random()
        if choice < 0.02:
            return self._mutate_bytes(data, max_size)
        start = 12 + struct.unpack_from("<I", data, 4)[0]
        if choice < 0.25:
            columns, digest = inflate(data), DIGEST if self._magic == DELTA_MAGIC else 0
            columns = columns[:digest] + self._mutate_bytes(columns[digest:], max_size)
            return wrap(deflate(columns), data[start:], magic=self._magic)
        parts = _take_apart(data)
        if choice < 0.5 and parts.sections:
            number = self._chance.randrange(len(parts.sections))
            parts.sections[number] = self._mutate_bytes(parts.sections[number] or b"?", max_size)
        else:
            self._change_entry(parts)
        return _put_together(parts)

    def _change_entry(self, parts: _Parts) -> None:
        """Change fields of a tensor, and often also its section."""
        chance, entries = self._chance, parts.entries
        if not entries:
            entries.append(Entry("w", (2, 3), "float32", "exact", 0))
            parts.sections.append(b"")
        number = chance.randrange(len(entries))
        entry = entries[number]
        if chance.random() < 0.1 and len(entries) > 1:
            del entries[number]
            return
        if chance.random() < 0.1 and entry.section != NO_SECTION:
            parts.sections.append(parts.sections[entry.section])
            entry = replace(entry, name=self._name(entry.name), section=len(parts.sections) - 1)
            entries.append(entry)
            number = len(entries) - 1
        for _ in range(chance.choice((1, 1, 2))):
            entry = self._other(entry, len(parts.sections))
        entries[number] = entry
        if chance.random() < 0.6 and entry.section != NO_SECTION:
            with suppress(OpqError, ValueError):  # no section may match the fields
                parts.sections[entry.section] = self._fill([other for other in entries if other.section == entry.section])

    def _other(self, entry: Entry, sections: int) -> Entry:
        chance = self._chance
        field = chance.choice(("name", "shape", "shape", "dtype", "storage", "section", "number", "number"))
        if field == "name":
            return replace(entry, name=self._name(entry.name))
        if field == "shape":
            return replace(entry, shape=self._shape(entry.shape))
        if field == "dtype":
            return replace(entry, dtype=chance.choice(tuple(dtypes.CODE)))
        if field == "section":
            return replace(entry, section=chance.randrange(sections))
        storage = chance.choice(_STORAGES) if field == "storage" else entry.storage
        step = self._number() if storage in STEPPED else None
        bounds = (self._number(), self._number()) if storage in EIGHT_BITS else None
        if bounds and chance.random() < 0.7:
            bounds = min(bounds), max(bounds)
        return replace(entry, storage=storage, step=step, bounds=bounds)

    def _name(self, name: str) -> str:
        return self._mutate_bytes(name.encode() or b"w", 12).decode(errors="ignore")

    def _shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        chance, sizes = self._chance, list(shape)
        choice = chance.random()
        if choice < 0.2 or not sizes:
            sizes.insert(chance.randint(0, len(sizes)), chance.choice(_SIZES[:5]))
        elif choice < 0.35:
            del sizes[chance.randrange(len(sizes))]
        elif choice < 0.5:
            chance.shuffle(sizes)
        else:
            number = chance.randrange(len(sizes))
            near = sizes[number] + chance.choice((-1, 1)), 2 * sizes[number]
            sizes[number] = max(0, chance.choice((*near, *near, chance.choice(_SIZES))))
        return tuple(sizes)

    def _number(self) -> float:
        """A float32, of any bits or a likely one."""
        if self._chance.random() < 0.3:
            return float(struct.unpack("<f", self._chance.randbytes(4))[0])
        return self._chance.choice((0.0, 1.0, -1.0, 2.0**-126, 2.0**-149, 0.1, 3.0e38, 65504.0, math.inf, math.nan))

    def _fill(self, members: Sequence[Entry]) -> bytes:
        """A section that matches these entries; ValueError if there is none."""
        entry = members[0]
        if sum(member.count for member in members) > _MOST_REFILLED:
            raise ValueError("too large")
        if entry.is_weight and (entry.dtype not in dtypes.COMPRESSIBLE or entry.count == 0):
            raise ValueError("no codes have these values")
        if not entry.is_weight:
            return encode_pack([self._stored(member) for member in members])
        codes = (self._integers(np.dtype("i4"), entry.count) >> self._chance.randrange(8, 32)).reshape(entry.shape)
        if entry.storage == "codes":
            return encode_weight(CompressedTensor(codes, UniformCodebook(1.0), "float32")).adaptive
        if entry.storage == "scaled":
            return encode_weight(CompressedTensor(codes, self._scaled(codes.shape), "float32")).adaptive
        kind = dtypes.NUMPY[entry.dtype]
        ordinals = np.unique(self._integers(np.dtype(f"i{kind.itemsize}"), self._chance.randint(1, 9)) >> 2)[: entry.count]
        ordinals = ordinals[ordinals != 0]
        codes = codes.clip(-np.count_nonzero(ordinals < 0), np.count_nonzero(ordinals > 0))
        return encode_weight(CompressedTensor(codes, LevelTable(from_ordinals(ordinals, kind)), entry.dtype)).adaptive

    def _scaled(self, shape: tuple[int, ...]) -> Codebook:
        rows, columns = (self._integers(np.dtype("i1"), math.prod(sizes)).clip(-127) for sizes in (shape[:1], shape[1:]))
        axes = self._chance.choice(((rows, None), (None, columns), (rows, columns)))
        return codebook_of(1.0, *axes)

    def _stored(self, entry: Entry) -> np.ndarray:
        kind = stored_dtype(entry.storage, entry.dtype)
        if kind == np.bool_:
            return (self._integers(np.dtype("u1"), entry.count) > 127).reshape(entry.shape)
        raw = self._integers(np.dtype("u1"), entry.count * kind.itemsize)
        return (raw & (2 ** min(dtypes.BITS[kind.name], 8) - 1)).view(kind).reshape(entry.shape)

    def _integers(self, kind: np.dtype, count: int) -> np.ndarray:
        return np.frombuffer(self._chance.randbytes(count * kind.itemsize), dtype=kind)


def _take_apart(data: bytes) -> _Parts:
    at = 12 + struct.unpack_from("<I", data, 4)[0]
    header = decode_header(data[12:at], delta=data.startswith(DELTA_MAGIC))
    sections = []
    for length in header.lengths:
        sections.append(data[at : at + length])
        at += length
    return _Parts(list(header.entries), sections, dict(header.metadata), header.base)


def _put_together(parts: _Parts) -> bytes:
    """The file, its tensors in order of their names and its sections in order of their first use."""
    entries = sorted(parts.entries, key=lambda entry: entry.name.encode())
    numbers: dict[int, int] = {}
    for entry in entries:
        if entry.section != NO_SECTION:
            numbers.setdefault(entry.section, len(numbers))
    sections = [parts.sections[number] for number in numbers]
    entries = [replace(entry, section=numbers.get(entry.section, NO_SECTION)) for entry in entries]
    lengths, checksums = [len(section) for section in sections], [zlib.crc32(section) for section in sections]
    header = Header(entries, lengths, checksums, parts.metadata, parts.base)
    return wrap(deflate(header_columns(header)), b"".join(sections), magic=DELTA_MAGIC if parts.base else MAGIC)
