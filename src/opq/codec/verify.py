"""Verify a file: decode everything, encode it again, and compare the bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from opq.codec.byte_planes import encode_fast_pack, encode_pack, is_fast_pack
from opq.codec.code_stream import Geometry
from opq.codec.entry import Entry
from opq.codec.fast_section import is_fast
from opq.codec.file_reader import OpqFile
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
    """

    weights: int
    auxiliary: int
    sections: int
    file_bytes: int


def verify(source: str | os.PathLike[str] | bytes, *, progress: Progress | bool = False) -> Verification:
    """Verify every byte of a file:

    * header and sections match their checksums, and every tensor can be decoded;
    * every weight is in its codebook: it is finite, and it is zero exactly where its code is zero;
    * encoding the tensors again gives the same sections, byte for byte, and the same header before deflation.

    Args:
        source: A path, or the file's bytes.
        progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each step.

    Raises:
        FormatError: One of these does not hold; the message names the tensor.
        SourceError: The path cannot be read.
    """
    with OpqFile(source) as file, show_progress(progress) as report:
        sections = 1 + max((entry.section for entry in file.entries), default=-1)
        # One at a time, so that memory holds only one weight or pack.
        for number in counted(range(sections), report, "verifying", sections):
            first, *others = file.members(number)
            if not first.is_weight:
                _check_same(first.name, _encode_again(file, [first, *others]), file.section(number))
                continue
            by_geometry: dict[Geometry, list[Entry]] = {}
            for entry in [first, *others]:
                by_geometry.setdefault(Geometry.of(entry.shape), []).append(entry)
            for entries in by_geometry.values():  # memory holds only one weight
                weight = cast(CompressedTensor, file[entries[0].name])
                section = file.section(number)
                if is_fast(split(section, entries[0])[1]):
                    _check_same(entries[0].name, encode_weight(weight, fast=True).fast, section)
                else:
                    _check_same(entries[0].name, encode_weight(weight).adaptive, section)
                _check_codebooks(entries, weight)
        if not file.has_canonical_header():
            raise FormatError("header", _OTHER_BYTES)
        weights = sum(entry.is_weight for entry in file.entries)
        return Verification(weights, len(file) - weights, sections, file.file_bytes)


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
