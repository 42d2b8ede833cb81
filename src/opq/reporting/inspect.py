"""What is in a file, and what every byte of it is spent on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from opq.batch_norm import prefixes
from opq.codec.auxiliary import largest_error
from opq.codec.byte_planes import estimate_pack
from opq.codec.file_reader import OpqFile
from opq.codec.header import Entry, repeated_weights
from opq.codec.weight_section import table_bytes
from opq.quantization.codebook import LevelTable
from opq.text_table import format_table
from opq.thread_map import thread_map

KINDS = ("codes", "levels", "batch-norm", "biases", "other auxiliary", "header", "checksums")
"""What bytes are spent on."""

_CHECKSUM = 4


@dataclass(frozen=True)
class TensorReport:
    """One tensor of a file.

    kind      "weight" or "auxiliary"
    storage   "codes" or "levels"; "exact", "half", "linear8" or "relative8"
    sparsity  fraction of zeros, 0..1; None for auxiliary tensors, as are step, levels and bits
    step      quantization step in weight units; None for a weight with levels
    levels    number of levels, zero not counted; None for a weight with a step
    bits      nominal width of a kept code in whole bits, mean over kept weights; 0 where none is kept
    absolute_error, relative_error  what storing an auxiliary tensor so errs by at most, for each value: absolutely, in the
              tensor's own units, and relative to it; None for weights, 0 where nothing is lost
    spent_on  "codes" (levels are counted apart), "batch-norm", "biases" or "other auxiliary"
    bytes     bytes of the file spent on it. What a pack of auxiliary tensors takes is split as the entropy of their bytes has
              it; a section of tied weights is counted for the first of them
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    storage: str
    sparsity: float | None
    step: float | None
    levels: int | None
    bits: float | None
    absolute_error: float | None
    relative_error: float | None
    spent_on: str
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """A file in numbers.

    dense_bytes      bytes of all tensors as their dtypes store them; here and below a weight that stands under several names,
                     as modules share it, counts once
    file_ratio       dense_bytes over file_bytes
    nominal_ratio    the paper's accounting, 32 / (density * bits) over the weights alone; None where no weight is kept
    bits_per_weight  8 * file_bytes over the number of weights; None where there is none
    sparsity         fraction of zeros over all weights, 0..1
    header_bytes     bytes of prefix and header, checksums included; the tensors' bytes make up the rest
    ledger           {kind: bytes}: all bytes of the file by what they are spent on
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
    ledger: dict[str, int]
    metadata: dict[str, str]
    tensors: list[TensorReport]

    def to_dict(self) -> dict[str, Any]:
        """The inspection as plain objects, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """A table with a row a tensor, one with a row a kind of bytes, and a closing line of totals."""
        rows = [
            (
                tensor.name,
                "x".join(map(str, tensor.shape)) or "scalar",
                tensor.dtype,
                tensor.storage,
                "" if tensor.sparsity is None else f"{100.0 * tensor.sparsity:.2f}%",
                _codebook(tensor),
                "" if tensor.bits is None else f"{tensor.bits:.2f}",
                _error(tensor),
                f"{tensor.bytes:,}",
            )
            for tensor in self.tensors
        ]
        rows.append(("(header)", "", "", "", "", "", "", "", f"{self.header_bytes:,}"))
        columns = ("tensor", "shape", "dtype", "stored", "zeros", "step", "bits", "error", "bytes")
        spent = [(kind, f"{size:,}", f"{100.0 * size / self.file_bytes:.2f}%") for kind, size in self.ledger.items()]
        ledger = format_table(("spent on", "bytes", "share"), spent)
        return f"{format_table(columns, rows)}\n\n{ledger}\n\n{self.summary()}"

    def summary(self) -> str:
        """The totals in one line."""
        parts = [f"{self.file_bytes:,} bytes of {self.dense_bytes:,} dense", f"file ratio {self.file_ratio:.2f}"]
        if self.nominal_ratio is not None:
            parts.append(f"nominal ratio {self.nominal_ratio:.2f}")
        if self.bits_per_weight is not None and self.sparsity is not None:
            parts += [f"{self.bits_per_weight:.3f} bits a weight", f"{100.0 * self.sparsity:.2f}% zeros"]
        return ", ".join(parts)


def _codebook(tensor: TensorReport) -> str:
    if tensor.levels is not None:
        return f"{tensor.levels:,} levels"
    return "" if tensor.step is None else f"{tensor.step:.4g}"


def _error(tensor: TensorReport) -> str:
    if tensor.relative_error:
        return f"{100.0 * tensor.relative_error:.2g}%"
    return f"{tensor.absolute_error:.2g}" if tensor.absolute_error else ""


