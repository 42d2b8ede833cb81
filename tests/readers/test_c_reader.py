"""The reader without Python, include/opq.h: it reads and refuses the files that the Python reader does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from thoroughness import some
from vectors import ROOT, TESTS, all_differences, costly, run_reader, vectors

sys.path.insert(0, str(ROOT / "c"))
from amalgamate import amalgamate

import opq.numpy

SANITIZE = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
SANITIZED = {"clang": ("-O0", "-DOPQ_OWN_INFLATE", *SANITIZE), "gcc": ("-Og", *SANITIZE)}
"""{compiler: its options}; one with zlib, one without, and each as it compiles fastest."""
COMPILERS = [name for name in SANITIZED if shutil.which(name)][: some(1, 2)] or [*SANITIZED]
WARNINGS = ("-Wall", "-Wextra", "-Werror")
pytestmark = pytest.mark.slow  # a compiler takes seconds

DUMP = TESTS / "readers" / "dump.c"
EXAMPLE = ROOT / "examples" / "c" / "list.c"


def compiled(folder: Path, compiler: str, options: Sequence[str]) -> dict[Path, Path]:
    """{main file: program with the reader in one file}; the test is skipped if the compiler or zlib are missing."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not here")
    (folder / "opq.c").write_text(amalgamate())
    call = [compiler, "-std=c11", *WARNINGS, *options, f"-I{ROOT / 'include'}"]
    link = [] if "-DOPQ_OWN_INFLATE" in options else ["-lz"]
    programs = {main: folder / main.stem for main in (DUMP, EXAMPLE)}
    commands = [[*call, "-c", folder / "opq.c", "-o", folder / "opq.o"]]
    commands += [[*call, folder / "opq.o", main, "-o", program, *link, "-lm"] for main, program in programs.items()]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if "zlib.h" in done.stderr or "-lz" in done.stderr:
            pytest.skip("zlib's header is not here; install zlib1g-dev")
        if {*SANITIZE} <= {*options} and done.returncode and "san" in done.stderr.splitlines()[-1]:
            pytest.skip(f"{compiler} has no sanitizers here")
        assert done.returncode == 0, done.stderr
    return programs


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> dict[Path, Path]:
    """Programs without sanitizers."""
    return compiled(tmp_path_factory.mktemp("plain"), "cc", ["-O1"])


@pytest.fixture(scope="module", params=COMPILERS)
def sanitized(request, tmp_path_factory) -> dict[Path, Path]:
    """Programs with sanitizers, of the compiler that is faster with them; in the thorough profile of both."""
    return compiled(tmp_path_factory.mktemp(request.param), request.param, SANITIZED[request.param])


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """The files that all readers read."""
    return vectors(changed=100)


def test_c_reads_and_refuses_what_python_does(files, programs, tmp_path):
    """Every file gives the same names, dtypes, shapes, values and codes as in Python, or is refused for the same part."""
    found = run_reader([programs[DUMP]], files, tmp_path)
    assert not (wrong := all_differences(files, found)), wrong
    assert any("error" in of for of in found)
    assert any("tensors" in of for of in found)


def test_c_is_clean_under_sanitizers(files, sanitized, tmp_path):
    """With either compiler, with zlib and without, no file makes the reader read or write where it must not."""
    assert not (wrong := all_differences(files, run_reader([sanitized[DUMP]], files, tmp_path))), wrong


def test_costly_files_are_refused(programs, tmp_path):
    """Files that would cost a careless reader minutes or gigabytes are read as in Python."""
    files = costly()
    found = run_reader([programs[DUMP]], files, tmp_path)
    assert not (wrong := all_differences(files, found)), wrong


def test_the_example_lists_tensors(sanitized):
    """examples/c/list.c prints a line for each tensor of the golden files, and one line about a file that it cannot read."""
    program = sanitized[EXAMPLE]
    golden = sorted((TESTS / "golden").glob("*.opq"))
    assert golden
    for path in golden:
        done = subprocess.run([program], input=path.read_bytes(), capture_output=True)
        assert done.returncode == 0, done.stderr
        printed = dict(line.split("\t", 1) for line in done.stdout.decode().splitlines())
        refused = [line.partition(": ") for line in done.stderr.decode().splitlines()]
        assert all(about.startswith("this dtype is not converted to float32") for _, _, about in refused)
        arrays = opq.numpy.load(path.read_bytes())
        assert sorted([*printed, *(name for name, _, _ in refused)]) == sorted(arrays)
        for name, line in printed.items():
            dtype, count, first = line.split("\t")
            expected = arrays[name].reshape(-1)[:1].astype(np.float32) if arrays[name].size else [0.0]
            assert (dtype, int(count)) == (arrays[name].dtype.name, arrays[name].size)
            assert np.float32(first) == pytest.approx(expected[0], rel=1e-6, nan_ok=True)
    data = golden[0].read_bytes()[:-1]
    refused = subprocess.run([program], input=data, capture_output=True)
    assert refused.returncode == 1
    assert refused.stderr.startswith(b"not a valid .opq file: sections: ")
    assert refused.stderr.count(b"\n") == 1


def test_the_page_shows_the_example():
    """docs/readers.md has the example as it is compiled."""
    text = EXAMPLE.read_text()
    assert f"```c\n{text[text.index('int main') :]}```" in (ROOT / "docs" / "readers.md").read_text()
