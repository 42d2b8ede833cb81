#!/usr/bin/env python3
"""Fuzzes the readers with atheris, on damaged files with correct checksums.

    make fuzz        or        python fuzz/reader.py [libFuzzer options] NEW_INPUTS CORPUS...

An input is an untrusted .opq file; mutator.py makes new ones, and laws.py has the laws. Every input is read tensor by tensor
and by one of the other readers. Every test run reads the corpus with all of them.
"""

from __future__ import annotations

import os
import sys
import warnings
import zlib

import atheris

with atheris.instrument_imports(include=["opq"]):
    from laws import LAWS, try_file

from mutator import Mutator  # after opq, to be instrumented


def try_input(data: bytes) -> None:
    """Check the laws for an input, with a reader that depends on it."""
    try_file(data, LAWS[zlib.crc32(data) % len(LAWS) :][:1])


def main() -> None:
    """Run libFuzzer."""
    if hasattr(os, "sched_setaffinity"):  # one processor: for thousands of small files per second, threads are slower
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    warnings.simplefilter("error")  # users would see them
    atheris.Setup(sys.argv, try_input, custom_mutator=Mutator(lambda data, size: bytes(atheris.Mutate(data, size))))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
