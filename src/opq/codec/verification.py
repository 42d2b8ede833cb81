"""Proof that a file is whole: everything is read, decoded, and encoded again to the same bytes."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from opq.codec.levels import encode_weight
from opq.codec.planes import encode_pack
from opq.codec.reading import OpqFile
from opq.errors import FormatError
from opq.quantization.compressed import CompressedTensor


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

    Raises FormatError naming the first tensor for which this fails, SourceError when the path cannot be read.
    """
    with OpqFile(source) as file:
        packs: dict[int, list[np.ndarray]] = {}
        for entry in file.entries:
            content = file[entry.name]
            if isinstance(content, CompressedTensor):
                _check_codebook(entry.name, content)
                _check_same(entry.name, encode_weight(content), file.section(entry.section))
            else:
                packs.setdefault(entry.section, []).append(file.stored(entry.name))
        for section, arrays in packs.items():
            _check_same(file.members(section)[0].name, encode_pack(arrays), file.section(section))
        if not file.is_canonical():
            raise FormatError("header", "encoding it again gives other bytes: no known opq wrote it")
        weights = sum(entry.is_weight for entry in file.entries)
        sections = 1 + max((entry.section for entry in file.entries), default=-1)
        return Verification(weights, len(file) - weights, sections, file.file_bytes)


def _check_codebook(name: str, tensor: CompressedTensor) -> None:
    if tensor.step is None:  # levels were checked when the table was read
        return
    values = tensor.values()
    again = np.rint(values.astype(np.float64) / tensor.step)
    # Wide codes of a narrow dtype may share a value; the sign and the zero never change.
    if not np.isfinite(values.astype(np.float64)).all() or (np.sign(again) != np.sign(tensor.codes)).any():
        raise FormatError(f"tensor {name!r}", f"its step {tensor.step:g} leads out of {tensor.dtype}")


def _check_same(name: str, encoded: bytes, stored: bytes) -> None:
    if encoded != stored:
        raise FormatError(f"tensor {name!r}", "encoding it again gives other bytes: no known opq wrote it")
