"""What must hold for any bytes that are taken for a file; the fuzzer and the tests share it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import opq.numpy
from opq import dtypes
from opq.codec.reading import OpqFile
from opq.codec.verification import verify
from opq.errors import FormatError
from opq.reporting.inspection import inspect


class BrokenLawError(Exception):
    """A law does not hold for an input."""


MOST = 2**18
"""Dense bytes of the files that are looked into: larger ones only cost time."""


def try_file(data: bytes) -> bool:
    """Read a file in every way, and hold it to the laws; whether it was read to its end.

    Nothing is raised but FormatError; what is read has the shape and dtype that the header tells; every way to read gives the
    same bits; `inspect` accounts for every byte; `verify` calls nothing whole that cannot be read.
    """
    try:
        with OpqFile(data, max_bytes=MOST) as file:
            one_by_one = {}
            for entry in file.entries:
                array = file.array(entry.name)
                if array.shape != entry.shape or array.dtype != dtypes.NUMPY[entry.dtype]:
                    raise BrokenLawError(f"{entry.name!r} is not what the header tells")
                one_by_one[entry.name] = array.tobytes()
    except FormatError:
        for verb in (inspect, verify):
            _must_refuse(verb, data)
        return False
    together = {name: array.tobytes() for name, array in opq.numpy.load(data, max_bytes=MOST).items()}
    if together != one_by_one:
        raise BrokenLawError("load gives other bits than reading one by one")
    inspection = inspect(data)
    if inspection.header_bytes + sum(tensor.bytes for tensor in inspection.tensors) != len(data):
        raise BrokenLawError("inspect loses bytes")
    with suppress(FormatError):  # a file may be read that is not what a writer would write
        verify(data)
    return True


def _must_refuse(verb: Callable[[bytes], object], data: bytes) -> None:
    """`inspect` decodes weights only, so it may take what `verify` refuses; neither may fail in another way."""
    try:
        with OpqFile(data) as file:
            if file.dense_bytes > MOST:  # neither takes a limit of its own
                return
        verb(data)
    except FormatError:
        return
    if verb is verify:
        raise BrokenLawError("verify calls whole what cannot be read")
