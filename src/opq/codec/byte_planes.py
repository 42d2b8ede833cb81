"""Encode auxiliary tensors to bytes and back without loss, as byte planes that are entropy coded if that is smaller.

A pack holds several tensors; an element of complex128 is two of float64. For each item size 1, 2, 4, 8, the elements of all
tensors with this item size are concatenated and split into byte planes, highest byte first. Floats are rotated left by one bit
before, so that the highest byte is the exponent and the lowest bit is the sign. A plane is the length of its data (LEB128) and
the data: raw bytes if the length is the number of elements; otherwise coded bytes, with the plane above as context.
docs/format.md is the normative text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.codec import _native, fast_planes
from opq.codec.byte_reader import ByteReader, varint
from opq.codec.code_length import zero_order_entropy
from opq.errors import FormatError
from opq.thread_map import thread_map

_WHERE = "auxiliary tensors"
_SIZES = (1, 2, 4, 8)
_FLOAT_KINDS = "fV"  # ml_dtypes' types report kind V
_LARGEST_WORD = {name: 2**bits - 1 for name, bits in dtypes.BITS.items() if bits < 8} | {"bool": 1}


def encode_pack(arrays: Sequence[NDArray[np.generic]]) -> bytes:
    """Encode a pack with adaptive planes.

    Args:
        arrays: Arrays of any shapes and of dtypes in opq.dtypes.

    Returns:
        The section's bytes.
    """
    pairs: list[tuple[NDArray[np.uint8], bytes]] = []
    for words in _words_of(arrays):
        planes = words.planes()
        pairs += zip(planes, [b"", *(plane.tobytes() for plane in planes)], strict=False)
    return b"".join(thread_map(lambda pair: _encode_plane(*pair), pairs))


def encode_fast_pack(arrays: Sequence[NDArray[np.generic]]) -> bytes | None:
    """As `encode_pack`, with fast planes where they are shorter than the bytes themselves; None if none is."""
    parts: list[bytes | memoryview] = []
    has_fast = False
    for words in _words_of(arrays):
        count = words.words.size
        may_be_fast = count >= fast_planes.FEWEST

        def encode(piece: _Words, may_be_fast: bool = may_be_fast) -> list[Sequence[bytes | memoryview]]:
            return [fast_planes.encode_blocks(plane) if may_be_fast else [plane.data] for plane in piece.planes()]

        encoded = list(thread_map(encode, words.pieces(fast_planes.PIECE)))
        for byte in range(words.size):
            blocks = [block for piece in encoded for block in piece[byte]]
            is_fast = may_be_fast and sum(map(len, blocks)) < count
            has_fast |= is_fast
            parts += [varint(count + 1), *(varint(len(block)) for block in blocks)] if is_fast else [varint(count)]
            parts += blocks
    return b"".join(parts) if has_fast else None


def estimate_pack(arrays: Sequence[NDArray[np.generic]]) -> int:
    """Estimate the bytes of `encode_pack(arrays)` without encoding: the zero-order entropy of each plane."""
    planes = chain.from_iterable(words.planes() for words in _words_of(arrays))
    return sum(round(zero_order_entropy(np.bincount(plane)) / 8.0) + 4 for plane in planes)


def is_valid(array: NDArray[np.generic]) -> bool:
    """Whether each bool is 0 or 1, and each float4 or float6 uses only the low bits of its byte.

    An array that was created from bytes may violate this.
    """
    largest = _LARGEST_WORD.get(dtypes.name_of(array.dtype))
    return largest is None or not array.size or int(np.ascontiguousarray(array).view(np.uint8).max()) <= largest


def _real(arrays: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    """The arrays; those of complex128 as float64."""
    return [
        np.ascontiguousarray(array, dtype=np.complex128).reshape(-1).view(np.float64)
        if dtypes.name_of(array.dtype) == "complex128"
        else array
        for array in arrays
    ]


@dataclass(frozen=True)
class _Words:
    """The elements of all arrays of one size.

    Args:
        words: In one dimension and native byte order.
        rotated: Whether planes are those of words rotated left by one bit.
    """

    words: NDArray[np.unsignedinteger]
    rotated: bool

    @property
    def size(self) -> int:
        """Bytes of a word."""
        return self.words.itemsize

    def planes(self) -> list[NDArray[np.uint8]]:
        """The planes of all bytes, the highest first."""
        planes = np.empty((self.size, self.words.size), dtype=np.uint8)
        _native.split_words(self.words.view(np.uint8).data, self.size, self.rotated, planes.reshape(-1).data)
        return list(planes)

    def pieces(self, count: int) -> Iterator[_Words]:
        """The words in pieces of `count`; the last one has the rest."""
        return (replace(self, words=self.words[start : start + count]) for start in range(0, self.words.size, count))


def _words_of(arrays: Sequence[NDArray[np.generic]]) -> Iterator[_Words]:
    """The words of each item size that occurs."""
    real = _real(arrays)
    for size in _SIZES:
        if chosen := [array for array in real if array.dtype.itemsize == size and array.size]:
            yield _to_words(chosen, size)


def _encode_plane(plane: NDArray[np.uint8], above: bytes) -> bytes:
    raw = plane.tobytes()
    coded = raw if _is_noise(plane) else _native.encode_plane(raw, above)
    data = coded if len(coded) < len(raw) else raw
    return varint(len(data)) + data


def decode_pack(
    section: bytes | memoryview,
    shapes: Sequence[tuple[int, ...]],
    kinds: Sequence[np.dtype[np.generic]],
    given: Sequence[NDArray[np.generic]] | None = None,
) -> list[NDArray[np.generic]]:
    """Inverse of `encode_pack`.

    Args:
        section: The section's bytes, untrusted.
        shapes: Shape of each tensor.
        kinds: Dtype of each tensor.
        given: C-contiguous arrays of these, which receive the tensors; None: new ones.

    Returns:
        The tensors. None shares memory with another.

    Raises:
        FormatError: The section does not hold exactly these tensors.
    """
    reader = ByteReader(section, _WHERE)
    arrays = given or [np.empty(shape, dtype=kind) for shape, kind in zip(shapes, kinds, strict=True)]
    words = [array for array in _real(arrays) if array.size]
    for size in _SIZES:
        members = [array for array in words if array.itemsize == size]
        parts = [array.reshape(-1).view(f"u{size}") for array in members]
        rotated = [_is_rotated(array.dtype) for array in members]
        if len(parts) == 1:
            _decode_words(reader, parts[0], rotated[0])
        elif parts:
            whole = np.empty(sum(map(len, parts)), dtype=f"u{size}")
            _decode_words(reader, whole, all(rotated))
            end = 0
            for part, turn in zip(parts, rotated, strict=True):
                piece, end = whole[end : end + len(part)], end + len(part)
                part[:] = (piece >> 1) | (piece << (8 * size - 1)) if turn and not all(rotated) else piece
    reader.end()
    for array in words:
        if not is_valid(array):
            name, largest = array.dtype.name, array.view(np.uint8).max()
            raise FormatError(_WHERE, f"a byte of {name} must be at most {_LARGEST_WORD[name]}, got {largest}")
    return list(arrays)


def is_fast_pack(section: bytes | memoryview, tensors: Sequence[tuple[int, np.dtype[np.generic]]]) -> bool:
    """Whether a pack has a fast plane.

    Args:
        section: A section that `decode_pack` accepts.
        tensors: The number of elements, and the dtype, of each tensor.
    """
    reader = ByteReader(section, _WHERE)
    words = [(count * (1 + (kind == np.complex128)), min(kind.itemsize, _SIZES[-1])) for count, kind in tensors]
    for size in _SIZES:
        count = sum(count for count, own in words if own == size)
        for _ in range(size if count else 0):
            length = reader.varint()
            if length > count:
                return True
            reader.view(length)
    return False


def _decode_words(reader: ByteReader, words: NDArray[np.unsignedinteger], rotated: bool) -> None:
    """Decode the words of one size, at least one, into memory."""
    planes: list[list[memoryview]] = []
    for _ in range(words.itemsize):
        planes.append(_decode_plane(reader, len(words), planes[-1] if planes else []))

    def merge(blocks: tuple[memoryview, ...], number: int) -> None:
        start = number * fast_planes.BLOCK
        fast_planes.merge(blocks, rotated, words[start : start + fast_planes.BLOCK], _WHERE)

    for _ in thread_map(lambda job: merge(job[1], job[0]), enumerate(zip(*planes, strict=True))):
        pass


def _is_noise(plane: NDArray[np.uint8]) -> bool:
    """Whether bytes are nearly uniform, such as the low bits of a mantissa, so that encoding them would save nothing."""
    counts = np.bincount(plane, minlength=256)
    return 256 * int(counts @ counts) <= len(plane) ** 2 + 512 * len(plane)


def _is_rotated(kind: np.dtype[np.generic]) -> bool:
    return kind.kind in _FLOAT_KINDS


def _to_words(arrays: Sequence[NDArray[np.generic]], size: int) -> _Words:
    """The elements of all arrays, which have `size` bytes, concatenated."""
    native = [np.require(array, array.dtype.newbyteorder("="), ["C", "A"]) for array in arrays]
    parts: list[NDArray[np.unsignedinteger]] = [array.reshape(-1).view(f"u{size}") for array in native]
    rotated = [_is_rotated(array.dtype) for array in arrays]
    if any(rotated) and not all(rotated):
        pairs = zip(parts, rotated, strict=True)
        parts = [np.asarray((part << 1) | (part >> (8 * size - 1)), dtype=part.dtype) if turn else part for part, turn in pairs]
    return _Words(parts[0] if len(parts) == 1 else np.concatenate(parts), all(rotated))


def _decode_plane(reader: ByteReader, count: int, above: Sequence[memoryview]) -> list[memoryview]:
    """A plane as blocks; `above` is the one before, if there is one."""
    length = reader.varint(limit=count + (count >= fast_planes.FEWEST))
    if length > count:
        return fast_planes.read_plane(reader, count)
    if length == count:
        return fast_planes.blocks_of(reader.view(length))
    plane, upper = np.empty(count, dtype=np.uint8), np.empty(count if above else 0, dtype=np.uint8)
    for number, block in enumerate(above):
        start = number * fast_planes.BLOCK
        fast_planes.merge([block], False, upper[start : start + fast_planes.BLOCK], _WHERE)
    if not _native.decode_plane(reader.view(length), upper.data, plane.data):
        raise FormatError(_WHERE, f"the data of a plane do not end with its {count:,} values")
    return fast_planes.blocks_of(plane.data)
