"""A checkpoint or a .opq file as a delta, and the .opq file of a delta."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from opq.checkpoints import as_state
from opq.checkpoints.opq_state import OpqState, open_base, parts_of
from opq.codec.byte_planes import encode_pack
from opq.codec.delta_file import DeltaFile
from opq.codec.delta_writer import write_delta
from opq.codec.entry import Entry, dense_bytes
from opq.codec.file_reader import OpqFile
from opq.codec.file_start import DELTA_MAGIC, MAGIC, magic_of
from opq.codec.file_writer import AuxiliaryPack, Layout, in_packs, number_sections, prefixed_header
from opq.compression.compressed_model import CompressedModel
from opq.errors import SourceError
from opq.progress import Progress, show_progress
from opq.text_table import size_text


@dataclass(frozen=True, eq=False, repr=False)
class Delta(CompressedModel):
    """A delta in memory: a network as what it adds to its base."""

    @property
    def counts(self) -> dict[str, int]:
        """{how tensors are stored: number of them}: "base" for those that are the same, "difference", or as in a file."""
        return dict(Counter(entry.storage for entry in self.layout.entries))

    @property
    def dense_bytes(self) -> int:
        """Bytes of all tensors in their dtypes."""
        return dense_bytes(self.layout.entries, ())

    def __str__(self) -> str:
        """The size in one line."""
        return delta_summary(self.file_bytes, self.dense_bytes, self.counts)


def delta_summary(file_bytes: int, dense: int, counts: Mapping[str, int]) -> str:
    """What a delta holds, in one line.

    Args:
        file_bytes: Its size.
        dense: Bytes of all tensors in their dtypes.
        counts: {storage: number of tensors}.
    """
    same = counts.get("base", 0)
    others = sum(counts.values()) - same
    return f"{size_text(file_bytes)} for {size_text(dense)} of tensors: {same:,} as in the base, {others:,} changed or added"


def compress_delta(
    source: Any,
    base: Any,
    *,
    metadata: Mapping[str, str] | None = None,
    key: str | None = None,
    progress: Progress | bool = False,
) -> Delta:
    """Make a delta, from which every tensor of a checkpoint, or of a .opq file, is restored bit for bit.

    Args:
        source: The path of a .opq file, whose codes and steps are kept; or what `opq.compress` takes.
        base: As for `opq.checkpoints.opq_state.open_base`.
        metadata: {text: text} to keep in the file if the source has no metadata.
        key: As in `opq.compress`.
        progress: As in `opq.compress`.

    Returns:
        The delta, in memory.

    Raises:
        SourceError: The source or the base cannot be read, or the source is a delta.
        FormatError: One of them is a .opq file that is not valid.
        WeightError, TargetError: See `opq.codec.delta_writer.write_delta`.
    """
    magic = magic_of(source)
    if magic == DELTA_MAGIC:
        raise SourceError(source, "it is a delta already")
    with open_base(base) as state, show_progress(progress) as report:
        if magic == MAGIC:
            with OpqFile(source) as file:
                return Delta(None, write_delta(file, state, metadata=file.metadata, report=report))
        new = as_state(source, metadata, key)
        return Delta(None, write_delta(new, state, metadata=new.metadata, report=report))


def complete(delta: DeltaFile, base: OpqFile) -> Layout:
    """The .opq file that a delta was made from: with the same tensors, codes and steps.

    Args:
        delta: The delta.
        base: Its base, which it was opened with.

    Returns:
        The file in pieces. Its sections are the same, but tensors that are as in the base are stored as the base stores them,
        and auxiliary tensors have adaptive planes, also if the file was a lossless one with fast planes.
    """
    alone: list[tuple[Entry, bytes]] = []
    auxiliary = []
    for entry in delta.entries:
        file: OpqFile = base if entry.storage == "base" else delta
        own = file.entry(entry.name)
        if own.is_weight:
            alone.append((replace(own, section=0), file.section(own.section)))
        elif own.storage == "difference":
            auxiliary.append((replace(own, section=0, storage="exact"), delta.array(entry.name)))
        else:
            auxiliary.append((replace(own, section=0), file.stored(entry.name)))
    packs = [
        AuxiliaryPack(tuple(entry for entry, _ in pairs), encode_pack([array for _, array in pairs]))
        for pairs in in_packs(auxiliary)
    ]
    entries, sections = number_sections(alone, packs)
    return Layout(prefixed_header(entries, sections, delta.metadata), sections, entries, {})


def complete_file(source: Any, base: Any) -> Layout:
    """As `complete`, for paths.

    Args:
        source: The path of a delta, or its bytes.
        base: The path of its base, a .opq file; or a sequence of that and of deltas, each made from what is before it.

    Raises:
        SourceError: A file cannot be read, the base is no .opq file, or not that of the delta.
        FormatError: A file is not valid.
    """
    first, *deltas = parts_of(base)
    if magic_of(first) != MAGIC:
        raise SourceError(first, "only a delta of a .opq file gives a .opq file; choose an output that ends in .safetensors")
    data: Any = first
    for delta in [*deltas, source]:
        with OpqFile(data) as before, DeltaFile(delta, OpqState(before)) as opened:
            layout = complete(opened, before)
        data = b"".join(layout.pieces())
    return layout
