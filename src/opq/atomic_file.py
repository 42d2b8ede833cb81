"""Writing a file so that nothing is ever lost: a temporary file beside it, flushed to the disk, then renamed over it."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from opq.errors import OutputError

_RENAMES_OPEN_FILES = os.name == "posix"
"""Whether an open file, and with it a held one, can be renamed."""


def refuse_existing(path: str | os.PathLike[str], remedy: str = "pass overwrite=True to replace it") -> None:
    """Raise OutputError if something exists at `path`, or its folder is missing; the message ends with the remedy."""
    path = Path(path)
    _refuse_irregular(path)
    if path.exists() or path.is_symlink():
        raise OutputError(path, f"it exists; {remedy}")
    if not path.parent.is_dir():
        raise OutputError(path, f"there is no folder {path.parent}")


def refuse_same(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Raise OutputError when `output` is the source itself, or lies in it: what is read must not be replaced by the result."""
    source, output = Path(source), Path(output)
    if output.exists() and source.exists() and (output.samefile(source) or source.resolve() in output.resolve().parents):
        raise OutputError(output, "it is what is being read; choose another place")


def write_file(path: str | os.PathLike[str], data: bytes | Iterable[bytes], *, overwrite: bool) -> None:
    """Write `data`, whole or in pieces, to `path`; whatever happens on the way, `path` holds what it held before or all of it.

    Raises OutputError when it cannot be written, or when it exists and `overwrite` is False.
    """
    path = Path(path)
    _refuse_irregular(path)
    if not overwrite:
        refuse_existing(path)
    path = path.resolve()  # a link stays a link, to the new file
    temporary = None
    _sweep_up(path)
    try:
        handle, temporary = _make_temporary(path)
        with os.fdopen(handle, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
            if not _RENAMES_OPEN_FILES:
                file.close()
            _give_usual_mode(temporary, path)
            os.replace(temporary, path)  # held until it has its name, so that no other writer sweeps it up
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def lock_file(handle: int, *, wait: bool = False) -> None:
    """Hold a file for this process until it is closed, however the process ends.

    When another one holds it, wait, or raise BlockingIOError.
    """
    with suppress(ImportError):  # not every system has such locks
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _make_temporary(path: Path) -> tuple[int, str]:
    """An empty file beside `path`, held by this process: its handle and its name."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            lock_file(handle, wait=True)
            if os.fstat(handle).st_nlink:
                return handle, name
        except BaseException:
            os.close(handle)
            os.unlink(name)
            raise
        os.close(handle)  # another writer swept it up before it was held


def _sweep_up(path: Path) -> None:
    """Remove the temporary files that writers of `path` left who were killed; one at work holds its own."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[a-z0-9_]' * 8}.tmp"):  # as tempfile names them
        with suppress(OSError):
            handle = os.open(left, os.O_RDWR)
            try:
                lock_file(handle)
                left.unlink()
            finally:
                os.close(handle)


def _refuse_irregular(path: Path) -> None:
    """A device or a pipe must not be replaced by a file, whoever may do so."""
    if path.exists() and not path.is_file():
        raise OutputError(path, "it is a folder" if path.is_dir() else "it is not a regular file")


def _give_usual_mode(temporary: str, path: Path) -> None:
    """The mode of the file that is replaced, else what a new file gets here; temporary files are private otherwise."""
    if path.exists():
        mode = path.stat().st_mode & 0o777
    else:
        umask = os.umask(0)
        os.umask(umask)
        mode = 0o666 & ~umask
    os.chmod(temporary, mode)


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself last; not every system lets a folder be opened, and then there is nothing to do."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
