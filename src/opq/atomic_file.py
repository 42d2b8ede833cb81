"""Write files atomically: to a temporary file in the same folder, flushed to the disk, then renamed to its path."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from opq.errors import OutputError

_RENAMES_OPEN_FILES = os.name == "posix"
"""Whether a file can be renamed while it is open and locked."""


def refuse_existing(path: str | os.PathLike[str], remedy: str = "pass overwrite=True to replace it") -> None:
    """Check that a new file can be written at `path`.

    Args:
        path: The path.
        remedy: What to do if something exists there; the end of the message.

    Raises:
        OutputError: Something exists at `path`, or its folder is missing.
    """
    path = Path(path)
    _refuse_irregular(path)
    if path.exists() or path.is_symlink():
        raise OutputError(path, f"it exists; {remedy}")
    if not path.parent.is_dir():
        raise OutputError(path, f"there is no folder {path.parent}")


def refuse_same(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Check that the result does not replace its source.

    Args:
        source: The file or folder that is read.
        output: The path that is written.

    Raises:
        OutputError: `output` is the source, or lies in it.
    """
    source, output = Path(source), Path(output)
    try:
        same = output.exists() and source.exists() and (output.samefile(source) or source.resolve() in output.resolve().parents)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links, before Python 3.13
        raise OutputError(output, getattr(error, "strerror", None) or "its symbolic links form a loop") from None
    if same:
        raise OutputError(output, "it is the source that is being read; choose another path")


def write_file(path: str | os.PathLike[str], data: bytes | Iterable[bytes], *, overwrite: bool) -> None:
    """Write a file atomically: even if the process is killed, `path` holds its old bytes or all new ones.

    Args:
        path: The path. A symbolic link is kept, and its target is replaced.
        data: The bytes, or pieces of them in order.
        overwrite: Whether to replace an existing file.

    Raises:
        OutputError: The file cannot be written, or it exists and `overwrite` is False.
    """
    path = Path(path)
    _refuse_irregular(path)
    if not overwrite:
        refuse_existing(path)
    try:
        path = path.resolve(strict=path.exists())  # a link stays a link, to the new file
    except (OSError, RuntimeError):  # RuntimeError: a loop of symbolic links, before Python 3.13
        raise OutputError(path, "its symbolic links form a loop") from None
    temporary = None
    _remove_stale_temporaries(path)
    try:
        handle, temporary = _make_temporary(path)
        with os.fdopen(handle, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
            if not _RENAMES_OPEN_FILES:
                file.close()
            _set_mode(temporary, path)
            os.replace(temporary, path)  # still locked, so that no other writer removes it as stale
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def lock_file(handle: int, *, wait: bool = False) -> None:
    """Lock a file for this process until it is closed, or until the process ends.

    Args:
        handle: Descriptor of the open file.
        wait: Whether to wait if another process has locked the file.

    Raises:
        BlockingIOError: Another process has locked the file, and `wait` is False.
    """
    with suppress(ImportError):  # only POSIX systems have these locks
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _make_temporary(path: Path) -> tuple[int, str]:
    """The descriptor and name of an empty file in the folder of `path`, locked by this process."""
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
        os.close(handle)  # another writer removed it before it was locked


def _remove_stale_temporaries(path: Path) -> None:
    """Remove the temporary files of killed writers of `path`; a running writer holds a lock on its own."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.{'[a-z0-9_]' * 8}.tmp"):  # as tempfile names them
        with suppress(OSError):
            handle = os.open(stale, os.O_RDWR)
            try:
                lock_file(handle)
                stale.unlink()
            finally:
                os.close(handle)


def _refuse_irregular(path: Path) -> None:
    """Devices, pipes and folders must not be replaced by a file, even with `overwrite`."""
    if path.exists() and not path.is_file():
        raise OutputError(path, "it is a folder" if path.is_dir() else "it is not a regular file")


def _set_mode(temporary: str, path: Path) -> None:
    """Copy the mode of the replaced file, or apply the umask: temporary files are private by default."""
    if path.exists():
        mode = path.stat().st_mode & 0o777
    else:
        umask = os.umask(0)
        os.umask(umask)
        mode = 0o666 & ~umask
    os.chmod(temporary, mode)


def _sync_folder(folder: Path) -> None:
    """Flush the rename to the disk, if the system allows a folder to be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
