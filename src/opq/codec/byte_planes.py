"""Auxiliary tensors to bytes and back, without loss: byte planes, each entropy coded where that pays.

A pack holds several tensors. For each item size 1, 2, 4, 8 that occurs, the elements of its tensors, one after the other, are
split into byte planes, highest byte first; floats are turned left by one bit before, so that the exponent fills the highest
byte and the sign sinks to the lowest. A plane is the length of its data (LEB128) and the data: as they are where the length is
the number of elements, else coded with the plane above as context. docs/format.md is the normative text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from opq.codec import _native
from opq.codec.byte_reader import ByteReader, varint
from opq.errors import FormatError
from opq.thread_map import thread_map

_WHERE = "auxiliary tensors"
_SIZES = (1, 2, 4, 8)
_FLOAT_KINDS = "fV"  # ml_dtypes' types report kind V


def encode_pack(arrays: Sequence[NDArray[np.generic]]) -> bytes:
    """The section of `arrays`, of any shapes and dtypes."""
    pairs: list[tuple[NDArray[np.uint8], bytes]] = []
    for planes in _planes(arrays):
        pairs += zip(planes, [b"", *(plane.tobytes() for plane in planes)], strict=False)
    return b"".join(thread_map(lambda pair: _encode_plane(*pair), pairs))


def estimate_pack(arrays: Sequence[NDArray[np.generic]]) -> int:
    """About the bytes of the section of `arrays`, without coding them: the entropy of each plane's bytes."""
    return sum(round(_entropy_bytes(plane)) + 4 for planes in _planes(arrays) for plane in planes)


def _planes(arrays: Sequence[NDArray[np.generic]]) -> Iterator[list[NDArray[np.uint8]]]:
    """For each item size that occurs, the byte planes of its arrays, highest first."""
    for size in _SIZES:
        if chosen := [array for array in arrays if array.dtype.itemsize == size and array.size]:
            yield list(_to_words(chosen, size).view(np.uint8).reshape(-1, size).T[::-1])


def _entropy_bytes(plane: NDArray[np.uint8]) -> float:
    counts = np.bincount(plane)
    counts = counts[counts > 0]
    return float(counts @ (np.log2(len(plane)) - np.log2(counts))) / 8.0


def _encode_plane(plane: NDArray[np.uint8], above: bytes) -> bytes:
    raw = plane.tobytes()
    coded = raw if _is_noise(plane) else _native.encode_plane(raw, above)
    data = coded if len(coded) < len(raw) else raw
    return varint(len(data)) + data


def decode_pack(
    section: bytes, shapes: Sequence[tuple[int, ...]], kinds: Sequence[np.dtype[np.generic]]
) -> list[NDArray[np.generic]]:
    """The arrays of `section`; FormatError unless it holds exactly tensors of these shapes and dtypes."""
    reader = ByteReader(section, _WHERE)
    words = {}
    for size in _SIZES:
        count = sum(math.prod(shape) for shape, kind in zip(shapes, kinds, strict=True) if kind.itemsize == size)
        planes: list[NDArray[np.uint8]] = []
        for _ in range(size if count else 0):
            planes.append(_decode_plane(reader, count, planes[-1] if planes else np.zeros(0, dtype=np.uint8)))
        words[size] = np.stack(planes[::-1], axis=-1).reshape(-1) if planes else np.zeros(0, dtype=np.uint8)
    reader.end()
    at = dict.fromkeys(_SIZES, 0)
    arrays = []
    for shape, kind in zip(shapes, kinds, strict=True):
        size = kind.itemsize
        length = math.prod(shape) * size
        piece: NDArray[np.unsignedinteger] = words[size][at[size] : at[size] + length].view(f"<u{size}")
        at[size] += length
        arrays.append(_from_words(piece, kind).reshape(shape))
    return arrays


def _is_noise(plane: NDArray[np.uint8]) -> bool:
    """Whether equal bytes meet no more often than by chance, as in the low bits of a mantissa: then coding is not tried."""
    counts = np.bincount(plane, minlength=256)
    return 256 * int(counts @ counts) <= len(plane) ** 2 + 512 * len(plane)


def _to_words(arrays: Sequence[NDArray[np.generic]], size: int) -> NDArray[np.unsignedinteger]:
    """The elements of arrays whose items have `size` bytes, one array after the other."""
    native = [np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")) for array in arrays]
    words = np.concatenate([array.reshape(-1).view(f"u{size}") for array in native])
    is_float = np.repeat([array.dtype.kind in _FLOAT_KINDS for array in arrays], [array.size for array in arrays])
    turned = (words << 1) | (words >> (8 * size - 1))
    return np.where(is_float, turned, words).astype(f"<u{size}", copy=False)


def _from_words(words: NDArray[np.unsignedinteger], kind: np.dtype[np.generic]) -> NDArray[np.generic]:
    size = kind.itemsize
    words = words.astype(f"u{size}", copy=False)
    if kind.kind in _FLOAT_KINDS:
        words = np.asarray((words >> 1) | (words << (8 * size - 1)), dtype=words.dtype)
    elif kind == np.bool_ and (words > 1).any():
        raise FormatError(_WHERE, "a bool is neither 0 nor 1")
    return words.view(kind)


def _decode_plane(reader: ByteReader, count: int, above: NDArray[np.uint8]) -> NDArray[np.uint8]:
    data = reader.take(reader.varint(limit=count))
    if len(data) == count:
        return np.frombuffer(data, dtype=np.uint8)
    plane = np.empty(count, dtype=np.uint8)
    if not _native.decode_plane(data, above.data, plane.data):
        raise FormatError(_WHERE, "a plane's data do not end where its values do")
    return plane
