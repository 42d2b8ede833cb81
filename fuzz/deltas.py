#!/usr/bin/env python3
"""Fuzzes the reader of deltas with atheris, on damaged deltas of one base with correct checksums.

    make fuzz        or        python fuzz/deltas.py [libFuzzer options] NEW_INPUTS CORPUS...

An input is an untrusted delta; delta_mutator.py makes new ones, and delta_laws.py has the laws and the base.
"""

from __future__ import annotations

import os
import sys
import warnings

import atheris

with atheris.instrument_imports(include=["opq.codec"]):
    from delta_laws import try_delta

from delta_mutator import DeltaMutator  # after opq, to be instrumented


def main() -> None:
    """Run libFuzzer."""
    if hasattr(os, "sched_setaffinity"):  # as in reader.py
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    warnings.simplefilter("error")  # users would see them
    atheris.Setup(sys.argv, try_delta, custom_mutator=DeltaMutator(lambda data, size: bytes(atheris.Mutate(data, size))))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
