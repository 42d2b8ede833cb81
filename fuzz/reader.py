#!/usr/bin/env python3
"""Fuzzes the reader with atheris: every verb that reads, on files whose checksums are right whatever else is wrong with them.

    make fuzz        or        python fuzz/reader.py [libFuzzer options] NEW_INPUTS CORPUS...

An input is a .opq file as it would come from anyone. Bytes changed at random would nearly all be stopped by a checksum; so the
mutator takes a file apart, changes the inflated header or a section, and puts it together with right lengths and checksums.
The laws it is held to are in laws.py.
"""

from __future__ import annotations

import os
import random
import struct
import sys
import zlib

import atheris

with atheris.instrument_imports(include=["opq"]):
    from laws import try_file

    from opq.errors import FormatError

from codec_strategies import deflate, inflate, sections_of, small_file, with_sections, wrap  # after opq, to be instrumented


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """Another file of at most `most` bytes, put together from changed parts; now and then just other bytes."""
    chance = random.Random(seed)  # of libFuzzer, so that a run can be repeated
    try:
        changed = _change_part(data, most, chance)
    except (FormatError, ValueError, struct.error, zlib.error):  # it cannot be taken apart
        changed = wrap(deflate(bytes(atheris.Mutate(data[12:200], 400))), data[200:]) if chance.random() < 0.5 else small_file()
    return changed if len(changed) <= most else data


def _change_part(data: bytes, most: int, chance: random.Random) -> bytes:
    if chance.random() < 0.02:
        return bytes(atheris.Mutate(data, most))
    columns, body = inflate(data), data[12 + struct.unpack_from("<I", data, 4)[0] :]
    if chance.random() < 0.5:
        sections = sections_of(data)
        if sections:
            number = chance.randrange(len(sections))
            sections[number] = bytes(atheris.Mutate(sections[number] or b"?", most))
            return with_sections(data, sections)
    return wrap(deflate(bytes(atheris.Mutate(columns, most))), body)


def main() -> None:
    """Hand over to libFuzzer."""
    if hasattr(os, "sched_setaffinity"):  # one processor: thousands of small files a second want no threads
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    atheris.Setup(sys.argv, try_file, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
