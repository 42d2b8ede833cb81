"""The named hostile files: every reader gives tensors or an OpqError, in bounded memory and time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hostile_files import ATTACKS
from thoroughness import THOROUGH

import opq
import opq.numpy
from opq.cli import main
from opq.codec.verify import verify
from opq.reporting.inspect import inspect

LARGEST = 2**30
"""Bytes of memory that reading a file of a few kilobytes may take beyond what the process took before."""

COSTLY = re.compile("maximum_size|_thousands|_of_nothing")
"""Files that take their reader long; they are read in fewer ways."""

SMALL = [name for name in ATTACKS if not name.startswith("maximum_size")]
each_attack = pytest.mark.parametrize("name", SMALL)


def read_in_every_way(data: bytes, folder: Path, *, few: bool) -> dict[str, bool]:
    """{reader: whether it returned tensors}; any exception but OpqError passes through."""
    path = folder / "hostile.opq"
    path.write_bytes(data)

    def one_by_one() -> None:
        with opq.numpy.safe_open(path) as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                file.get_tensor(name)

    results = {}
    readers = {
        "safe_open": one_by_one,
        "verify": lambda: verify(path),
        "load_file": lambda: opq.numpy.load_file(path),
        "load": lambda: opq.numpy.load(data),
        "inspect": lambda: inspect(path),
    }
    for reader, run in list(readers.items())[: 2 if few else 5]:
        try:
            run()
        except opq.OpqError:
            results[reader] = False
        else:
            results[reader] = True
    return results


@pytest.mark.slow
@each_attack
def test_every_reader_gives_tensors_or_an_error(name, tmp_path):
    """Readers raise only OpqError and agree; a file that cannot be read does not pass `verify`."""
    with np.errstate(over="ignore"):
        results = read_in_every_way(ATTACKS[name](), tmp_path, few=bool(COSTLY.search(name)) and not THOROUGH)
    assert len({results.get(reader, results["safe_open"]) for reader in ("load", "load_file", "safe_open")}) == 1
    assert results["safe_open"] >= results["verify"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "command"),
    [
        (name, command)
        for name in SMALL
        for command in (["expand"] if COSTLY.search(name) and not THOROUGH else ["inspect", "verify", "expand"])
    ],
)
def test_the_command_line_prints_one_line(name, command, tmp_path, capsys):
    """The exit status is 0, or 1 with one line; a failed `expand` leaves no file."""
    (tmp_path / "hostile.opq").write_bytes(ATTACKS[name]())
    output = tmp_path / "out.safetensors"
    status = main([command, str(tmp_path / "hostile.opq"), *(["-o", str(output)] if command == "expand" else [])])
    error = capsys.readouterr().err
    assert status in (0, 1)
    assert (status == 1) == (error.startswith("opq: error: ") and error.count("\n") == 1)
    assert output.exists() == (command == "expand" and status == 0)
    assert "Traceback" not in error


CHILD = """
import json, re, resource, sys, time
import opq, opq.numpy, opq.codec.verify, opq.reporting.inspect
from opq.codec.file_reader import OpqFile

def one_by_one(path):
    with OpqFile(path) as file:
        for name in file:
            file.array(name)

size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]),) * 2)
readers = {"load_file": opq.numpy.load_file, "verify": opq.verify, "inspect": opq.inspect, "one by one": one_by_one}
costly = re.compile(sys.argv[2])
for path in sys.argv[3:]:
    for reader, run in list(readers.items())[: 2 if costly.search(path) else 4]:
        start = time.process_time()
        try:
            run(path)
        except opq.OpqError:
            pass
        print(json.dumps([path, reader, time.process_time() - start]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the size of a process is read on Linux")
def test_memory_is_bounded(tmp_path):
    """No hostile file of some kilobytes needs more than a gigabyte of address space."""
    paths = []
    for name, make in ATTACKS.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(make())
        assert paths[-1].stat().st_size < 300_000
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(LARGEST), COSTLY.pattern, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        # Address space that threads set aside for their own heaps, and do not use, is not memory.
        env={**os.environ, "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) >= 2 * len(paths)
    assert all(json.loads(line)[2] < 60 for line in run.stdout.splitlines())


def test_control_characters_are_not_printed(tmp_path, capsys):
    """Control characters in names are escaped, so that a file cannot control the terminal."""
    (tmp_path / "f.opq").write_bytes(ATTACKS["a_name_with_control_characters"]())
    assert main(["inspect", str(tmp_path / "f.opq")]) == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", capsys.readouterr().out)


def test_every_attack_is_documented():
    """Each attack has a docstring and is named in README.md."""
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    for name, make in ATTACKS.items():
        assert make.__doc__
        assert f"`{name}`" in text
