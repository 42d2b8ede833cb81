"""What a file holds, tensor by tensor, and what its bytes are used for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from opq.batch_norm import prefixes
from opq.codec.auxiliary import largest_error
from opq.codec.byte_planes import estimate_pack
from opq.codec.code_stream import Geometry
from opq.codec.entry import Entry, dense_bytes, repeated_weights
from opq.codec.file_reader import OpqFile
from opq.codec.weight_section import naming, split
from opq.quantization.codebook import Codebook, LevelTable, ScaledCodebook
from opq.text_table import file_summary, format_table, html_text, step_text
from opq.thread_map import thread_map

KINDS = ("codes", "levels", "scales", "batch-norm", "biases", "other auxiliary", "header", "checksums")
"""Kinds of bytes, in the order of `Inspection.bytes_by_kind`."""

_CHECKSUM = 4

_Codebooks = dict[int, tuple[Codebook, int]]
"""{number of a section with scales or levels: its codebook, and the bytes of that}"""


@dataclass(frozen=True)
class TensorReport:
    """One tensor of a file.

    Args:
        name: Its name.
        shape: Its shape.
        dtype: Its dtype, as the checkpoint had it.
        kind: "weight" or "auxiliary".
        storage: How it is stored. Weights: "codes" (a step), "scaled" (a step, and scales of rows or columns) or "levels" (a
            table of values). Auxiliary tensors: "exact", "float16", "linear8" or "relative8".
        sparsity: Fraction of zeros, 0..1. None for auxiliary tensors, as are step, levels and bits.
        step: Quantization step in weight units, where scales are 0. None for a weight with a table of levels.
        scaled_axes: Which of "rows" and "columns" have scales.
        trellis: Whether the codes follow a trellis (docs/format.md).
        levels: Number of levels without zero. None for a weight with a step.
        bits: Nominal bits per kept code, the mean over kept weights. 0 if none is kept.
        absolute_error: Largest absolute error per value of an auxiliary tensor, in its own units. 0 if it is exact; None for
            weights.
        relative_error: Largest relative error per value, likewise. The error of a value is at most the larger of the two.
        byte_kind: The kind in `Inspection.bytes_by_kind` of its bytes. Tables of levels count as "levels", scales as "scales".
        bytes: Bytes of the file that the tensor takes. Auxiliary tensors share a section, whose bytes are divided in proportion
            to their estimated entropy. Weights that share a section are counted at the first of them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    storage: str
    sparsity: float | None
    step: float | None
    scaled_axes: tuple[str, ...]
    trellis: bool
    levels: int | None
    bits: float | None
    absolute_error: float | None
    relative_error: float | None
    byte_kind: str
    bytes: int

    def __repr__(self) -> str:
        """Name, shape, storage and bytes."""
        return f"<TensorReport {self.name[:80]!r}: {_shape(self.shape)} {self.dtype}, {self.storage}, {self.bytes:,} bytes>"


