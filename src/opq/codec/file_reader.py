"""Decode the bytes of a .opq file to tensors, one at a time. Every length is checked before it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.codec import _native
from opq.codec.auxiliary import restore, stored_dtype
from opq.codec.byte_planes import decode_pack
from opq.codec.code_section import run
from opq.codec.code_stream import CHUNK
from opq.codec.direct_values import DirectWeight, direct_weights, other_values, value_jobs, weight_values
from opq.codec.entry import Entry, by_section, grouped
from opq.codec.file_bytes import FileBytes, Source
from opq.codec.file_start import DELTA_MAGIC, FORMAT_VERSION, MAGIC, PREFIX, read_start
from opq.codec.file_writer import file_of_one, largest_content
from opq.codec.given_arrays import Arrays, check_given, filled
from opq.codec.header import Header, decode_header, header_columns, inflate_header
from opq.codec.kept_packs import KeptPacks
from opq.codec.weight_section import decode_pieces, decode_weights, have_same_codes, with_codes_of
from opq.errors import FormatError
from opq.progress import Progress, no_progress
from opq.quantization.compressed_tensor import CompressedTensor

Content = CompressedTensor | NDArray[np.generic]

_GROUP = 4 * CHUNK
"""The largest number of elements that `OpqFile.arrays` decodes at once, unless a single tensor has more."""


class OpqFile(Mapping[str, Content]):
    """A .opq file as a mapping from names to a CompressedTensor (weights) or an array (auxiliary tensors).

    Opening reads the header only. Each look-up reads, checks and decodes one section. An open file can be used from several
    threads, and from forked processes. It must be closed, or used as a context manager.

    Args:
        source: A path, or the file's bytes.
        max_bytes: Largest allowed number of dense bytes; None: 64 MiB plus 4096 times the file's size.

    Raises:
        SourceError: The path cannot be read.
        FormatError: The file is not valid.

    Attributes:
        file_bytes: Size of the file.
    """

    _magic = MAGIC

    def __init__(self, source: Source, *, max_bytes: int | None = None) -> None:
        self._packs = KeptPacks(self._decode_pack)
        self._last: tuple[int, CompressedTensor] | None = None
        self._bytes = FileBytes(source)
        self._path = self._bytes.path
        self.file_bytes = self._bytes.size
        try:
            self._open(max_bytes)
        except BaseException as error:
            self._bytes.close()
            if isinstance(error, FormatError):
                raise FormatError(self.place(error.where), error.problem) from None
            raise

    def _open(self, max_bytes: int | None) -> None:
        prefix = bytes(self._bytes.read(0, min(PREFIX.size, self.file_bytes)))
        length, checksum = read_start(prefix, self._magic, self.file_bytes)
        packed = bytes(self._bytes.read(PREFIX.size, length))
        if _native.crc32(packed, _native.crc32(prefix[:8])) != checksum:
            raise FormatError("header", "the checksum does not match: the file is damaged")
        self._header: Header = decode_header(packed, delta=self._magic == DELTA_MAGIC)
        self._entries = {entry.name: entry for entry in self._header.entries}
        self._members = by_section(self._header.entries)
        self._offsets: list[int] = [PREFIX.size + length]
        for size in self._header.lengths:
            self._offsets.append(self._offsets[-1] + size)
        if self._offsets[-1] != self.file_bytes:
            problem = f"they end at byte {self._offsets[-1]:,}, but the file has {self.file_bytes:,}; is it truncated?"
            raise FormatError("sections", problem)
        limit = largest_content(self.file_bytes) if max_bytes is None else max_bytes
        decoded = sum(entry.decoded_bytes for entry in self._header.entries if not self._is_in_base(entry))
        if decoded > limit:
            raise FormatError("header", f"the tensors must have at most {limit:,} bytes, got {decoded:,}; see max_bytes")

    def _is_in_base(self, entry: Entry) -> bool:
        """Whether a delta's base has a tensor of the same name and size."""
        return False

    def place(self, part: str) -> str:
        """A part of the file for the message of an error: with the path, unless the file was given as bytes."""
        return part if self._path is None else f"{self._path}: {part}"

    @property
    def entries(self) -> list[Entry]:
        """The tensors in order of their names."""
        return list(self._entries.values())

    @property
    def metadata(self) -> dict[str, str]:
        """The checkpoint's own metadata."""
        return dict(self._header.metadata)

    @property
    def format_version(self) -> int:
        """Version of the format, 1."""
        return FORMAT_VERSION

    @property
    def dense_bytes(self) -> int:
        """Bytes of all tensors in their dtypes."""
        return sum(entry.dense_bytes for entry in self._entries.values())

    @property
    def header_bytes(self) -> int:
        """Bytes of prefix and header."""
        return self._offsets[0]

    def entry(self, name: str) -> Entry:
        """The entry of a tensor; KeyError if there is none of this name."""
        return self._entries[name]

    def members(self, section: int) -> list[Entry]:
        """The tensors of a section, in order of their names."""
        return self._members[section]

    def has_canonical_header(self) -> bool:
        """Whether the inflated header has the bytes that opq writes for these entries."""
        packed = bytes(self._bytes.read(PREFIX.size, self.header_bytes - PREFIX.size))
        return inflate_header(packed) == header_columns(self._header)

    def section_bytes(self, section: int) -> int:
        """Size of a section in bytes."""
        return self._header.lengths[section]

    def section(self, number: int) -> bytes:
        """Read the bytes of a section; FormatError if their checksum does not match."""
        return bytes(self.section_view(number))

    def section_view(self, number: int) -> bytes | memoryview:
        """As `section`, without a copy if the file is in memory."""
        data = self._bytes.read(self._offsets[number], self._header.lengths[number])
        if _native.crc32(data) != self._header.checksums[number]:
            names = [entry.name for entry in self.members(number)]
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise FormatError(self.place(f"tensor {names[0]!r}{more}"), "the checksum does not match: the file is damaged")
        return data

    def __getitem__(self, name: str) -> Content:
        """Decode a tensor.

        Raises:
            KeyError: There is no tensor of this name.
            FormatError: Its section is damaged.
        """
        entry = self._entries[name]
        if not entry.is_weight:
            return restore(self.stored(name), entry)
        last = self._last  # the weight of a shared section that was read last: another one may have the same codes
        with self._naming(name):
            if last is not None and last[0] == entry.section and have_same_codes(last[1].shape, entry.shape):
                return with_codes_of(last[1], entry)
            (weight,) = decode_weights({entry.section: self.section_view(entry.section)}, [entry])
        if len(self._members[entry.section]) > 1:
            self._last = entry.section, weight
            return with_codes_of(weight, entry)
        return weight

    def pieces(self, name: str) -> Iterator[CompressedTensor]:
        """Decode a weight in pieces of whole channels. Memory holds the codes of about one chunk per core.

        Raises:
            KeyError: There is no weight of this name.
            FormatError: Its section is damaged.
        """
        entry = self._weight_entry(name)
        with self._naming(name):
            yield from decode_pieces(self.section_view(entry.section), entry)

    def alone(self, name: str) -> bytes:
        """The bytes of a file that holds this weight alone, with the same section.

        Raises:
            KeyError: There is no weight of this name.
            FormatError: The section's checksum does not match.
        """
        entry = self._weight_entry(name)
        return file_of_one(entry, self.section(entry.section))

    def stored(self, name: str) -> NDArray[np.generic]:
        """Decode an auxiliary tensor in its stored dtype: float16 or uint8 if it is not stored exactly."""
        return self._packs.tensor(self._entries[name].section, name)

    def array(self, name: str) -> NDArray[np.generic]:
        """Decode a tensor to an array in its own dtype."""
        entry = self._entries[name]
        if entry.is_weight and len(self._members[entry.section]) == 1:
            with self._naming(name):
                return weight_values({entry.section: self.section_view(entry.section)}, [entry])[name]
        content = self[name]
        return content.values() if isinstance(content, CompressedTensor) else content

    def direct(self, name: str) -> DirectWeight | None:
        """A weight whose rows can be decoded to values without the other rows; None for any other tensor.

        Raises:
            KeyError: There is no tensor of this name.
            FormatError: Its section is damaged.
        """
        entry = self._entries[name]
        if not entry.is_weight:
            return None
        with self._naming(name):
            return next(direct_weights({entry.section: self.section_view(entry.section)}, [entry]), None)

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Context whose FormatErrors name a tensor, and the file."""
        try:
            yield
        except FormatError as error:
            raise FormatError(self.place(f"tensor {name!r}"), error.problem) from None

    def arrays(self, report: Progress = no_progress, out: Arrays | None = None) -> dict[str, NDArray[np.generic]]:
        """Decode all tensors to arrays in their own dtypes, on all cores.

        Args:
            report: Called after some tensors.
            out: Memory for some of them, as `check_given` accepts it. After an error its content is undefined.
        """
        out = out or {}
        check_given(out, self._entries)
        arrays: dict[str, NDArray[np.generic]] = {}
        for entries in grouped(self.entries, _GROUP):
            weights = [entry for entry in entries if entry.is_weight]
            sections = {number: self.section_view(number) for number in {entry.section for entry in weights}}
            values: dict[str, NDArray[np.generic]] = {}
            run(chain(self._array_jobs(entries, values, out), value_jobs(direct_weights(sections, weights), values, out)))
            others = other_values(sections, [entry for entry in weights if entry.name not in values])
            values |= {name: array if name not in out else filled(out[name], array) for name, array in others.items()}
            arrays.update((entry.name, values[entry.name]) for entry in entries)
            report("decoding", len(arrays), len(self))
        return arrays

    def _array_jobs(
        self, entries: Sequence[Entry], arrays: dict[str, NDArray[np.generic]], out: Arrays
    ) -> Iterator[Callable[[], None]]:
        """Functions that together decode the auxiliary tensors among these, each those of a section."""
        for members in by_section(entry for entry in entries if not entry.is_weight).values():
            yield lambda members=members: arrays.update((m.name, self._array(m, out)) for m in members)  # type: ignore[misc]

    def _array(self, entry: Entry, out: Arrays) -> NDArray[np.generic]:
        """Decode an auxiliary tensor, to memory that is given for it; if it is alone in its section, without a copy."""
        if entry.name not in out:
            return self.array(entry.name)
        if entry.storage != "exact" or len(self._members[entry.section]) > 1:
            return filled(out[entry.name], self.array(entry.name))
        return decode_pack(self.section_view(entry.section), [entry.shape], [dtypes.NUMPY[entry.dtype]], [out[entry.name]])[0]

    def weights(self) -> Iterator[tuple[str, CompressedTensor]]:
        """(name, weight) of all weights. Equal weights may be one object, and weights may share their codes."""
        for entries in grouped(self.entries, _GROUP):
            weights = [entry for entry in entries if entry.is_weight]
            sections = {number: self.section_view(number) for number in {entry.section for entry in weights}}
            yield from zip((entry.name for entry in weights), decode_weights(sections, weights), strict=True)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def close(self) -> None:
        """Close the file. Later look-ups fail."""
        self._bytes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _weight_entry(self, name: str) -> Entry:
        entry = self._entries[name]
        if not entry.is_weight:
            raise KeyError(f"{name!r} is not a weight")
        return entry

    def _decode_pack(self, section: int) -> dict[str, NDArray[np.generic]]:
        members = self.members(section)
        kinds = [stored_dtype(member.storage, member.dtype) for member in members]
        arrays = decode_pack(self.section_view(section), [m.shape for m in members], kinds)
        return {member.name: array for member, array in zip(members, arrays, strict=True)}
