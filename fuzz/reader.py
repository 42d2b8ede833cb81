#!/usr/bin/env python3
"""Fuzzes the reader with atheris: the verbs that read, on files whose checksums are right whatever else is wrong with them.

    make fuzz        or        python fuzz/reader.py [libFuzzer options] NEW_INPUTS CORPUS...

An input is a .opq file as it would come from anyone; mutator.py makes new ones, laws.py has what they are held to. Every
input is read tensor by tensor, and given to one of the other verbs: the corpus goes through all of them with every test run.
"""

from __future__ import annotations

import os
import sys
import warnings
import zlib

import atheris

with atheris.instrument_imports(include=["opq"]):
    from laws import VERBS, try_file

from mutator import Mutator  # after opq, to be instrumented


def try_input(data: bytes) -> None:
    """Hold an input to the laws, with a verb that depends on it."""
    try_file(data, VERBS[zlib.crc32(data) % len(VERBS) :][:1])


def main() -> None:
    """Hand over to libFuzzer."""
    if hasattr(os, "sched_setaffinity"):  # one processor: thousands of small files a second want no threads
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    warnings.simplefilter("error")  # they would stand on a user's terminal
    atheris.Setup(sys.argv, try_input, custom_mutator=Mutator(lambda data, most: bytes(atheris.Mutate(data, most))))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
