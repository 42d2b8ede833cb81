"""Auxiliary tensors to bytes and back, without loss: byte planes, each entropy coded where that pays.

A pack holds several tensors. For each item size 1, 2, 4, 8 that occurs, the elements of its tensors, one after the other,
are split into byte planes, highest byte first; floats are turned left by one bit before, so that the exponent fills the
highest byte and the sign sinks to the lowest. A plane starts with a LEB128 number n. For n = 0 its bytes follow as they are;
else the smallest byte value present, n frequency bytes for it and the values above it, the length of the coder's data
(LEB128, absent for n = 1) and these data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import constriction
import numpy as np
from numpy.typing import NDArray

from opq.codec.cursor import Cursor, varint
from opq.codec.tables import PRECISION, bytes_to_coder, encode_table, frequencies, table_model, words_to_bytes
from opq.errors import FormatError

_WHERE = "auxiliary tensors"
_SIZES = (1, 2, 4, 8)
_FLOAT_KINDS = "fV"  # ml_dtypes' types report kind V


def encode_pack(arrays: Sequence[NDArray[np.generic]]) -> bytes:
    """The section of `arrays`, of any shapes and dtypes."""
    out = bytearray()
    for size in _SIZES:
        chosen = [array for array in arrays if array.dtype.itemsize == size and array.size]
        if chosen:
            for plane in _to_words(chosen, size).view(np.uint8).reshape(-1, size).T[::-1]:
                out += _encode_plane(np.ascontiguousarray(plane))
    return bytes(out)


def decode_pack(
    section: bytes, shapes: Sequence[tuple[int, ...]], kinds: Sequence[np.dtype[np.generic]]
) -> list[NDArray[np.generic]]:
    """The arrays of `section`; FormatError unless it holds exactly tensors of these shapes and dtypes."""
    cursor = Cursor(section, _WHERE)
    words = {}
    for size in _SIZES:
        count = sum(math.prod(shape) for shape, kind in zip(shapes, kinds, strict=True) if kind.itemsize == size)
        planes = [_decode_plane(cursor, count) for _ in range(size)] if count else []
        words[size] = np.stack(planes[::-1], axis=-1).reshape(-1) if planes else np.zeros(0, dtype=np.uint8)
    cursor.end()
    at = dict.fromkeys(_SIZES, 0)
    arrays = []
    for shape, kind in zip(shapes, kinds, strict=True):
        size = kind.itemsize
        length = math.prod(shape) * size
        piece: NDArray[np.unsignedinteger] = words[size][at[size] : at[size] + length].view(f"<u{size}")
        at[size] += length
        arrays.append(_from_words(piece, kind).reshape(shape))
    return arrays


def _to_words(arrays: Sequence[NDArray[np.generic]], size: int) -> NDArray[np.unsignedinteger]:
    """The elements of arrays whose items have `size` bytes, one array after the other."""
    words = np.concatenate([np.ascontiguousarray(array).reshape(-1).view(f"u{size}") for array in arrays])
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


def _encode_plane(plane: NDArray[np.uint8]) -> bytes:
    low = int(plane.min())
    symbols = (plane - low).astype(np.int32)
    counts = np.bincount(symbols)
    table = encode_table(counts)
    head = varint(len(table)) + bytes([low]) + table
    if len(table) == 1:
        return head
    if counts @ (PRECISION - np.log2(frequencies(table))) > 8.0 * (1.01 * len(plane) + 16):
        return varint(0) + plane.tobytes()  # noise, such as the low bits of a mantissa: not worth trying
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols, table_model(table))
    data = words_to_bytes(coder.get_compressed())
    coded = head + varint(len(data)) + data
    return coded if len(coded) <= len(plane) else varint(0) + plane.tobytes()


def _decode_plane(cursor: Cursor, count: int) -> NDArray[np.uint8]:
    size = cursor.varint(limit=256)
    if size == 0:
        return np.frombuffer(cursor.take(count), dtype=np.uint8)
    low = cursor.take(1)[0]
    table = cursor.take(size)
    if low + size > 256 or table[0] == 0 or table[-1] == 0:
        raise FormatError(_WHERE, "the frequency table of a plane is not canonical")
    if size == 1:
        return np.full(count, low, dtype=np.uint8)
    coder = bytes_to_coder(cursor.take(cursor.varint()))
    plane: NDArray[np.int32] = coder.decode(table_model(table), count) + low
    if not coder.is_empty():
        raise FormatError(_WHERE, "data are left after the last value of a plane")
    return plane.astype(np.uint8)
