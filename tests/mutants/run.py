"""Mutation testing: change the library in one place at a time, and check that a test fails. `make mutants`, or

    python tests/mutants/run.py [--jobs N] [NAME...]

mutants.toml lists the changes. Each names a file of src/opq, a text that occurs in it exactly once, its replacement, and the
tests that must then fail. Every mutant is a copy of src/, so that the working tree stays unchanged. First the named tests run
on an unchanged copy, and must pass. The exit status is 0 if every mutant is killed, and 1 if one is not, if the tests fail
without a change, or if the list no longer fits the source.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("mutants.toml")
SECONDS = 120
"""A test that takes longer has detected the mutant."""

_PASSED, _FAILED = 0, 1  # exit statuses of pytest; any other is no result


class StaleError(Exception):
    """The list does not fit the source or the tests."""


@dataclass(frozen=True)
class Mutant:
    """One change of the library.

    Args:
        name: The change in a few words.
        file: The changed file, relative to src/opq.
        find: Text that occurs in it exactly once.
        replace: The text in its place.
        tests: Test files or pytest ids, relative to tests/: the fewest that detect the change.
        why: The effect on a user.
    """

    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]
    why: str

    def changed_text(self, source: Path) -> str:
        """The changed text of the file under the `source` folder; StaleError if the change cannot be made."""
        path = source / "opq" / self.file
        if not path.is_file():
            raise StaleError(f"{self.name}: there is no {self.file}")
        text = path.read_text()
        if (times := text.count(self.find)) != 1:
            raise StaleError(f"{self.name}: {self.file} has {times} times, not once: {self.find}")
        changed = text.replace(self.find, self.replace)
        if changed == text:
            raise StaleError(f"{self.name}: it changes nothing")
        try:
            compile(changed, str(path), "exec")
        except SyntaxError as error:
            raise StaleError(f"{self.name}: {error}") from None
        return changed


def read_list(path: Path = LIST) -> list[Mutant]:
    """All mutants, in order; StaleError if one is malformed."""
    mutants = []
    for row in tomllib.loads(path.read_text())["mutant"]:
        wanted = {field.name for field in fields(Mutant)}
        if set(row) != wanted or not all(row[key] for key in wanted - {"replace"}):
            raise StaleError(f"{row.get('name')}: expected {', '.join(sorted(wanted))}, none empty, got {sorted(row)}")
        mutants.append(Mutant(**{**row, "tests": tuple(row["tests"])}))
    names = [mutant.name for mutant in mutants]
    if twice := {name for name in names if names.count(name) > 1}:
        raise StaleError(f"two mutants are called {min(twice)}")
    return mutants


def check_tests(mutant: Mutant) -> None:
    """Raise StaleError if a test that the mutant names does not exist."""
    for test in mutant.tests:
        path, _, function = test.partition("::")
        if not (ROOT / "tests" / path).is_file():
            raise StaleError(f"{mutant.name}: there is no tests/{path}")
        if function and f"def {function.partition('[')[0]}(" not in (ROOT / "tests" / path).read_text():
            raise StaleError(f"{mutant.name}: tests/{path} has no {function}")


def copied(source: Path, folder: str) -> Path:
    """A copy of a src/ folder in `folder`, with the compiled module."""
    return Path(shutil.copytree(source, Path(folder) / "src", ignore=shutil.ignore_patterns("*.egg-info")))


def run_tests(source: Path, tests: Sequence[str], output: IO[str], seconds: int = SECONDS) -> int:
    """The exit status of pytest for `tests` with the library under `source`, in a process of its own that writes to `output`.

    The process is forked from this one, so that all processes share the imports of `warm_up`.
    """
    sys.stdout.flush()
    if child := os.fork():
        status = os.waitpid(child, 0)[1]
        return _FAILED if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
    status = 70
    try:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        signal.alarm(seconds)
        os.chdir(ROOT)
        os.environ["PYTHONPATH"] = str(source)  # for subprocesses of tests
        sys.path.insert(0, str(source))
        modules = importlib.import_module("opq"), importlib.import_module("opq.codec._native")
        if not all(str(module.__file__).startswith(str(source)) for module in modules):
            raise StaleError(f"expected Python to import the copy in {source}, got {modules}")
        options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile", "mutants"]
        status = int(pytest.main([*options, *(f"tests/{test}" for test in tests)]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_mutant(mutant: Mutant, original: Path) -> tuple[str, float, str]:
    """The outcome "killed", "alive", or "broken" if the tests do not run; seconds; and the output of pytest."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        source = copied(original, folder)
        (source / "opq" / mutant.file).write_text(mutant.changed_text(original))
        shutil.rmtree((source / "opq" / mutant.file).parent / "__pycache__", ignore_errors=True)
        status = run_tests(source, mutant.tests, output)
        output.seek(0)
        text = output.read()
    return {_PASSED: "alive", _FAILED: "killed"}.get(status, "broken"), time.perf_counter() - start, text


def warm_up() -> None:
    """Import the slow dependencies, except those that pytest must import itself."""
    for name in ("scipy.integrate", "scipy.optimize", "scipy.special", "torch", "torch.nn.utils.parametrize", "accelerate"):
        importlib.import_module(name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Test all mutants, or those of the given names; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="globs of mutants to test (default: all)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="mutants tested at a time (default: one per core)"
    )
    parsed = parser.parse_args(arguments)
    try:
        mutants = [
            mutant for mutant in read_list() if not parsed.names or any(fnmatchcase(mutant.name, name) for name in parsed.names)
        ]
        for mutant in mutants:
            check_tests(mutant)
            mutant.changed_text(ROOT / "src")
    except StaleError as error:
        print(f"the list is stale: {error}")
        return 1
    if not mutants:
        print("there is no such mutant")
        return 1
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        original = copied(ROOT / "src", folder)
        with tempfile.TemporaryFile("w+") as output:
            named = sorted({test for mutant in mutants for test in mutant.tests})
            if run_tests(original, named, output, 10 * SECONDS) != _PASSED:
                output.seek(0)
                print(f"{output.read()}\nwithout a mutant the tests fail already")
                return 1
        return 1 if run_all(mutants, original, parsed.jobs) else 0


def run_all(mutants: Sequence[Mutant], original: Path, jobs: int) -> list[Mutant]:
    """Test all mutants of the library under `original`, `jobs` at a time; print a line for each, return those not killed."""
    width, place = (max(len(getattr(mutant, key)) for mutant in mutants) for key in ("name", "file"))
    left = []
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        found = pool.imap(partial(run_mutant, original=original), mutants)
        for mutant, (outcome, seconds, output) in zip(mutants, found, strict=True):
            print(f"{mutant.name:{width}}  {mutant.file:{place}}  {outcome:6}  {seconds:5.1f} s", flush=True)
            if outcome != "killed":
                left.append(mutant)
                print(f"    {mutant.why}")
            if outcome == "broken":
                print(output)
    print(f"{len(mutants) - len(left)} of {len(mutants)} mutants killed")
    return left


if __name__ == "__main__":
    sys.exit(main())
