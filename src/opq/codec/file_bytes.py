"""The bytes of a file, on disk or in memory."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import BinaryIO

from opq.errors import FormatError, SourceError

_IRREGULAR = "it must be a regular file, which can be read at any position"

Source = str | os.PathLike[str] | bytes | bytearray | memoryview
"""The path of a file, or its bytes."""


class FileBytes:
    """Bytes that are read at any position, from several threads, and from forked processes.

    Args:
        source: The path of a file, or its bytes. Memory that could change is copied.

    Raises:
        SourceError: The path cannot be read, or is a FIFO, whose opening would wait for a writer.

    Attributes:
        path: The path; None for bytes in memory.
        size: Number of bytes.
    """

    def __init__(self, source: Source) -> None:
        self._lock = threading.Lock()
        self._memory: memoryview | None = None
        self._file: BinaryIO | None = None
        self.path: str | None = None
        if isinstance(source, (bytes, bytearray, memoryview)):
            self._memory = memoryview(bytes(source))
            self.size = len(self._memory)
            return
        self.path = os.fspath(source)
        try:
            if Path(source).is_fifo():
                raise OSError(errno.ESPIPE, _IRREGULAR)
            self._file = Path(source).open("rb")  # noqa: SIM115 - `close` closes it
        except OSError as error:
            raise SourceError(source, error.strerror or str(error)) from None
        try:
            self.size = self._file.seek(0, os.SEEK_END)
        except OSError:
            self._file.close()
            raise SourceError(self.path, _IRREGULAR) from None

    def read(self, offset: int, count: int) -> bytes | memoryview:
        """Bytes from `offset` on, those in memory without a copy.

        Raises:
            FormatError: There are fewer.
            ValueError: The file is closed.
        """
        if self._memory is not None:
            data: bytes | memoryview = self._memory[offset : offset + count]
        elif self._file is None or self._file.closed:
            raise ValueError("the file is closed")
        elif hasattr(os, "pread"):
            data = _read_at(self._file.fileno(), offset, count)
        else:
            with self._lock:
                self._file.seek(offset)
                data = self._file.read(count)
        if len(data) != count:
            problem = f"expected {count:,} bytes at {offset:,}, but only {len(data):,} are left; is the file truncated?"
            raise FormatError("sections", problem)
        return data

    def close(self) -> None:
        """Close the file. Later reads fail."""
        self._memory = None
        if self._file is not None:
            self._file.close()


def _read_at(handle: int, offset: int, count: int) -> bytes:
    """Bytes of a file from `offset` on. The file's position, which forked processes share, does not change."""
    parts = []
    while count and (part := os.pread(handle, count, offset)):  # one call reads less than 2 GB
        parts.append(part)
        offset, count = offset + len(part), count - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
