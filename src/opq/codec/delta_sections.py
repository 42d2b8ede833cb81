"""Sections of a delta: what a tensor adds to that of the base, and codes that differ from those nearest to the base's values.

docs/format.md, "Deltas", is the normative text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from opq.codec import _native
from opq.codec.code_section import decode_codes, is_trellis, run
from opq.codec.code_stream import Geometry
from opq.codec.difference_contexts import encode_best
from opq.codec.difference_layout import Grid
from opq.codec.difference_stream import Classes, decode_differences, encode_differences
from opq.codec.difference_words import add, keys_of, subtract, zero_bits
from opq.codec.entry import Entry, is_alone
from opq.codec.fast_section import FAST, TRELLIS, is_fast
from opq.codec.weight_section import encode_weight, naming, split
from opq.errors import FormatError
from opq.quantization.codebook import Codebook, LevelTable, ScaledCodebook, UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor

_DIFFERENCE, _WAS_FAST = 64, 128
"""Bits of the first byte of a section of codes, beside those of a fast one: that it is a difference, from a fast section."""

_LARGEST_CODE = 2**24 - 1
_PART = 2**16
"""Elements whose codes are expected at once, which fit the second cache."""

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
    shift, differences = _differences(tensors, bases)
    return bytes([shift]) + encode_best(differences, grid_of(bases))


def _differences(tensors: Sequence[NDArray[np.generic]], bases: Sequence[NDArray[np.generic]]) -> tuple[int, NDArray[np.int64]]:
    """The number of low bits that are 0, and the differences without them."""
    pairs = list(zip(bases, tensors, strict=True))
    found = (zero_bits(base, new) for base, new in pairs)
    shift = min([_most_zero_bits(bases), *(bits for bits in found if bits is not None)])
    differences = np.empty(sum(base.size for base in bases), dtype=np.int64)
    start = 0
    for base, new in pairs:
        subtract(base, new, shift, differences[start : start + base.size])
        start += base.size
    return shift, differences


def decode_tensors(section: bytes, bases: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    """Inverse of `encode_tensors`.

    Args:
        section: The section's bytes, untrusted.
        bases: The tensors of the base.

    Raises:
        FormatError: The section does not hold exactly such tensors.
    """
    return _decode(section, bases)[0]


def _decode(section: bytes, bases: Sequence[NDArray[np.generic]]) -> tuple[list[NDArray[np.generic]], Classes]:
    most = _most_zero_bits(bases)
    if not section or section[0] > most:
        raise FormatError(_WHERE, f"a section must begin with a number of low bits from 0 to {most}")
    differences, classes = decode_differences(memoryview(section)[1:], grid_of(bases))
    start, tensors = 0, []
    for base in bases:
        tensors.append(add(base, differences[start : start + base.size], section[0]))
        start += base.size
    return tensors, classes


def encode_tensors_again(section: bytes, bases: Sequence[NDArray[np.generic]]) -> bytes:
    """The bytes of the tensors that a section, untrusted, gives, in the same contexts, as opq encodes them.

    Raises:
        FormatError: The section does not hold exactly such tensors.
    """
    tensors, classes = _decode(section, bases)
    shift, differences = _differences(tensors, bases)
    return bytes([shift]) + encode_differences(differences, grid_of(bases), classes)


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
        A section; None if the codes have no step, all are 0, or one is very far from what is expected.
    """
    codebook, part = _codes_of(section, entry)
    if isinstance(codebook, LevelTable) or not len(part):
        return None
    trellis = is_trellis(part)
    codes = CompressedTensor(decode_codes(part, entry.shape), codebook, entry.dtype, trellis)
    differences = np.asarray(codes.indices - _expected(codebook, entry, base, trellis))
    if int(np.abs(differences).max()) > _LARGEST_CODE:
        return None
    first = FAST | TRELLIS * trellis | _DIFFERENCE | _WAS_FAST * is_fast(part)
    return section[: len(section) - len(part)] + bytes([first]) + _encode_plain(differences)


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
        codes = _decode_plain(part[1:], entry)
        codes += _expected(codebook, entry, base, trellis)
        _check_codes(codes)
        if trellis:
            _native.follow_trellis(codes.reshape(-1).data, math.prod(entry.shape) // Geometry.of(entry.shape).outputs)
            _check_codes(codes)
        encoded = encode_weight(CompressedTensor(codes, codebook, entry.dtype, trellis), fast=fast)
        whole = encoded.fast if fast else encoded.adaptive
        if whole is None:
            raise FormatError(_WHERE, "these codes have no fast section")
        return bytes(whole)


def encode_codes_again(section: bytes, entry: Entry) -> bytes:
    """The bytes of the code differences that a valid section holds, as opq encodes them."""
    _, part = _codes_of(section, entry)
    return section[: len(section) - len(part) + 1] + _encode_plain(_decode_plain(part[1:], entry))


def _encode_plain(codes: NDArray[np.int32]) -> bytes:
    return bytes(encode_weight(CompressedTensor(codes, UniformCodebook(1.0), "float32")).adaptive)


def _decode_plain(part: bytes | memoryview, entry: Entry) -> NDArray[np.int32]:
    """The codes of an adaptive section without a trellis, untrusted."""
    if len(part) and (is_fast(part) or is_trellis(part)):
        raise FormatError(_WHERE, "differences of codes must be an adaptive section without a trellis")
    with naming(entry):
        return decode_codes(part, entry.shape)


def _codes_of(section: bytes, entry: Entry) -> tuple[Codebook, bytes | memoryview]:
    with naming(entry):
        return split(section, entry)


def _is_difference(codes: bytes | memoryview) -> bool:
    return is_fast(codes) and bool(codes[0] & _DIFFERENCE)


def _expected(codebook: Codebook, entry: Entry, base: NDArray[np.generic], trellis: bool) -> NDArray[np.int32]:
    """What codes, or with a trellis the numbers k, are expected to be: those of the multiples nearest to the base's values."""
    values, shape = base.reshape(-1), entry.shape if isinstance(codebook, ScaledCodebook) else (1,)
    steps = np.broadcast_to(codebook.values(np.ones(shape, dtype=np.int32), "float32").reshape(-1), values.shape)
    expected = np.empty(values.shape, dtype=np.int32)

    def fill(start: int) -> None:
        part = slice(start, start + _PART)
        with np.errstate(all="ignore"):
            nearest = np.rint(values[part].astype(np.float64) / steps[part].astype(np.float64))
        nearest[~np.isfinite(nearest)] = 0.0
        codes = np.clip(nearest, -_LARGEST_CODE, _LARGEST_CODE).astype(np.int32)
        expected[part] = np.sign(codes) * ((np.abs(codes) + 1) >> 1) if trellis else codes

    run(partial(fill, start) for start in range(0, len(values), _PART))
    return expected.reshape(entry.shape)


def _check_codes(codes: NDArray[np.int32]) -> None:
    if int(codes.max()) > _LARGEST_CODE or int(codes.min()) < -_LARGEST_CODE:
        raise FormatError(_WHERE, f"the magnitude of a code must be at most {_LARGEST_CODE:,}")
