"""Decode a delta: a file whose tensors are given by those of a base."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opq.codec.delta_base import Base, digest_of, has_same
from opq.codec.delta_sections import (
    decode_codes_of,
    decode_tensors,
    encode_codes_again,
    encode_tensors_again,
    is_code_difference,
)
from opq.codec.entry import OF_BASE, Entry, is_alone
from opq.codec.file_bytes import Source
from opq.codec.file_reader import Content, OpqFile
from opq.codec.file_start import DELTA_MAGIC
from opq.errors import FormatError, SourceError


class DeltaFile(OpqFile):
    """A delta as a mapping from names to tensors, as an OpqFile is. A section of codes is that of the file it was made from.

    Args:
        source: A path, or the delta's bytes.
        base: The tensors of the checkpoint that it was made from; they are read when they are needed. None: only entries,
            sizes and metadata can be read.
        max_bytes: Largest allowed number of dense bytes of tensors that the base does not have; None: as in OpqFile.

    Raises:
        SourceError: The path cannot be read, or `base` has other tensors than the checkpoint that the delta was made from.
        FormatError: The delta is not valid, or not a delta.
    """

    _magic = DELTA_MAGIC

    def __init__(
        self,
        source: Source,
        base: Base | None,
        *,
        max_bytes: int | None = None,
    ) -> None:
        self._base = base
        super().__init__(source, max_bytes=max_bytes)

    def _open(self, max_bytes: int | None) -> None:
        super()._open(max_bytes)
        if self._base is None:
            return
        found = digest_of(self._base)
        if found != self.base_digest:
            problem = f"its tensors have SHA-256 {found.hex()[:16]}..., but {self._path or 'the delta'} was made from"
            raise SourceError("the base", f"{problem} {self.base_digest.hex()[:16]}...; give that checkpoint as the base")
        for entry in self.entries:
            if entry.storage in OF_BASE and not self._is_in_base(entry):
                raise FormatError("header", f"tensor {entry.name!r}: the base has none of its name, dtype and shape")

    @property
    def base_digest(self) -> bytes:
        """SHA-256 of the base's tensors, as `opq.codec.delta_base.digest_of` finds it."""
        return self._header.base

    @property
    def has_base(self) -> bool:
        """Whether tensors can be decoded."""
        return self._base is not None

    def _is_in_base(self, entry: Entry) -> bool:
        if self._base is None:
            return entry.storage in OF_BASE
        return has_same(self._base, entry.name, entry.dtype, entry.shape)

    def of_base(self, entry: Entry) -> NDArray[np.generic]:
        """The base's tensor of the same name, dtype and shape; FormatError if there is none."""
        if self._base is None:
            raise FormatError(self.place(f"tensor {entry.name!r}"), "the delta was opened without its base")
        if not self._is_in_base(entry):
            raise FormatError(self.place(f"tensor {entry.name!r}"), "the base has none of its dtype and shape")
        return self._base[entry.name]

    def stored_section(self, number: int) -> bytes:
        """The bytes of a section as they are in the file; FormatError if their checksum does not match."""
        return bytes(super().section_view(number))

    def section_view(self, number: int) -> bytes | memoryview:
        """The bytes of a section; of codes that differ from the base's, the section without a base."""
        data = super().section_view(number)
        first = self.members(number)[0]
        if not first.is_weight or self._base is None or not self._is_in_base(first):
            return data
        with self._naming(first.name):
            return decode_codes_of(bytes(data), first, self.of_base(first))

    def __getitem__(self, name: str) -> Content:
        """As OpqFile."""
        entry = self.entry(name)
        if entry.storage == "base":
            return np.array(self.of_base(entry), order="C")  # a copy: the base may be in use
        return self.stored(name) if entry.storage == "difference" else super().__getitem__(name)

    def _decode_pack(self, section: int) -> dict[str, NDArray[np.generic]]:
        members = self.members(section)
        if members[0].storage != "difference":
            return super()._decode_pack(section)
        data = self.stored_section(section)
        with self._naming(members[0].name):
            if is_alone(members[0].count):
                return {member.name: decode_tensors(data, [self.of_base(member)])[0] for member in members}
            arrays = decode_tensors(data, [self.of_base(member) for member in members])
        return {member.name: array for member, array in zip(members, arrays, strict=True)}

    def encoded_again(self, number: int) -> bytes:
        """A section as opq encodes what it holds, if that is a difference; otherwise as it is. A base must be given."""
        data, members = self.stored_section(number), self.members(number)
        with self._naming(members[0].name):
            if members[0].storage == "difference":
                alone = is_alone(members[0].count)
                groups = [[member] for member in members] if alone else [members]
                encoded = [encode_tensors_again(data, [self.of_base(member) for member in group]) for group in groups]
                return next((other for other in encoded if other != data), data)
            if members[0].is_weight and is_code_difference(data, members[0]):
                return encode_codes_again(data, members[0])
        return data
