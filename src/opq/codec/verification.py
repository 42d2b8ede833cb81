"""Proof that a file is whole: everything is read, decoded, and encoded again to the same bytes."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from opq.codec.entropy import encode_codes
from opq.codec.planes import encode_pack
from opq.codec.reading import OpqFile
from opq.errors import FormatError
from opq.quantization.compressed import CompressedTensor

_BLOCK = 2**20


@dataclass(frozen=True)
class Verification:
    """What was proven of a file: how many weights and auxiliary tensors it holds, and its sections and bytes."""

    weights: int
    auxiliary: int
    sections: int
    file_bytes: int


def verify(source: str | os.PathLike[str] | bytes) -> Verification:
    """Read every byte of a file, given by path or as bytes, and prove that

    * header and sections match their checksums, and every tensor decodes;
    * every weight is in its codebook: step * code, exactly, and zero where the code is zero;
    * encoding the tensors again gives the same sections, byte for byte, and the same header but for how it is deflated.

    Raises FormatError naming a tensor for which this fails, SourceError when the path cannot be read.
    """
    with OpqFile(source) as file:
        sections = 1 + max((entry.section for entry in file.entries), default=-1)
        for number in range(sections):  # one at a time: no more is held than a weight, or a pack of auxiliary tensors
            first, *others = file.members(number)
            if first.step is None:
                _check_pack(file, number)
                continue
            content = cast(CompressedTensor, file[first.name])
            for entry in [first, *others]:
                _check_codebook(entry.name, replace(content, step=entry.step or 0.0, dtype=entry.dtype))
            _check_same(first.name, encode_codes(content.codes), file.section(number))
        if not file.is_canonical():
            raise FormatError("header", "encoding it again gives other bytes: no known opq wrote it")
        weights = sum(entry.storage == "codes" for entry in file.entries)
        return Verification(weights, len(file) - weights, sections, file.file_bytes)


def _check_pack(file: OpqFile, section: int) -> None:
    arrays = []
    for entry in file.members(section):
        array = file.array(entry.name)
        arrays.append(array.astype(np.float16) if entry.storage == "half" else array)
    _check_same(file.members(section)[0].name, encode_pack(arrays), file.section(section))


def _check_codebook(name: str, tensor: CompressedTensor) -> None:
    flat = tensor.codes.reshape(-1)
    for start in range(0, len(flat), _BLOCK):
        codes = flat[start : start + _BLOCK]
        values = replace(tensor, codes=codes).values().astype(np.float64)
        again = np.rint(values / tensor.step)
        # Wide codes of a narrow dtype may share a value; the sign and the zero never change.
        if not np.isfinite(values).all() or (np.sign(again) != np.sign(codes)).any():
            raise FormatError(f"tensor {name!r}", f"its step {tensor.step:g} leads out of {tensor.dtype}")


def _check_same(name: str, encoded: bytes, stored: bytes) -> None:
    if encoded != stored:
        raise FormatError(f"tensor {name!r}", "encoding it again gives other bytes: no known opq wrote it")
