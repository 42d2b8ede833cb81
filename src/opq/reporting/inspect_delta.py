"""What a delta holds, tensor by tensor, without its base."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from opq.codec.delta_file import DeltaFile
from opq.compression.delta import delta_summary
from opq.natural_order import natural_key
from opq.text_table import LINE, format_table, html_text

_NAMES = {"base": "as in the base"}


@dataclass(frozen=True)
class DeltaTensor:
    """One tensor of a delta.

    Args:
        name: Its name.
        shape: Its shape.
        dtype: Its dtype.
        storage: "base" if it is the same as in the base, "difference", or as in `opq.inspect` if it is stored as in a file.
        bytes: Bytes of its section, counted at the first tensor of the section.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    storage: str
    bytes: int


@dataclass(frozen=True)
class DeltaInspection:
    """Sizes and contents of a delta.

    Args:
        base: SHA-256 of the tensors of its base, in hexadecimal (docs/format.md, "Deltas").
        file_bytes: Size of the delta.
        dense_bytes: Bytes of all tensors in their dtypes.
        header_bytes: Bytes of the prefix and the header.
        metadata: {text: text} of the checkpoint.
        tensors: One for each tensor, in order of their names.
    """

    base: str
    file_bytes: int
    dense_bytes: int
    header_bytes: int
    metadata: dict[str, str]
    tensors: list[DeltaTensor]

    @property
    def counts(self) -> dict[str, int]:
        """{storage: number of tensors}."""
        return dict(Counter(tensor.storage for tensor in self.tensors))

    def to_dict(self) -> dict[str, Any]:
        """The inspection as plain objects, ready for JSON."""
        return {**asdict(self), "counts": self.counts}

    def table(self, *, every: bool = False) -> str:
        """A row for each tensor in natural order, and the totals.

        Args:
            every: Whether tensors that are as in the base have rows too, and lines may be longer than 80 characters.
        """
        tensors = sorted(self.tensors, key=lambda tensor: natural_key(tensor.name))
        shown = [tensor for tensor in tensors if every or tensor.storage != "base"]
        rows = [
            (t.name, "x".join(map(str, t.shape)) or "scalar", t.dtype, _NAMES.get(t.storage, t.storage), f"{t.bytes:,}")
            for t in shown
        ]
        rows.append(("(header)", "", "", "", f"{self.header_bytes:,}"))
        table = format_table(("tensor", "shape", "dtype", "stored", "bytes"), rows, width=None if every else LINE)
        return f"{table}\n\na delta; SHA-256 of its base {self.base}\n{self.summary()}"

    def summary(self) -> str:
        """The totals in one line."""
        return delta_summary(self.file_bytes, self.dense_bytes, self.counts)

    def __str__(self) -> str:
        """As `table`."""
        return self.table()

    def __repr__(self) -> str:
        """The totals, in brackets."""
        return f"<DeltaInspection: {self.summary()}>"

    def _repr_html_(self) -> str:
        return html_text(str(self))


def inspect_delta(source: str | os.PathLike[str] | bytes) -> DeltaInspection:
    """Read the header of a delta, and report its tensors and sizes. The base is not needed.

    Args:
        source: The delta, by path or as bytes.

    Raises:
        SourceError: The file cannot be read.
        FormatError: It is not a delta, or its header is damaged.
    """
    with DeltaFile(source, None) as file:
        tensors, counted = [], set()
        for entry in file.entries:
            size = 0
            if entry.storage != "base" and entry.section not in counted:
                counted.add(entry.section)
                size = file.section_bytes(entry.section)
            tensors.append(DeltaTensor(entry.name, entry.shape, entry.dtype, entry.storage, size))
        return DeltaInspection(
            file.base_digest.hex(), file.file_bytes, file.dense_bytes, file.header_bytes, file.metadata, tensors
        )
