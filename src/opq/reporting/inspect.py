"""What a file holds, tensor by tensor, and what its bytes are used for."""

from __future__ import annotations

import os
from collections.abc import Iterator

from opq.batch_norm import prefixes
from opq.codec.auxiliary import largest_error
from opq.codec.byte_planes import estimate_pack
from opq.codec.code_stream import Geometry
from opq.codec.entry import Entry, dense_bytes, repeated_weights
from opq.codec.file_reader import OpqFile
from opq.codec.weight_section import naming, split
from opq.progress import Progress, counted, show_progress
from opq.quantization.codebook import Codebook, LevelTable, ScaledCodebook
from opq.reporting.inspection import KINDS, Inspection, TensorReport
from opq.thread_map import thread_map

_CHECKSUM = 4

_Codebooks = dict[int, tuple[Codebook, int]]
"""{number of a section with scales or levels: its codebook, and the bytes of that}"""


def inspect(source: str | os.PathLike[str] | bytes, *, progress: Progress | bool = False) -> Inspection:
    """Read a .opq file and report its tensors and sizes. Every tensor is decoded.

    Args:
        source: The file, by path or as bytes.
        progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each step.

    Returns:
        The report, which prints as tables.

    Raises:
        SourceError: The file cannot be read.
        FormatError: It is not a valid file.
    """
    with OpqFile(source) as file, show_progress(progress) as report:
        sizes = dict(bytes_by_tensor(file))
        codebooks = _codebooks(file)
        norms = set(prefixes(file))
        tensors, weights, kept, code_bits, counts = [], 0, 0, 0.0, list(_count_all(file, report))
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


def _count_all(file: OpqFile, report: Progress) -> Iterator[tuple[int, float, bool]]:
    """As `_count`, for each tensor in order; once for weights that differ only in values."""
    keys = [(entry.section, Geometry.of(entry.shape), entry.shape[:1]) if entry.is_weight else None for entry in file.entries]
    first: dict[object, Entry] = {}
    for key, entry in zip(keys, file.entries, strict=True):
        first.setdefault(key, entry)
    counts = counted(thread_map(lambda entry: _count(file, entry), first.values()), report, "decoding", len(first))
    found = dict(zip(first, counts, strict=True))
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


def bytes_by_tensor(file: OpqFile) -> Iterator[tuple[str, int]]:
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
