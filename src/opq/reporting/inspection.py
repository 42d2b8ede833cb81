"""What is in a file, and what every byte of it is spent on."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from opq.codec.header import Entry
from opq.codec.reading import OpqFile
from opq.tables import render


@dataclass(frozen=True)
class TensorReport:
    """One tensor of a file.

    kind      "weight" or "auxiliary"
    storage   "codes", "exact" or "half"
    sparsity  fraction of zeros, 0..1; None for auxiliary tensors, as are step and bits
    step      quantization step in weight units
    bits      nominal width of a kept code, mean over kept weights; 0 where none is kept
    bytes     bytes of the file spent on it; a section that tensors share is split by their dense bytes, and counted for the
              first of tied weights
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    storage: str
    sparsity: float | None
    step: float | None
    bits: float | None
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """A file in numbers.

    dense_bytes      bytes of all tensors as their dtypes store them
    file_ratio       dense_bytes over file_bytes
    nominal_ratio    the paper's accounting, 32 / (density * bits) over the weights alone; None where no weight is kept
    bits_per_weight  8 * file_bytes over the number of weights; None where there is none
    sparsity         fraction of zeros over all weights, 0..1
    header_bytes     bytes of prefix and header; the tensors' bytes make up the rest
    """

    file_bytes: int
    dense_bytes: int
    file_ratio: float
    nominal_ratio: float | None
    bits_per_weight: float | None
    sparsity: float | None
    format_version: int
    weights: int
    header_bytes: int
    metadata: dict[str, str]
    tensors: list[TensorReport]

    def to_dict(self) -> dict[str, Any]:
        """The inspection as plain objects, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """A table with a row a tensor and closing lines of totals."""
        rows = [
            (
                tensor.name,
                "x".join(map(str, tensor.shape)) or "scalar",
                tensor.dtype,
                tensor.storage,
                "" if tensor.sparsity is None else f"{100.0 * tensor.sparsity:.2f}%",
                "" if tensor.step is None else f"{tensor.step:.4g}",
                "" if tensor.bits is None else f"{tensor.bits:.2f}",
                f"{tensor.bytes:,}",
            )
            for tensor in self.tensors
        ]
        rows.append(("(header)", "", "", "", "", "", "", f"{self.header_bytes:,}"))
        columns = ("tensor", "shape", "dtype", "stored", "zeros", "step", "bits", "bytes")
        return f"{render(columns, rows)}\n{self.summary()}"

    def summary(self) -> str:
        """The totals in one line."""
        parts = [f"{self.file_bytes:,} bytes of {self.dense_bytes:,} dense", f"file ratio {self.file_ratio:.2f}"]
        if self.nominal_ratio is not None:
            parts.append(f"nominal ratio {self.nominal_ratio:.2f}")
        if self.bits_per_weight is not None and self.sparsity is not None:
            parts += [f"{self.bits_per_weight:.3f} bits a weight", f"{100.0 * self.sparsity:.2f}% zeros"]
        return ", ".join(parts)


def inspect(source: str | os.PathLike[str] | bytes) -> Inspection:
    """Read a .opq file, given by path or as bytes, and say what is in it; every weight is decoded on the way.

    Raises FormatError when the file is not valid, SourceError when the path cannot be read.
    """
    with OpqFile(source) as file:
        spent = _bytes_by_tensor(file)
        tensors = []
        weights = kept = 0
        code_bits = 0.0
        for entry in file.entries:
            sparsity = bits = None
            if entry.step is not None:
                stays, width = 0, 0.0
                for piece in file.pieces(entry.name):
                    stays, width = stays + piece.kept, width + piece.code_bits
                weights, kept, code_bits = weights + entry.count, kept + stays, code_bits + width
                sparsity, bits = 1.0 - stays / entry.count, width / max(stays, 1)
            tensors.append(_report(entry, sparsity, bits, spent[entry.name]))
        return Inspection(
            file_bytes=file.file_bytes,
            dense_bytes=file.dense_bytes,
            file_ratio=file.dense_bytes / file.file_bytes,
            nominal_ratio=32.0 * weights / code_bits if code_bits else None,
            bits_per_weight=8.0 * file.file_bytes / weights if weights else None,
            sparsity=1.0 - kept / weights if weights else None,
            format_version=file.format_version,
            weights=weights,
            header_bytes=file.header_bytes,
            metadata=file.metadata,
            tensors=tensors,
        )


def _report(entry: Entry, sparsity: float | None, bits: float | None, spent: int) -> TensorReport:
    kind = "auxiliary" if entry.step is None else "weight"
    return TensorReport(entry.name, entry.shape, entry.dtype, kind, entry.storage, sparsity, entry.step, bits, spent)


def _bytes_by_tensor(file: OpqFile) -> dict[str, int]:
    """Bytes of each tensor; they and the header add up to the file."""
    spent = {}
    for section in {entry.section for entry in file.entries}:
        entries = file.members(section)
        size = file.section_bytes(section)
        total = sum(entry.dense_bytes for entry in entries)
        passed = given = 0
        for entry in entries:
            if entry.step is not None:
                spent[entry.name] = size - given
            else:
                passed += entry.dense_bytes
                spent[entry.name] = (size * passed // total if total else size) - given
            given += spent[entry.name]
    return spent
