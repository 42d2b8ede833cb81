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


LARGEST = 2**18
"""Largest number of dense bytes that is read; larger files would only take more time."""

Content = dict[str, bytes]
Law = Callable[[bytes, Content | None], None]


def try_file(data: bytes, laws: Sequence[Law] | None = None) -> bool:
    """Read a file tensor by tensor and check `laws`, by default all. Returns whether it was read completely.

    The laws: only FormatError is raised; tensors have the shape and dtype in the header; every reader returns the same bits;
    `inspect` accounts for every byte; a file that cannot be read does not pass `verify`.
    """
    content = None
    try:
        with OpqFile(data) as file:
            if file.dense_bytes > LARGEST:
                return False
            content = _read_one_by_one(file)
    except FormatError:
        pass
    for law in LAWS if laws is None else laws:
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
        together = {name: array.tobytes() for name, array in opq.numpy.load(data, max_bytes=LARGEST).items()}
    except FormatError:
        together = None
    if together != content:
        raise BrokenLawError("load gives other bits than reading one by one")


def _inspect(data: bytes, content: Content | None) -> None:
    """`inspect` decodes weights only, so it may accept a file that cannot be read completely."""
    try:
        inspection = inspect(data)
    except FormatError:
        if content is not None:
            raise BrokenLawError("inspect refuses what can be read") from None
        return
    if inspection.header_bytes + sum(tensor.bytes for tensor in inspection.tensors) != len(data):
        raise BrokenLawError("inspect loses bytes")


def _verify(data: bytes, content: Content | None) -> None:
    """`verify` may refuse a file that can be read, if no writer would produce its bytes."""
    with suppress(FormatError):
        verify(data)
        if content is None:
            raise BrokenLawError("verify accepts what cannot be read")


LAWS: Sequence[Law] = (_load, _inspect, _verify)
