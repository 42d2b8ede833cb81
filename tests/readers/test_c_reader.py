"""The reader without Python, include/opq.h: it reads and refuses the files that the Python reader does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from vectors import ROOT, TESTS, all_differences, costly, run_reader, vectors

sys.path.insert(0, str(ROOT / "c"))
from amalgamate import amalgamate

import opq.numpy

SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
WARNINGS = ("-Wall", "-Wextra", "-Werror")
pytestmark = pytest.mark.slow  # a compiler takes seconds

DUMP = TESTS / "readers" / "dump.c"


def compiled(folder: Path, main: Path, *options: str, compiler: str = "cc") -> Path:
    """A program with the reader in one file; the test is skipped if the compiler or zlib are missing."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not here")
    (folder / "opq.c").write_text(amalgamate())
    program = folder / "program"
    link = [] if "-DOPQ_OWN_INFLATE" in options else ["-lz"]
    sources = [folder / "opq.c", main]
    done = subprocess.run(
        [compiler, "-std=c11", *WARNINGS, *options, f"-I{ROOT / 'include'}", *sources, "-o", program, *link, "-lm"],
        capture_output=True,
        text=True,
    )
    if "zlib.h" in done.stderr or "-lz" in done.stderr:
        pytest.skip("zlib's header is not here; install zlib1g-dev")
    if SANITIZE[0] in options and done.returncode and "san" in done.stderr.splitlines()[-1]:
        pytest.skip(f"{compiler} has no sanitizers here")
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """The files that all readers read."""
    return vectors(changed=100)


def test_c_reads_and_refuses_what_python_does(files, tmp_path):
    """Every file gives the same names, dtypes, shapes, values and codes as in Python, or is refused for the same part."""
    found = run_reader([compiled(tmp_path, DUMP, "-O1")], files, tmp_path)
    assert not (wrong := all_differences(files, found)), wrong
    assert any("error" in of for of in found)
    assert any("tensors" in of for of in found)


@pytest.mark.parametrize(("compiler", "options"), [("gcc", []), ("clang", ["-DOPQ_OWN_INFLATE"])])
def test_c_is_clean_under_sanitizers(tmp_path, compiler, options):
    """With both compilers, with zlib and without, no file makes the reader read or write where it must not."""
    program = compiled(tmp_path, DUMP, "-g", "-O1", *SANITIZE, *options, compiler=compiler)
    files = vectors(changed=100)
    assert not (wrong := all_differences(files, run_reader([program], files, tmp_path))), wrong


def test_costly_files_are_refused(tmp_path):
    """Files that would cost a careless reader minutes or gigabytes are read as in Python."""
    files = costly()
    found = run_reader([compiled(tmp_path, DUMP, "-O1")], files, tmp_path)
    assert not (wrong := all_differences(files, found)), wrong


def test_the_example_lists_tensors(network, tmp_path):
    """examples/c/list.c prints a line for each tensor, and one line about a file that it cannot read."""
    data = opq.compress(network, ratio=6).data
    path = tmp_path / "model.opq"
    path.write_bytes(data)
    program = compiled(tmp_path, ROOT / "examples" / "c" / "list.c", "-O1", "-Wno-unused-parameter")
    lines = subprocess.run([program, path], capture_output=True, text=True, check=True).stdout.splitlines()
    arrays = opq.numpy.load(data)
    assert [line.split()[3] for line in lines] == list(arrays)
    for line, array in zip(lines, arrays.values(), strict=True):
        dtype, count, mean, _ = line.split()
        assert (dtype, int(count)) == (array.dtype.name, array.size)
        assert float(mean) == pytest.approx(np.abs(array.astype(np.float64)).mean(), rel=1e-2)
    path.write_bytes(data[:-1])
    refused = subprocess.run([program, path], capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.startswith("not a valid .opq file: sections: ")
    assert refused.stderr.count(os.linesep) == 1
