"""Proof that a file is whole: everything is read, decoded, and encoded again to the same bytes."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from opq.codec.byte_planes import encode_pack
from opq.codec.file_reader import OpqFile
from opq.codec.weight_section import encode_weight
from opq.errors import FormatError
from opq.quantization.compressed_tensor import CompressedTensor

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
    * every weight is in its codebook: finite, and zero where the code is zero and nowhere else;
    * encoding the tensors again gives the same sections, byte for byte, and the same header but for how it is deflated.

    Raises FormatError naming a tensor for which this fails, SourceError when the path cannot be read.
    """
    with OpqFile(source) as file:
        sections = 1 + max((entry.section for entry in file.entries), default=-1)
        for number in range(sections):  # one at a time: no more is held than a weight, or a pack of auxiliary tensors
            first, *others = file.members(number)
            if not first.is_weight:
                _check_same(
                    first.name, encode_pack([file.stored(entry.name) for entry in [first, *others]]), file.section(number)
                )
                continue
            proven: dict[tuple[int, ...], CompressedTensor] = {}
            for entry in [first, *others]:
                if entry.shape not in proven:
                    proven.clear()  # one at a time is held
                    proven[entry.shape] = cast(CompressedTensor, file[entry.name])
                    _check_same(entry.name, encode_weight(proven[entry.shape]), file.section(number))
                _check_codebook(entry.name, replace(proven[entry.shape], step=entry.step, dtype=entry.dtype))
        if not file.is_canonical():
            raise FormatError("header", "encoding it again gives other bytes: no known opq wrote it")
        weights = sum(entry.is_weight for entry in file.entries)
        return Verification(weights, len(file) - weights, sections, file.file_bytes)


def _check_codebook(name: str, tensor: CompressedTensor) -> None:
    if tensor.step is None:  # levels were checked when the table was read
        return
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
