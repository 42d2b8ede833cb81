"""The work file of a long run: sections that were encoded wait there, and a run that was stopped finds them again.

A section is known by the codes it holds, not by the name of the weight or the options of the run. So nothing in a work file can
be out of date: what another checkpoint, another target or another plan needs is not found in it, and is encoded.
"""

from __future__ import annotations

import os
import struct
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opq.atomic_file import lock_file
from opq.codec.code_stream import chunk_spans
from opq.codec.file_writer import FORMAT_VERSION
from opq.codec.sections import Section, digest
from opq.errors import OpqError, OutputError
from opq.thread_map import thread_map
from opq.version import __version__

LONG_RUN = 2**26
"""Weights of a network from which on its sections are kept in a work file; fewer are encoded in about a second."""

_KIND = b"opq work file, "
_HEAD = _KIND + f"opq {__version__}, format {FORMAT_VERSION}\n".encode()
_RECORD = struct.Struct("<16sQI")
"""Before each section: its key, its size, and the CRC-32 of key, size and section."""


def work_path(output: str | os.PathLike[str]) -> Path:
    """Where the work file of a run that writes `output` lies."""
    return Path(f"{os.fspath(output)}.partial")


def codes_key(shape: tuple[int, ...], codes: Callable[[int, int], NDArray[np.int32]]) -> bytes:
    """16 bytes that stand for a weight's codes, which `codes` gives from one place in row-major order to another."""
    pieces = thread_map(lambda span: digest(codes(*span).tobytes()), chunk_spans(shape))
    return digest(repr(shape).encode() + b"".join(pieces))


@contextmanager
def open_journal(path: str | os.PathLike[str] | None, weights: int) -> Iterator[Journal | None]:
    """The journal of a run over so many weights: none where no path is given, or where the run is short and begins anew.

    When the run ends in an error that it would meet again, its work file is removed; after any other end it stays.
    """
    if path is None or (weights < LONG_RUN and not Path(path).exists()):
        yield None
        return
    journal = Journal(path)
    try:
        yield journal
    except BaseException as error:
        journal.close()
        if isinstance(error, OpqError) and not isinstance(error, OutputError):  # a full disk may be less full another time
            journal.discard()
        raise


class Journal:
    """An open work file. Of several runs, one at a time has it; threads may share it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a work file, or begin one; what is damaged of it, as by a stop while writing, is dropped.

        Raises OutputError when it cannot be written, when another run has it, or when what is there is no work file.
        """
        self._path = Path(path)
        self._sections: dict[bytes, Section] = {}
        try:
            self._file = _LockedFile(path)
            self._end = self._recover()
            self._file.truncate(self._end)
        except BlockingIOError:
            raise OutputError(path, "another run of opq is at work on it") from None
        except OSError as error:
            raise OutputError(path, error.strerror or str(error)) from None

    @property
    def count(self) -> int:
        """How many sections are kept."""
        return len(self._sections)

    def section(self, key: bytes, make: Callable[[], bytes]) -> Section:
        """The section of this key: as it was kept, or else made and kept. OutputError when it cannot be written."""
        found = self._sections.get(key)
        if found is None:
            found = self._append(key, make())
        return found

    def close(self) -> None:
        """Let another run have the file; sections cannot be read any more."""
        self._file.close()

    def discard(self) -> None:
        """Remove the file, whose work is done; sections can still be read, unless it is closed."""
        with suppress(OSError):
            self._path.unlink()

    def _append(self, key: bytes, data: bytes) -> Section:
        record = _RECORD.pack(key, len(data), _checksum(key, data))
        with self._file.lock:
            try:
                self._file.write(record + data, self._end)
            except OSError as error:
                raise OutputError(self._path, error.strerror or str(error)) from None
            return self._remember(key, data)

    def _remember(self, key: bytes, data: bytes) -> Section:
        """Note the section that stands at the end of what is known of the file."""
        start, size = self._end + _RECORD.size, len(data)
        section = Section(size, zlib.crc32(data), digest(data), partial(self._file.read, start, size))
        self._sections[key] = section
        self._end = start + size
        return section

    def _recover(self) -> int:
        """Find the sections that are whole; where they end."""
        self._end = len(_HEAD)
        head = self._file.read(0, self._end)
        if head != _HEAD:
            if not head.startswith(_KIND) and not _HEAD.startswith(head):
                raise OutputError(self._path, "something else stands there, which opq did not make; move it away")
            self._file.truncate(0)  # before the head is written: a stop in between must not make old records ours
            self._file.write(_HEAD, 0)
            return self._end
        size = self._file.size()
        while self._end + _RECORD.size <= size:
            key, length, checksum = _RECORD.unpack(self._file.read(self._end, _RECORD.size))
            if self._end + _RECORD.size + length > size:
                break
            data = self._file.read(self._end + _RECORD.size, length)
            if _checksum(key, data) != checksum:
                break
            self._remember(key, data)
        return self._end


class _LockedFile:
    """A file that this process alone has, open until nothing refers to it; threads may share it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.lock = threading.RLock()
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        self.close = weakref.finalize(self, os.close, self._handle)
        lock_file(self._handle)

    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._handle).st_size

    def truncate(self, size: int) -> None:
        """Cut off what is beyond `size` bytes."""
        os.truncate(self._handle, size)

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes at `offset`, fewer where the file ends."""
        pieces = []
        with self.lock:
            os.lseek(self._handle, offset, os.SEEK_SET)
            while count and (piece := os.read(self._handle, min(count, 2**30))):
                pieces.append(piece)
                count -= len(piece)
        return b"".join(pieces)

    def write(self, data: bytes, offset: int) -> None:
        """Write `data` at `offset`."""
        rest = memoryview(data)
        os.lseek(self._handle, offset, os.SEEK_SET)
        while rest:
            rest = rest[os.write(self._handle, rest) :]


def _checksum(key: bytes, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(key + len(data).to_bytes(8, "little")))
