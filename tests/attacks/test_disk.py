"""Full disks and killed processes: the old file stays, and the error is one line."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from killing import kill_compressing, write_network
from thoroughness import some

from opq.atomic_file import write_file

CHECKED = "import sys; from opq.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.slow
@pytest.mark.parametrize("saving", [False, True], ids=["compressing", "saving"])
def test_a_kill_leaves_the_old_file_or_the_new_one(saving, tmp_path):
    """After SIGKILL at random times while a file is replaced, it holds its old bytes or all the new ones; see killing.py."""
    moments = some(3, 8)
    at_work, _ = kill_compressing(tmp_path, moments, seed=1, saving=saving)
    assert at_work >= (moments if saving else 1)


@pytest.mark.slow
def test_interrupted_finetuning_gives_the_same_bytes():
    """SIGKILL at random moments of a training: its checkpoints stay valid, and its file is that of an uninterrupted one."""
    pytest.importorskip("torch")
    moments = str(some(3, 5))
    command = [sys.executable, Path(__file__).with_name("killing.py"), "--finetuning", "--moments", moments, "--seed", "1"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith(f"finetuning: {moments} kills at work")


def test_temporary_files_of_killed_writers_are_removed(tmp_path):
    """The next write removes temporary files that no process holds, and keeps those of running writers and other paths."""
    import fcntl

    (tmp_path / ".f.opq.dead0000.tmp").write_bytes(b"half")
    (tmp_path / ".g.opq.dead0000.tmp").write_bytes(b"another's")
    with (tmp_path / ".f.opq.live0000.tmp").open("wb") as live:
        fcntl.flock(live, fcntl.LOCK_EX)
        write_file(tmp_path / "f.opq", b"new", overwrite=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".f.opq.live0000.tmp", ".g.opq.dead0000.tmp", "f.opq"]


def run_compress(source: Path, output: Path, *, file_limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """`opq compress` over `output`, with a limit for the size of files in bytes."""

    def limit() -> None:
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit,) * 2)

    command = [sys.executable, "-c", CHECKED, "compress", str(source), "--ratio", "8", "-o", str(output), "--force"]
    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)


def check_refused(run: subprocess.CompletedProcess[str], output: Path, message: str) -> None:
    """The error is one line that names the file and the problem. The folder holds only the old file."""
    assert run.returncode == 1
    assert run.stderr.startswith(f"opq: error: cannot write {output}")
    assert message in run.stderr
    assert run.stderr.count("\n") == 1
    assert run.stdout == ""


@pytest.mark.slow
def test_a_limit_of_the_file_size(tmp_path):
    """If the file exceeds the limit of the process, the old file stays, without temporary files."""
    write_network(tmp_path / "n.safetensors")
    (tmp_path / "n.opq").write_bytes(b"old")
    check_refused(
        run_compress(tmp_path / "n.safetensors", tmp_path / "n.opq", file_limit=50_000), tmp_path / "n.opq", "too large"
    )
    assert (tmp_path / "n.opq").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n.opq", "n.safetensors"]


@contextmanager
def mounted(folder: Path, options: str):
    """A small file system in memory; only root may mount one."""
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False).returncode:
        pytest.skip("mounting a file system takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_full_disk(tmp_path):
    """If the disk is smaller than the new file, the old file stays, without temporary files."""
    disk = tmp_path / "disk"
    disk.mkdir()
    write_network(tmp_path / "n.safetensors")
    with mounted(disk, "size=128k"):
        (disk / "n.opq").write_bytes(b"old")
        check_refused(run_compress(tmp_path / "n.safetensors", disk / "n.opq"), disk / "n.opq", "No space left on device")
        assert {path.name: path.read_bytes() for path in disk.iterdir()} == {"n.opq": b"old"}


@pytest.mark.slow
def test_a_read_only_disk(tmp_path):
    """If the disk is mounted read-only, the old file stays."""
    disk = tmp_path / "disk"
    disk.mkdir()
    write_network(tmp_path / "n.safetensors")
    with mounted(disk, "size=128k"):
        (disk / "n.opq").write_bytes(b"old")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        check_refused(run_compress(tmp_path / "n.safetensors", disk / "n.opq"), disk / "n.opq", "Read-only file system")
        assert (disk / "n.opq").read_bytes() == b"old"
