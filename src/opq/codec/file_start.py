"""The first bytes of files: what kind they are, and the version of their format."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from opq.errors import FormatError

MAGIC, DELTA_MAGIC = b"OPQ", b"OPD"
OTHER_KIND = {
    DELTA_MAGIC: "it is a delta, which needs the checkpoint that it was made from: base=, or --base on the command line",
    MAGIC: "it is a complete file, which needs no base",
}
"""What to say of a file that is not of the kind that was expected, by its first bytes."""

FORMAT_VERSION = 1
PREFIX = struct.Struct("<3sBII")
"""Magic, format version, length of the header, CRC-32 of the first eight bytes and of the header."""


def magic_of(source: Any) -> bytes:
    """The first bytes of a file by its path, or of bytes; empty for anything else."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source[: len(MAGIC)])
    if not isinstance(source, (str, os.PathLike)) or not Path(source).is_file():
        return b""
    with open(source, "rb") as file:
        return file.read(len(MAGIC))


def read_start(prefix: bytes, magic: bytes, file_bytes: int) -> tuple[int, int]:
    """Length of the header and its checksum.

    Args:
        prefix: The first bytes of the file, as many as PREFIX has or all.
        magic: That of the expected kind.
        file_bytes: Size of the file.

    Raises:
        FormatError: The file is of another kind or version, or it ends before its header.
    """
    found = prefix[: len(MAGIC)]
    if found != magic:
        problem = f"expected {magic!r}, got {found!r}; opq compress makes a .opq file of a checkpoint"
        raise FormatError("start", OTHER_KIND.get(found) or problem)
    if len(prefix) < PREFIX.size:
        raise FormatError("start", f"expected at least {PREFIX.size} bytes, got {file_bytes}")
    _, version, length, checksum = PREFIX.unpack(prefix)
    if version != FORMAT_VERSION:
        problem = f"format version {version}, but this opq reads version {FORMAT_VERSION}; install another version of opq"
        raise FormatError("start", problem)
    if PREFIX.size + length > file_bytes:
        problem = f"it ends at byte {PREFIX.size + length:,}, but the file has {file_bytes:,}; is it truncated?"
        raise FormatError("header", problem)
    return length, checksum