@dataclass(frozen=True)
class Inspection:
    """Sizes and contents of a file. Weights of equal values, as if modules share them, count once in every total.

    Args:
        file_bytes: Size of the file.
        dense_bytes: Bytes of all tensors in their dtypes.
        file_ratio: dense_bytes over file_bytes.
        nominal_ratio: Compression ratio of the weights as the OPQ paper counts it: 32 / (density * bits per kept code). None if
            no weight is kept.
        bits_per_weight: 8 * file_bytes over the number of weights. None if there are none.
        sparsity: Fraction of zeros over all weights, 0..1. None if there are none.
        format_version: Version of the file format.
        weights: Number of weights.
        header_bytes: Bytes of the prefix, the header and all checksums. They and the bytes of the tensors add up to the file.
        bytes_by_kind: {kind: bytes}: what all bytes of the file are used for.
        metadata: {text: text} of the checkpoint.
        tensors: One report per tensor, in order of their names.
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
    bytes_by_kind: dict[str, int]
    metadata: dict[str, str]
    tensors: list[TensorReport]

    def to_dict(self) -> dict[str, Any]:
        """The inspection as plain objects, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """A table with a row per tensor, a table with a row per kind of bytes, and a line of totals."""
        rows = [
            (
                tensor.name,
                _shape(tensor.shape),
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
        kinds = [(kind, f"{size:,}", f"{100.0 * size / self.file_bytes:.2f}%") for kind, size in self.bytes_by_kind.items()]
        by_kind = format_table(("used for", "bytes", "share"), kinds)
        return f"{format_table(columns, rows)}\n\n{by_kind}\n\n{self.summary()}"

    def __repr__(self) -> str:
        """The totals, in brackets."""
        return f"<Inspection: {len(self.tensors):,} tensors, {self.summary()}>"

    def _repr_html_(self) -> str:
        return html_text(str(self))

    def summary(self) -> str:
        """The totals in one line.

        For example: "2.34 MB, 20.0x smaller than 46.8 MB (1.60 bits per weight, 55% zeros), nominal ratio 27.1".
        """
        line = file_summary(self.file_bytes, self.dense_bytes, self.bits_per_weight, self.sparsity)
        return line if self.nominal_ratio is None else f"{line}, nominal ratio {self.nominal_ratio:.1f}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _codebook(tensor: TensorReport) -> str:
    if tensor.levels is not None:
        return f"{tensor.levels:,} levels"
    return "" if tensor.step is None else step_text(tensor.step, tensor.scaled_axes) + (", trellis" if tensor.trellis else "")


def _error(tensor: TensorReport) -> str:
    if tensor.relative_error:
        return f"{100.0 * tensor.relative_error:.2g}%"
    return f"{tensor.absolute_error:.2g}" if tensor.absolute_error else ""


def inspect(source: str | os.PathLike[str] | bytes) -> Inspection:
    """Read a .opq file and report its tensors and sizes. Every tensor is decoded.

    Args:
        source: The file, by path or as bytes.

    Returns:
        The report, which prints as tables.

    Raises:
        SourceError: The file cannot be read.
        FormatError: It is not a valid file.
    """
    with OpqFile(source) as file:
        sizes = dict(_bytes_by_tensor(file))
        codebooks = _codebooks(file)
        norms = set(prefixes(file))
        tensors, weights, kept, code_bits, counts = [], 0, 0, 0.0, list(_count_all(file))
        nonzero = {entry.name: stays for entry, (stays, _, _) in zip(file.entries, counts, strict=True) if entry.is_weight}
        repeats = repeated_weights(file.entries, nonzero)
        dense = dense_bytes(file.entries, repeats)
        for entry, (stays, width, trellis) in zip(file.entries, counts, strict=True):
            if entry.is_weight and entry.name not in repeats:
                weights, kept, code_bits = weights + entry.count, kept + stays, code_bits + width
            codebook, _ = codebooks.get(entry.section, (None, 0))
            absolute, relative = (None, None) if entry.is_weight else largest_error(entry)
            tensors.append(
                TensorReport(
                    name=entry.name,
                    shape=entry.shape,
                    dtype=entry.dtype,
                    kind="weight" if entry.is_weight else "auxiliary",
                    storage=entry.storage,
                    sparsity=1.0 - stays / entry.count if entry.is_weight else None,
                    step=entry.step,
                    scaled_axes=codebook.axes if isinstance(codebook, ScaledCodebook) else (),
                    trellis=trellis,
                    levels=len(codebook.levels) if isinstance(codebook, LevelTable) else None,
                    bits=width / max(stays, 1) if entry.is_weight else None,
                    absolute_error=absolute,
                    relative_error=relative,
                    byte_kind=_byte_kind(entry, norms),
                    bytes=sizes[entry.name],
                )
            )
        sections = len({entry.section for entry in file.entries})
        return Inspection(
            file_bytes=file.file_bytes,
            dense_bytes=dense,
            file_ratio=dense / file.file_bytes,
            nominal_ratio=32.0 * weights / code_bits if code_bits else None,
            bits_per_weight=8.0 * file.file_bytes / weights if weights else None,
            sparsity=1.0 - kept / weights if weights else None,
            format_version=file.format_version,
            weights=weights,
            header_bytes=file.header_bytes,
            bytes_by_kind=_bytes_by_kind(tensors, codebooks, file.header_bytes, _CHECKSUM * (1 + sections)),
            metadata=file.metadata,
            tensors=tensors,
        )


def _count_all(file: OpqFile) -> Iterator[tuple[int, float, bool]]:
    """As `_count`, for each tensor in order; once for weights that differ only in values."""
    keys = [(entry.section, Geometry.of(entry.shape), entry.shape[:1]) if entry.is_weight else None for entry in file.entries]
    first: dict[object, Entry] = {}
    for key, entry in zip(keys, file.entries, strict=True):
        first.setdefault(key, entry)
    found = dict(zip(first, thread_map(lambda entry: _count(file, entry), first.values()), strict=True))
    return (found[key] for key in keys)


def _count(file: OpqFile, entry: Entry) -> tuple[int, float, bool]:
    """Number of kept weights, their nominal bits, and whether codes follow a trellis."""
    kept, bits, trellis = 0, 0.0, False
    for piece in file.pieces(entry.name) if entry.is_weight else ():
        kept, bits, trellis = kept + piece.num_kept, bits + piece.nominal_bits, piece.trellis
    return kept, bits, trellis


def _codebooks(file: OpqFile) -> _Codebooks:
    found = {}
    for number, entry in {entry.section: entry for entry in file.entries if entry.storage in ("scaled", "levels")}.items():
        section = file.section(number)
        with naming(entry):
            codebook, codes = split(section, entry)
        found[number] = codebook, len(section) - len(codes)
    return found


def _bytes_by_kind(tensors: list[TensorReport], codebooks: _Codebooks, header: int, checksums: int) -> dict[str, int]:
    sizes = dict.fromkeys(KINDS, 0)
    for tensor in tensors:
        sizes[tensor.byte_kind] += tensor.bytes
    for codebook, size in codebooks.values():
        sizes["codes"] -= size
        sizes["levels" if isinstance(codebook, LevelTable) else "scales"] += size
    sizes["header"], sizes["checksums"] = header - checksums, checksums
    return sizes


def _byte_kind(entry: Entry, norms: set[str]) -> str:
    if entry.is_weight:
        return "codes"
    prefix, dot, last = entry.name.rpartition(".")
    if prefix + dot in norms:
        return "batch-norm"
    return "biases" if last == "bias" else "other auxiliary"


def _bytes_by_tensor(file: OpqFile) -> Iterator[tuple[str, int]]:
    """(name, bytes) of each tensor; they and the header add up to the file."""
    for section in {entry.section for entry in file.entries}:
        entries = file.members(section)
        size = file.section_bytes(section)
        if entries[0].is_weight:
            yield from zip([entry.name for entry in entries], [size, *[0] * (len(entries) - 1)], strict=True)
            continue
        shares = [_entropy(file, entry) for entry in entries]
        total, summed, assigned = sum(shares), 0.0, 0
        for entry, share in zip(entries, shares, strict=True):
            summed += share
            share = (round(size * summed / total) if entry is not entries[-1] else size) - assigned
            yield entry.name, share
            assigned += share


def _entropy(file: OpqFile, entry: Entry) -> float:
    """Estimated bytes of a tensor in its pack, without the four bytes per plane that belong to the whole pack."""
    stored = file.stored(entry.name)
    if stored.size < 2:  # a shortcut, because a file may have a hundred thousand such tensors
        return (1 + entry.count) / 1024.0
    return max(estimate_pack([stored]) - 4 * stored.dtype.itemsize, 0) + (1 + entry.count) / 1024.0
