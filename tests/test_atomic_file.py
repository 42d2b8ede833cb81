"""Writing files: the old one or the whole new one, whatever happens."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from opq.atomic_file import write_file
from opq.errors import OutputError


def test_a_new_file_has_its_bytes_and_the_usual_mode(tmp_path):
    """What is written is there, readable by whom a new file is readable, and nothing else is left in the folder."""
    write_file(tmp_path / "f", b"data", overwrite=False)
    (tmp_path / "g").write_bytes(b"")
    assert (tmp_path / "f").read_bytes() == b"data"
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "g").stat().st_mode
    assert {path.name for path in tmp_path.iterdir()} == {"f", "g"}


def test_a_replaced_file_keeps_its_mode(tmp_path):
    """Permissions are the old file's."""
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "f").chmod(0o640)
    write_file(tmp_path / "f", b"new", overwrite=True)
    assert (tmp_path / "f").read_bytes() == b"new"
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_failure_at_any_step_leaves_the_old_file(call, tmp_path, monkeypatch):
    """The disk is full, or the folder read-only, at whatever step: one clear error, the old file whole, no litter."""
    (tmp_path / "f").write_bytes(b"old")

    def fail(*_arguments, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OutputError, match=r"cannot write .*f: No space left on device"):
        write_file(tmp_path / "f", b"new", overwrite=True)
    monkeypatch.undo()
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_disk_that_runs_full_while_writing_leaves_the_old_file(tmp_path):
    """The system itself refuses the bytes in the middle of the file; the same holds."""
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


def test_places_that_cannot_be_written_are_one_error(tmp_path):
    """An existing file without leave, a folder, a pipe or device, and a folder that is not there."""
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


def test_through_a_link_its_target_is_written(tmp_path):
    """A link stays a link, and what it leads to becomes the new file."""
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "f")
    write_file(tmp_path / "link", b"new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "f").read_bytes() == b"new"


def test_a_link_is_not_replaced_without_leave(tmp_path):
    """Even one that leads nowhere."""
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="it exists"):
        write_file(tmp_path / "link", b"new", overwrite=False)


def test_writers_side_by_side_all_succeed(tmp_path):
    """Many at a time, of one path and of another whose name begins alike: each writes, and in the end no litter is left."""

    def write(number):
        for _ in range(15):
            write_file(tmp_path / ("f" if number % 2 else "f.more"), bytes([number]) * 1000, overwrite=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert {path.name for path in tmp_path.iterdir()} == {"f", "f.more"}
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        assert data == data[:1] * 1000


def test_what_killed_writers_left_is_swept_up(tmp_path):
    """A temporary file that nobody holds goes with the next writing of its path; those of other paths stay."""
    (tmp_path / ".f.abcd_123.tmp").write_bytes(b"left")
    (tmp_path / ".f.more.abcd_123.tmp").write_bytes(b"another's")
    write_file(tmp_path / "f", b"data", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"f", ".f.more.abcd_123.tmp"}