def inspect(source: str | os.PathLike[str] | bytes) -> Inspection:
    """Read a .opq file, given by path or as bytes, and say what is in it; every tensor is decoded on the way.

    Raises FormatError when the file is not valid, SourceError when the path cannot be read.
    """
    with OpqFile(source) as file:
        spent = dict(_bytes_by_tensor(file))
        tables = sum(
            table_bytes(file.section(section))
            for section in {entry.section for entry in file.entries if entry.storage == "levels"}
        )
        norms = set(prefixes(file))
        tensors, weights, kept, code_bits = [], 0, 0, 0.0
        repeats = repeated_weights(file.entries)
        dense_bytes = sum(entry.dense_bytes for entry in file.entries if entry.name not in repeats)
        for entry, found in zip(file.entries, thread_map(lambda entry: _describe(file, entry), file.entries), strict=True):
            sparsity = bits = None
            levels = None
            if found is not None:
                stays, width, levels = found
                if entry.name not in repeats:
                    weights, kept, code_bits = weights + entry.count, kept + stays, code_bits + width
                sparsity, bits = 1.0 - stays / entry.count, width / max(stays, 1)
            absolute, relative = (None, None) if entry.is_weight else largest_error(entry)
            tensors.append(
                TensorReport(
                    name=entry.name,
                    shape=entry.shape,
                    dtype=entry.dtype,
                    kind="weight" if entry.is_weight else "auxiliary",
                    storage=entry.storage,
                    sparsity=sparsity,
                    step=entry.step,
                    levels=levels,
                    bits=bits,
                    absolute_error=absolute,
                    relative_error=relative,
                    spent_on=_spent_on(entry, norms),
                    bytes=spent[entry.name],
                )
            )
        sections = len({entry.section for entry in file.entries})
        return Inspection(
            file_bytes=file.file_bytes,
            dense_bytes=dense_bytes,
            file_ratio=dense_bytes / file.file_bytes,
            nominal_ratio=32.0 * weights / code_bits if code_bits else None,
            bits_per_weight=8.0 * file.file_bytes / weights if weights else None,
            sparsity=1.0 - kept / weights if weights else None,
            format_version=file.format_version,
            weights=weights,
            header_bytes=file.header_bytes,
            ledger=_ledger(tensors, tables, file.header_bytes, _CHECKSUM * (1 + sections)),
            metadata=file.metadata,
            tensors=tensors,
        )


def _describe(file: OpqFile, entry: Entry) -> tuple[int, float, int | None] | None:
    """Of a weight how many are kept, their nominal bits, and the number of levels."""
    if not entry.is_weight:
        return None
    kept, bits, levels = 0, 0.0, None
    for piece in file.pieces(entry.name):
        kept, bits = kept + piece.num_kept, bits + piece.nominal_bits
        levels = len(piece.codebook.levels) if isinstance(piece.codebook, LevelTable) else None
    return kept, bits, levels


def _ledger(tensors: list[TensorReport], tables: int, header: int, checksums: int) -> dict[str, int]:
    ledger = dict.fromkeys(KINDS, 0)
    for tensor in tensors:
        ledger[tensor.spent_on] += tensor.bytes
    ledger["codes"] -= tables
    ledger["levels"] = tables
    ledger["header"], ledger["checksums"] = header - checksums, checksums
    return ledger


def _spent_on(entry: Entry, norms: set[str]) -> str:
    if entry.is_weight:
        return "codes"
    if entry.name[: len(entry.name) - len(_last(entry.name))] in norms:
        return "batch-norm"
    return "biases" if _last(entry.name) == "bias" else "other auxiliary"


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _bytes_by_tensor(file: OpqFile) -> Iterator[tuple[str, int]]:
    """Bytes of each tensor; they and the header add up to the file."""
    for section in {entry.section for entry in file.entries}:
        entries = file.members(section)
        size = file.section_bytes(section)
        if entries[0].is_weight:
            yield from zip([entry.name for entry in entries], [size, *[0] * (len(entries) - 1)], strict=True)
            continue
        shares = [_entropy(file, entry) for entry in entries]
        total, passed, given = sum(shares), 0.0, 0
        for entry, share in zip(entries, shares, strict=True):
            passed += share
            mine = (round(size * passed / total) if entry is not entries[-1] else size) - given
            yield entry.name, mine
            given += mine


def _entropy(file: OpqFile, entry: Entry) -> float:
    """About the bytes of a tensor in its pack; the estimate counts four more for each plane, which are the pack's."""
    stored = file.stored(entry.name)
    return max(estimate_pack([stored]) - 4 * stored.dtype.itemsize, 0) + (1 + entry.count) / 1024.0
