"""The base of a delta: tensors by name, and the digest that names them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.codec.byte_reader import varint
from opq.errors import SourceError
from opq.thread_map import thread_map


class Base(Protocol):
    """The tensors of a checkpoint, read when they are looked up."""

    def describe(self, name: str, /) -> tuple[str, tuple[int, ...]]:
        """Name of the dtype and shape of a tensor."""

    def __getitem__(self, name: str, /) -> NDArray[np.generic]: ...

    def __contains__(self, name: object, /) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...


def digest_of(base: Base) -> bytes:
    """SHA-256 of names, dtypes, shapes and elements: equal for every file and dict of the same tensors.

    Args:
        base: The tensors, read one at a time on each core.

    Returns:
        32 bytes, as docs/format.md defines them under "Deltas".

    Raises:
        SourceError: A dtype is not supported.
    """
    whole = hashlib.sha256()
    for part in thread_map(lambda name: _digest_of_tensor(base, name), sorted(base, key=lambda name: name.encode())):
        whole.update(part)
    return whole.digest()


def has_same(base: Base, name: str, dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether a base has a tensor of this name, dtype and shape."""
    return name in base and base.describe(name) == (dtype, shape)


def _digest_of_tensor(base: Base, name: str) -> bytes:
    array = base[name]
    kind = dtypes.name_of(array.dtype)
    if kind not in dtypes.CODE:
        raise SourceError(f"tensor {name!r}", f"dtype {kind} is not supported; convert the tensor, or remove it")
    head = [len(name.encode()), array.ndim, *array.shape]
    data = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    elements = hashlib.sha256(data.reshape(-1).view(np.uint8).data)
    return varint(head[0]) + name.encode() + bytes([dtypes.CODE[kind]]) + b"".join(map(varint, head[1:])) + elements.digest()
