"""Sections in memory, or in a file, from which they are read when their bytes are needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from opq.codec import _native
from opq.errors import SourceError


@dataclass(frozen=True)
class StoredSection:
    """A section in a file. Two are equal if their bytes are, wherever they lie.

    Args:
        path: The file.
        offset: Offset of the first byte in it.
        size: Number of bytes.
        checksum: CRC-32 of the bytes.
        digest: SHA-256 of the bytes.
    """

    path: Path = field(compare=False)
    offset: int = field(compare=False)
    size: int
    checksum: int
    digest: bytes

    @classmethod
    def of(cls, section: bytes, path: Path, offset: int) -> StoredSection:
        """The stored form of these bytes, which lie in a file at an offset."""
        return cls(path, offset, len(section), _native.crc32(section), sha256(section).digest())

    def __len__(self) -> int:
        return self.size

    def __bytes__(self) -> bytes:
        """Read the bytes; SourceError if they are not there any more."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise SourceError(self.path, f"a section was in it: {error.strerror or error}") from None
        if len(data) != self.size or _native.crc32(data) != self.checksum:
            raise SourceError(self.path, "its bytes changed after they were written; remove it and start again")
        return data


Section = bytes | StoredSection


def checksum_of(section: Section) -> int:
    """CRC-32 of a section."""
    return section.checksum if isinstance(section, StoredSection) else _native.crc32(section)
