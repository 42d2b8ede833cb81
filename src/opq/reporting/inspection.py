"""What a file holds: a report for each tensor, and totals, which print as tables."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from opq.natural_order import natural_key
from opq.text_table import LINE, file_summary, format_table, html_text, step_text

KINDS = ("codes", "levels", "scales", "batch-norm", "biases", "other auxiliary", "header", "checksums")
"""Kinds of bytes, in the order of `Inspection.bytes_by_kind`."""

_COLUMNS = ("tensor", "shape", "dtype", "stored", "zeros", "step", "bits", "error", "bytes")
_SHORT_COLUMNS = ("weight", "shape", "zeros", "step", "bits", "bytes")


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

    def table(self, *, every: bool = False) -> str:
        """A row for each weight in natural order, what the bytes are used for, and a line of totals.

        Args:
            every: Whether auxiliary tensors have rows too, and more columns; otherwise no line is longer than 80 characters.
        """
        tensors = sorted(self.tensors, key=lambda tensor: natural_key(tensor.name))
        weights = [tensor for tensor in tensors if tensor.kind == "weight"]
        columns: tuple[str, ...]
        if every:
            columns = _COLUMNS
            rows = [_full_row(tensor) for tensor in tensors]
        else:
            columns = _SHORT_COLUMNS
            rows = [_short_row(tensor) for tensor in weights]
            if others := [tensor.bytes for tensor in tensors if tensor.kind != "weight"]:
                rows.append((f"({len(others):,} other tensors)", *[""] * (len(columns) - 2), f"{sum(others):,}"))
        rows.append(("(header)", *[""] * (len(columns) - 2), f"{self.header_bytes:,}"))
        kinds = [
            (kind, f"{size:,}", f"{100.0 * size / self.file_bytes:.2f}%") for kind, size in self.bytes_by_kind.items() if size
        ]
        by_kind = format_table(("used for", "bytes", "share"), kinds)
        return f"{format_table(columns, rows, width=None if every else LINE)}\n\n{by_kind}\n\n{self._totals()}"

    def __str__(self) -> str:
        """As `table`."""
        return self.table()

    def __repr__(self) -> str:
        """The totals, in brackets."""
        return f"<Inspection: {len(self.tensors):,} tensors, {self.summary()}>"

    def _repr_html_(self) -> str:
        return html_text(str(self))

    def summary(self) -> str:
        """The totals in one line.

        For example: "2.34 MB, 20.0x smaller than 46.8 MB (1.60 bits per weight, 55% zeros), nominal ratio 27.1".
        """
        return self._totals(", ")

    def _totals(self, between: str = "\n") -> str:
        line = file_summary(self.file_bytes, self.dense_bytes, self.bits_per_weight, self.sparsity)
        return line if self.nominal_ratio is None else f"{line}{between}nominal ratio {self.nominal_ratio:.1f}"


def _full_row(tensor: TensorReport) -> tuple[str, ...]:
    return (
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


def _short_row(tensor: TensorReport) -> tuple[str, ...]:
    step = f"{tensor.levels:,} levels" if tensor.step is None else f"{tensor.step:.4g}"
    zeros, bits = f"{100.0 * (tensor.sparsity or 0.0):.1f}%", f"{8.0 * tensor.bytes / max(math.prod(tensor.shape), 1):.2f}"
    return tensor.name, _shape(tensor.shape), zeros, step, bits, f"{tensor.bytes:,}"


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
