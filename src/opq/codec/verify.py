"""Proof that a file is whole: everything is read, decoded, and encoded again to the same bytes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from opq.codec.byte_planes import encode_pack
from opq.codec.file_reader import OpqFile
from opq.codec.header import Entry
from opq.codec.weight_section import encode_weight
from opq.errors import FormatError
from opq.quantization.codebook import UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor


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
                    _check_same(entry.name, encode_weight(proven[entry.shape])[0], file.section(number))
                _check_codebook(entry, proven[entry.shape].codes)
        if not file.has_canonical_header():
            raise FormatError("header", "encoding it again gives other bytes: no known opq wrote it")
        weights = sum(entry.is_weight for entry in file.entries)
        return Verification(weights, len(file) - weights, sections, file.file_bytes)


def _check_codebook(entry: Entry, codes: NDArray[np.int32]) -> None:
    if entry.step is not None and not UniformCodebook(entry.step).represents(
        codes, entry.dtype
    ):  # tables are checked when read
        raise FormatError(f"tensor {entry.name!r}", f"its step {entry.step:g} leads out of {entry.dtype}")


def _check_same(name: str, encoded: bytes, stored: bytes) -> None:
    if encoded != stored:
        raise FormatError(f"tensor {name!r}", "encoding it again gives other bytes: no known opq wrote it")
