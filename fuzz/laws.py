"""Laws of reading that hold for any bytes; the fuzzer and the tests share them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import opq.numpy
from opq import dtypes
from opq.codec.file_reader import OpqFile
from opq.codec.verify import verify
from opq.errors import FormatError
from opq.reporting.inspect import inspect


class BrokenLawError(Exception):
    """A law does not hold for an input."""


MOST = 2**18
"""Dense bytes of the files that are read; larger ones only take time."""

Content = dict[str, bytes]
Verb = Callable[[bytes, Content | None], None]


def try_file(data: bytes, verbs: Sequence[Verb] | None = None) -> bool:
    """Read a file tensor by tensor and with `verbs`, by default all, and check the laws; whether it was read completely.

    Nothing is raised but FormatError; tensors have the shape and dtype that the header gives; every reader gives the same
    bits; `inspect` accounts for every byte; a file that cannot be read does not pass `verify`.
    """
    content = None
    try:
        with OpqFile(data) as file:
            if file.dense_bytes > MOST:
                return False
            content = _read_one_by_one(file)
    except FormatError:
        pass
    for law in VERBS if verbs is None else verbs:
        law(data, content)
    return content is not None


def _read_one_by_one(file: OpqFile) -> Content:
    content = {}
    for entry in file.entries:
        array = file.array(entry.name)
        if array.shape != entry.shape or array.dtype != dtypes.NUMPY[entry.dtype]:
            raise BrokenLawError(f"{entry.name!r} has another shape or dtype than in the header")
        content[entry.name] = array.tobytes()
    return content


def _load(data: bytes, content: Content | None) -> None:
    try:
        together = {name: array.tobytes() for name, array in opq.numpy.load(data, max_bytes=MOST).items()}
    except FormatError:
        together = None
    if together != content:
        raise BrokenLawError("load gives other bits than reading one by one")


def _inspect(data: bytes, content: Content | None) -> None:
    """It decodes weights only, so it may accept a file that cannot be read completely."""
    try:
        inspection = inspect(data)
    except FormatError:
        if content is not None:
            raise BrokenLawError("inspect refuses what can be read") from None
        return
    if inspection.header_bytes + sum(tensor.bytes for tensor in inspection.tensors) != len(data):
        raise BrokenLawError("inspect loses bytes")


def _verify(data: bytes, content: Content | None) -> None:
    """It may refuse a file that can be read, if no writer would give its bytes."""
    with suppress(FormatError):
        verify(data)
        if content is None:
            raise BrokenLawError("verify accepts what cannot be read")


VERBS: Sequence[Verb] = (_load, _inspect, _verify)
