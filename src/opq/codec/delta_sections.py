"""Sections of a delta: what a tensor adds to that of the base, and codes that differ from those nearest to the base's values.

docs/format.md, "Deltas", is the normative text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from opq.codec.code_section import decode_codes, is_trellis
from opq.codec.code_stream import Geometry
from opq.codec.difference_contexts import encode_best
from opq.codec.difference_layout import Grid
from opq.codec.difference_stream import Classes, decode_differences, encode_differences
from opq.codec.difference_words import add, keys_of, subtract, zero_bits
from opq.codec.entry import Entry, is_alone
from opq.codec.fast_section import FAST, TRELLIS, is_fast
from opq.codec.weight_section import encode_weight, naming, split
from opq.errors import FormatError
from opq.quantization.codebook import Codebook, LevelTable
from opq.quantization.compressed_tensor import CompressedTensor

_DIFFERENCE, _WAS_FAST = 64, 128
"""Bits of the first byte of a section of codes, beside those of a fast one: that it is a difference, from a fast section."""

_LARGEST_CODE = 2**24 - 1
_WHERE = "differences"


def encode_tensors(tensors: Sequence[NDArray[np.generic]], bases: Sequence[NDArray[np.generic]]) -> bytes:
    """Encode tensors given those of the base.

    Args:
        tensors: One tensor of at least ALONE elements, or several smaller ones; of dtypes in
            `opq.codec.difference_words.SUPPORTED`, none of them empty.
        bases: Their bases, of the same dtypes and shapes.

    Returns:
        The section's bytes.
    """
    pairs = list(zip(bases, tensors, strict=True))
    found = (zero_bits(base, new) for base, new in pairs)
    shift = min(_most_zero_bits(bases), *(bits for bits in found if bits is not None), 63)
    grid = grid_of(bases)
    differences = np.empty(len(grid.keys), dtype=np.int64)
    start = 0
    for base, new in pairs:
        subtract(base, new, shift, differences[start : start + base.size])
        start += base.size
    return bytes([shift]) + encode_best(differences, grid)


def decode_tensors(section: bytes, bases: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    """Inverse of `encode_tensors`.

    Args:
        section: The section's bytes, untrusted.
        bases: The tensors of the base.

    Raises:
        FormatError: The section does not hold exactly such tensors.
    """
    shift, differences, _ = _parse(section, bases)
    start, tensors = 0, []
    for base in bases:
        tensors.append(add(base, differences[start : start + base.size], shift))
        start += base.size
    return tensors


def encode_tensors_again(section: bytes, bases: Sequence[NDArray[np.generic]]) -> bytes:
    """The bytes of the differences that a valid section holds, in the same contexts, as opq encodes them."""
    shift, differences, classes = _parse(section, bases)
    return bytes([shift]) + encode_differences(differences, grid_of(bases), classes)


def _parse(section: bytes, bases: Sequence[NDArray[np.generic]]) -> tuple[int, NDArray[np.int64], Classes]:
    most = _most_zero_bits(bases)
    if not section or section[0] > most:
        raise FormatError(_WHERE, f"a section must begin with a number of low bits from 0 to {most}")
    return section[0], *decode_differences(memoryview(section)[1:], grid_of(bases))


def _most_zero_bits(bases: Sequence[NDArray[np.generic]]) -> int:
    return min(8 * base.dtype.itemsize - 1 for base in bases)


def grid_of(bases: Sequence[NDArray[np.generic]]) -> Grid:
    """The rows of a tensor of at least ALONE elements; or several smaller tensors, each of which is a row."""
    (first, *others) = bases
    if not others and is_alone(first.size):
        geometry = Geometry.of(first.shape)
        columns = geometry.inputs * geometry.positions
        return Grid([columns] * geometry.outputs, keys_of(first), columns)
    return Grid([base.size for base in bases], np.concatenate([keys_of(base) for base in bases]))


def is_code_difference(section: bytes, entry: Entry) -> bool:
    """Whether a section of codes, untrusted, is a difference."""
    return _is_difference(_codes_of(section, entry)[1])


def encode_codes(section: bytes, entry: Entry, base: NDArray[np.generic]) -> bytes | None:
    """Encode the codes of a section given the base's values.

    Args:
        section: The section, which is valid.
        entry: Its weight.
        base: The weight of the base, of the same shape, of any dtype a weight may have.

    Returns:
        A section; None if the codes have no step, or all are 0.
    """
    codebook, part = _codes_of(section, entry)
    if isinstance(codebook, LevelTable) or not len(part):
        return None
    trellis = is_trellis(part)
    codes = CompressedTensor(decode_codes(part, entry.shape), codebook, entry.dtype, trellis)
    expected = _expected(codebook, entry, base, trellis)
    differences = codes.indices.reshape(-1).astype(np.int64) - expected
    first = FAST | TRELLIS * trellis | _DIFFERENCE | _WAS_FAST * is_fast(part)
    return section[: len(section) - len(part)] + bytes([first]) + encode_best(differences, _grid(entry, expected))


def decode_codes_of(section: bytes, entry: Entry, base: NDArray[np.generic]) -> bytes:
    """The section of codes that `encode_codes` was given; `section` itself if it is no difference.

    Args:
        section: The section, untrusted.
        entry: Its first weight.
        base: The weight of the base, of the same shape.

    Raises:
        FormatError: It does not hold exactly such codes.
    """
    codebook, part = _codes_of(section, entry)
    if not _is_difference(part):
        return section
    with naming(entry):
        trellis, fast = bool(part[0] & TRELLIS), bool(part[0] & _WAS_FAST)
        if isinstance(codebook, LevelTable) or (trellis and Geometry.of(entry.shape).positions > 1):
            raise FormatError(_WHERE, "levels have no differences, and kernels follow no trellis")
        expected = _expected(codebook, entry, base, trellis)
        differences, _ = decode_differences(part[1:], _grid(entry, expected))
        numbers = expected + np.clip(differences, -(2**30), 2**30)
        if int(np.abs(numbers).max()) > _LARGEST_CODE:
            raise FormatError(_WHERE, f"the magnitude of a code must be at most {_LARGEST_CODE:,}")
        codes = numbers.astype(np.int32).reshape(entry.shape)
        if trellis:
            codes = _follow(codes)
        encoded = encode_weight(CompressedTensor(codes, codebook, entry.dtype, trellis), fast=fast)
        whole = encoded.fast if fast else encoded.adaptive
        if whole is None:
            raise FormatError(_WHERE, "these codes have no fast section")
        return bytes(whole)


def encode_codes_again(section: bytes, entry: Entry, base: NDArray[np.generic]) -> bytes:
    """The bytes of the code differences that a valid section holds, in the same contexts, as opq encodes them."""
    codebook, part = _codes_of(section, entry)
    grid = _grid(entry, _expected(codebook, entry, base, bool(part[0] & TRELLIS)))
    differences, classes = decode_differences(part[1:], grid)
    return section[: len(section) - len(part) + 1] + encode_differences(differences, grid, classes)


def _codes_of(section: bytes, entry: Entry) -> tuple[Codebook, bytes | memoryview]:
    with naming(entry):
        return split(section, entry)


def _is_difference(codes: bytes | memoryview) -> bool:
    return is_fast(codes) and bool(codes[0] & _DIFFERENCE)


def _expected(codebook: Codebook, entry: Entry, base: NDArray[np.generic], trellis: bool) -> NDArray[np.int64]:
    """What codes, or with a trellis the numbers k, are expected to be: those of the multiples nearest to the base's values."""
    steps = codebook.values(np.ones(entry.shape, dtype=np.int32), "float32").astype(np.float64).reshape(-1)
    with np.errstate(all="ignore"):
        nearest = np.rint(base.astype(np.float64).reshape(-1) / steps)
    nearest[~np.isfinite(nearest)] = 0.0
    codes = np.clip(nearest, -_LARGEST_CODE, _LARGEST_CODE).astype(np.int64)
    return np.sign(codes) * ((np.abs(codes) + 1) >> 1) if trellis else codes


def _grid(entry: Entry, expected: NDArray[np.int64]) -> Grid:
    geometry = Geometry.of(entry.shape)
    keys = np.minimum(np.abs(expected), 255).astype(np.uint8)
    columns = geometry.inputs * geometry.positions
    return Grid([columns] * geometry.outputs, keys, columns)


def _follow(numbers: NDArray[np.int32]) -> NDArray[np.int32]:
    """The codes of the numbers k of a trellis, row by row."""
    geometry = Geometry.of(numbers.shape)
    matrix = numbers.reshape(geometry.outputs, -1)
    codes, states = np.empty_like(matrix), np.zeros(len(matrix), dtype=np.int32)
    for column in range(matrix.shape[1]):
        k = matrix[:, column]
        codes[:, column] = 2 * k - np.sign(k) * (states & 1)
        states = (states << 1 & 6) | ((k ^ states >> 1 ^ states >> 2) & 1)
    if int(np.abs(codes).max()) > _LARGEST_CODE:
        raise FormatError(_WHERE, f"the magnitude of a code must be at most {_LARGEST_CODE:,}")
    return codes.reshape(numbers.shape)
