"""Verify a file: decode everything, encode it again, and compare the bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from opq.codec.byte_planes import encode_fast_pack, encode_pack, is_fast_pack
from opq.codec.code_stream import Geometry
from opq.codec.delta_base import Base
from opq.codec.delta_file import DeltaFile
from opq.codec.entry import Entry
from opq.codec.fast_section import is_fast
from opq.codec.file_reader import OpqFile
from opq.codec.file_start import DELTA_MAGIC, magic_of
from opq.codec.stored_section import Section
from opq.codec.weight_section import encode_weight, naming, split, with_step_of
from opq.errors import FormatError
from opq.progress import Progress, counted, show_progress
from opq.quantization.codebook import UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor

_OTHER_BYTES = "encoding it again gives other bytes, so no version of opq wrote it"


@dataclass(frozen=True)
class Verification:
    """The contents of a verified file.

    Args:
        weights: Number of weights.
        auxiliary: Number of auxiliary tensors.
        sections: Number of sections.
        file_bytes: Size of the file.
        base: Of a delta the SHA-256 of its base in hexadecimal; otherwise None.
        decoded: Whether the tensors were decoded. A delta without its base cannot be.
    """

    weights: int
    auxiliary: int
    sections: int
    file_bytes: int
    base: str | None = None
    decoded: bool = True


def verify(
    source: str | os.PathLike[str] | bytes, base: Base | None = None, *, progress: Progress | bool = False
) -> Verification:
    """Verify every byte of a file:

    * header and sections match their checksums, and every tensor can be decoded;
    * every weight is in its codebook: it is finite, and it is zero exactly where its code is zero;
    * encoding the tensors again gives the same sections, byte for byte, and the same header before deflation.

    Of a delta without its base only the checksums and the header can be verified.

    Args:
        source: A path, or the file's bytes.
        base: Of a delta, the tensors that it was made from.
        progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each step.

    Raises:
        FormatError: One of these does not hold; the message names the tensor.
        SourceError: The path cannot be read, or the base is not that of the delta.
    """
    is_delta = base is not None or magic_of(source) == DELTA_MAGIC
    with DeltaFile(source, base) if is_delta else OpqFile(source) as file, show_progress(progress) as report:
        decoded = not isinstance(file, DeltaFile) or file.has_base
        sections = 1 + max((entry.section for entry in file.entries), default=-1)
        # One at a time, so that memory holds only one weight or pack.
        for number in counted(range(sections), report, "verifying", sections):
            if decoded:
                _check_section(file, number)
            else:
                file.section(number)
        if not file.has_canonical_header():
            raise FormatError("header", _OTHER_BYTES)
        weights = sum(entry.is_weight for entry in file.entries)
        digest = file.base_digest.hex() if isinstance(file, DeltaFile) else None
        return Verification(weights, len(file) - weights, sections, file.file_bytes, digest, decoded)


def _check_section(file: OpqFile, number: int) -> None:
    entries = file.members(number)
    first = entries[0]
    if isinstance(file, DeltaFile):
        _check_same(first.name, file.encoded_again(number), file.stored_section(number))
    if first.storage == "difference":
        return
    if not first.is_weight:
        _check_same(first.name, _encode_again(file, entries), file.section(number))
        return
    by_geometry: dict[Geometry, list[Entry]] = {}
    for entry in entries:
        by_geometry.setdefault(Geometry.of(entry.shape), []).append(entry)
    for same in by_geometry.values():  # memory holds only one weight
        weight = cast(CompressedTensor, file[same[0].name])
        section = file.section(number)
        if is_fast(split(section, same[0])[1]):
            _check_same(same[0].name, encode_weight(weight, fast=True).fast, section)
        else:
            _check_same(same[0].name, encode_weight(weight).adaptive, section)
        _check_codebooks(same, weight)


def _encode_again(file: OpqFile, entries: Sequence[Entry]) -> bytes | None:
    """The pack of these tensors, encoded as it is in the file."""
    arrays = [file.stored(entry.name) for entry in entries]
    fast = is_fast_pack(file.section(entries[0].section), [(array.size, array.dtype) for array in arrays])
    return encode_fast_pack(arrays) if fast else encode_pack(arrays)


def _check_codebooks(entries: Sequence[Entry], weight: CompressedTensor) -> None:
    codes = weight.codes
    if isinstance(weight.codebook, UniformCodebook):  # rounding is monotone: what holds for the extreme codes holds for all
        magnitudes = np.abs(codes[codes != 0])
        codes = np.array([magnitudes.min(), magnitudes.max()] if len(magnitudes) else [], dtype=np.int32)
    for entry in {(entry.step, entry.dtype): entry for entry in reversed(entries)}.values():
        with naming(entry):
            if not with_step_of(weight.codebook, entry).represents(codes, entry.dtype):
                problem = f"with step {entry.step:g} a value overflows {entry.dtype}, or is zero although its code is not"
                raise FormatError("codes", problem)


def _check_same(name: str, encoded: Section | None, stored: bytes) -> None:
    if encoded != stored:
        raise FormatError(f"tensor {name!r}", _OTHER_BYTES)
