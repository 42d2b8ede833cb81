"""Sections that are ready for a file, wherever they wait for it: in memory, or in the work file of a long run."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Section:
    """A section of a file to be.

    size      bytes
    checksum  CRC-32 of the bytes
    digest    of the bytes, cryptographic: sections of equal digests are equal
    read      gives the bytes
    """

    size: int
    checksum: int
    digest: bytes
    read: Callable[[], bytes]

    @classmethod
    def of(cls, data: Self | bytes) -> Self:
        """A section of these bytes, kept in memory; a section stays what it is."""
        if not isinstance(data, bytes):
            return data
        return cls(len(data), zlib.crc32(data), digest(data), lambda: data)


def digest(data: bytes) -> bytes:
    """16 bytes that stand for `data`."""
    return hashlib.blake2b(data, digest_size=16).digest()
