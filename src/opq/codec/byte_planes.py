"""Encode auxiliary tensors to bytes and back without loss, as byte planes that are entropy coded if that is smaller.

A pack holds several tensors; an element of complex128 is two of float64. For each item size 1, 2, 4, 8, the elements of all
tensors with this item size are concatenated and split into byte planes, highest byte first. Floats are rotated left by one bit
before, so that the highest byte is the exponent and the lowest bit is the sign. A plane is the length of its data (LEB128) and
the data: raw bytes if the length is the number of elements; otherwise coded bytes, with the plane above as context.
docs/format.md is the normative text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.codec import _native
from opq.codec.byte_reader import ByteReader, varint
from opq.codec.code_length import zero_order_entropy
from opq.errors import FormatError
from opq.thread_map import thread_map

_WHERE = "auxiliary tensors"
_SIZES = (1, 2, 4, 8)
_FLOAT_KINDS = "fV"  # ml_dtypes' types report kind V
_LARGEST_WORD = {name: 2**bits - 1 for name, bits in dtypes.BITS.items() if bits < 8} | {"bool": 1}


def encode_pack(arrays: Sequence[NDArray[np.generic]]) -> bytes:
    """Encode a pack.

    Args:
        arrays: Arrays of any shapes and of dtypes in opq.dtypes.

    Returns:
        The section's bytes.
    """
    pairs: list[tuple[NDArray[np.uint8], bytes]] = []
    for planes in _planes(_real(arrays)):
        pairs += zip(planes, [b"", *(plane.tobytes() for plane in planes)], strict=False)
    return b"".join(thread_map(lambda pair: _encode_plane(*pair), pairs))


def estimate_pack(arrays: Sequence[NDArray[np.generic]]) -> int:
    """Estimate the bytes of `encode_pack(arrays)` without encoding: the zero-order entropy of each plane."""
    planes = chain.from_iterable(_planes(_real(arrays)))
    return sum(round(zero_order_entropy(np.bincount(plane)) / 8.0) + 4 for plane in planes)


def is_valid(array: NDArray[np.generic]) -> bool:
    """Whether each bool is 0 or 1, and each float4 or float6 uses only the low bits of its byte.

    An array that was created from bytes may violate this.
    """
    largest = _LARGEST_WORD.get(array.dtype.name)
    return largest is None or not array.size or int(np.ascontiguousarray(array).view(np.uint8).max()) <= largest


def _real(arrays: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    """The arrays; those of complex128 as float64."""
    return [
        np.ascontiguousarray(array, dtype=np.complex128).reshape(-1).view(np.float64)
        if array.dtype.name == "complex128"
        else array
        for array in arrays
    ]


def _planes(arrays: Sequence[NDArray[np.generic]]) -> Iterator[list[NDArray[np.uint8]]]:
    """The byte planes of each item size that occurs, highest byte first."""
    for size in _SIZES:
        if chosen := [array for array in arrays if array.dtype.itemsize == size and array.size]:
            yield list(_to_words(chosen, size).view(np.uint8).reshape(-1, size).T[::-1])


def _encode_plane(plane: NDArray[np.uint8], above: bytes) -> bytes:
    raw = plane.tobytes()
    coded = raw if _is_noise(plane) else _native.encode_plane(raw, above)
    data = coded if len(coded) < len(raw) else raw
    return varint(len(data)) + data


def decode_pack(
    section: bytes, shapes: Sequence[tuple[int, ...]], kinds: Sequence[np.dtype[np.generic]]
) -> list[NDArray[np.generic]]:
    """Inverse of `encode_pack`.

    Args:
        section: The section's bytes, untrusted.
        shapes: Shape of each tensor.
        kinds: Dtype of each tensor.

    Raises:
        FormatError: The section does not hold exactly these tensors.
    """
    reader = ByteReader(section, _WHERE)
    words = [np.dtype(np.float64) if kind == np.complex128 else kind for kind in kinds]
    counts = [math.prod(shape) * kind.itemsize // word.itemsize for shape, kind, word in zip(shapes, kinds, words, strict=True)]
    data = {}
    for size in _SIZES:
        count = sum(count for count, word in zip(counts, words, strict=True) if word.itemsize == size)
        planes: list[NDArray[np.uint8]] = []
        for _ in range(size if count else 0):
            planes.append(_decode_plane(reader, count, planes[-1] if planes else np.zeros(0, dtype=np.uint8)))
        data[size] = np.stack(planes[::-1], axis=-1).reshape(-1) if planes else np.zeros(0, dtype=np.uint8)
    reader.end()
    at = dict.fromkeys(_SIZES, 0)
    arrays = []
    for shape, kind, word, count in zip(shapes, kinds, words, counts, strict=True):
        size = word.itemsize
        piece: NDArray[np.unsignedinteger] = data[size][at[size] : at[size] + count * size].view(f"<u{size}")
        at[size] += count * size
        arrays.append(_from_words(piece, word).view(kind).reshape(shape))
    return arrays


def _is_noise(plane: NDArray[np.uint8]) -> bool:
    """Whether bytes are nearly uniform, such as the low bits of a mantissa, so that encoding them would save nothing."""
    counts = np.bincount(plane, minlength=256)
    return 256 * int(counts @ counts) <= len(plane) ** 2 + 512 * len(plane)


def _to_words(arrays: Sequence[NDArray[np.generic]], size: int) -> NDArray[np.unsignedinteger]:
    """The elements of all arrays as words of `size` bytes, concatenated, floats rotated."""
    native = [np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")) for array in arrays]
    words = np.concatenate([array.reshape(-1).view(f"u{size}") for array in native])
    is_float = np.repeat([array.dtype.kind in _FLOAT_KINDS for array in arrays], [array.size for array in arrays])
    rotated = (words << 1) | (words >> (8 * size - 1))
    return np.where(is_float, rotated, words).astype(f"<u{size}", copy=False)


def _from_words(words: NDArray[np.unsignedinteger], kind: np.dtype[np.generic]) -> NDArray[np.generic]:
    size = kind.itemsize
    words = words.astype(f"u{size}", copy=False)
    if kind.kind in _FLOAT_KINDS:
        words = np.asarray((words >> 1) | (words << (8 * size - 1)), dtype=words.dtype)
    array: NDArray[np.generic] = words.view(kind)
    if not is_valid(array):
        raise FormatError(_WHERE, f"a byte of {kind.name} must be at most {_LARGEST_WORD[kind.name]}, got {words.max()}")
    return array


def _decode_plane(reader: ByteReader, count: int, above: NDArray[np.uint8]) -> NDArray[np.uint8]:
    data = reader.take(reader.varint(limit=count))
    if len(data) == count:
        return np.frombuffer(data, dtype=np.uint8)
    plane = np.empty(count, dtype=np.uint8)
    if not _native.decode_plane(data, above.data, plane.data):
        raise FormatError(_WHERE, f"the data of a plane do not end with its {count:,} values")
    return plane
