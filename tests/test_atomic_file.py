"""Writing files: after any failure the path holds the old file or the complete new one."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from opq.atomic_file import write_file
from opq.errors import OutputError


def test_a_new_file_has_its_bytes_and_the_usual_mode(tmp_path):
    """A new file has its bytes and the default mode; the folder holds no other file."""
    write_file(tmp_path / "f", b"data", overwrite=False)
    (tmp_path / "g").write_bytes(b"")
    assert (tmp_path / "f").read_bytes() == b"data"
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "g").stat().st_mode
    assert {path.name for path in tmp_path.iterdir()} == {"f", "g"}


def test_a_replaced_file_keeps_its_mode(tmp_path):
    """The new file has the permissions of the old one."""
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "f").chmod(0o640)
    write_file(tmp_path / "f", b"new", overwrite=True)
    assert (tmp_path / "f").read_bytes() == b"new"
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_failure_at_any_step_leaves_the_old_file(call, tmp_path, monkeypatch):
    """If any system call fails, the error is one OutputError, the old file stays, and no temporary file is left."""
    (tmp_path / "f").write_bytes(b"old")

    def fail(*_arguments, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OutputError, match=r"cannot write .*f: No space left on device"):
        write_file(tmp_path / "f", b"new", overwrite=True)
    monkeypatch.undo()
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """If the system refuses bytes in the middle of the file, the old file stays, and no temporary file is left."""
    (tmp_path / "f").write_bytes(b"old")
    code = (
        "import resource, signal, sys; from opq.atomic_file import write_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try: write_file(sys.argv[1], b'x' * 1_000_000, overwrite=True)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "f")], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("OutputError cannot write")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_unwritable_paths_are_output_errors(tmp_path):
    """An existing file without `overwrite`, a folder, a pipe and a missing folder are OutputErrors."""
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path, overwrite, message in (
        (tmp_path / "f", False, "it exists"),
        (tmp_path / "folder", True, "it is a folder"),
        (tmp_path / "pipe", True, "it is not a regular file"),
        (tmp_path / "pipe", False, "it is not a regular file"),
        (tmp_path / "none" / "f", True, "No such file or directory"),
        (tmp_path / "none" / "f", False, "there is no folder"),
    ):
        with pytest.raises(OutputError, match=message):
            write_file(path, b"new", overwrite=overwrite)
    assert (tmp_path / "f").read_bytes() == b"old"


def test_a_link_stays_a_link(tmp_path):
    """Writing through a symbolic link replaces its target."""
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "f")
    write_file(tmp_path / "link", b"new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "f").read_bytes() == b"new"


def test_a_link_is_not_replaced_without_overwrite(tmp_path):
    """Without `overwrite` a symbolic link is refused, even if its target is missing."""
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="it exists"):
        write_file(tmp_path / "link", b"new", overwrite=False)


def test_concurrent_writers_all_succeed(tmp_path):
    """Concurrent writers of one path, and of a path with the same prefix, all succeed and leave no temporary files."""

    def write(number):
        for _ in range(15):
            write_file(tmp_path / ("f" if number % 2 else "f.more"), bytes([number]) * 1000, overwrite=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert {path.name for path in tmp_path.iterdir()} == {"f", "f.more"}
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        assert data == data[:1] * 1000


def test_temporary_files_of_killed_writers_are_removed(tmp_path):
    """The next write of a path removes its temporary files that no process holds; those of other paths stay."""
    (tmp_path / ".f.abcd_123.tmp").write_bytes(b"left")
    (tmp_path / ".f.more.abcd_123.tmp").write_bytes(b"another's")
    write_file(tmp_path / "f", b"data", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"f", ".f.more.abcd_123.tmp"}
