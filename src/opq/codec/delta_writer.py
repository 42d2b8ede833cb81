"""Encode a checkpoint, or the tensors of a .opq file, as a delta: what they add to a base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.codec.auxiliary import restore
from opq.codec.byte_planes import encode_pack, estimate_pack
from opq.codec.delta_base import Base, digest_of, has_same
from opq.codec.delta_sections import encode_codes, encode_tensors
from opq.codec.difference_words import SUPPORTED
from opq.codec.entry import NO_SECTION, Entry, is_alone
from opq.codec.file_reader import OpqFile
from opq.codec.file_writer import (
    AuxiliaryPack,
    Layout,
    check_auxiliary,
    check_text,
    in_order,
    in_packs,
    largest_content,
    number_sections,
    prefixed_header,
)
from opq.errors import TargetError
from opq.progress import Progress
from opq.quantization.compressed_tensor import CompressedTensor


@dataclass
class _Parts:
    """What a delta will hold.

    Args:
        same: Tensors that are the same as in the base.
        alone: Tensors with a section of their own, and it.
        small: Tensors whose differences share a section, as arrays, in order of their names.
        others: All other arrays, as they are stored.
        changed: Weights that are not the same, by the number of their section.
        coded: Those whose codes are a difference.
        nonzero: {weight: number of its nonzero codes}.
    """

    same: list[Entry] = field(default_factory=list)
    changed: dict[int, list[Entry]] = field(default_factory=dict)
    coded: list[AuxiliaryPack] = field(default_factory=list)
    nonzero: dict[str, int] = field(default_factory=dict)
    alone: list[tuple[Entry, bytes]] = field(default_factory=list)
    small: list[tuple[Entry, NDArray[np.generic]]] = field(default_factory=list)
    others: list[tuple[Entry, NDArray[np.generic]]] = field(default_factory=list)


def write_delta(
    new: Base | OpqFile, base: Base, *, metadata: Mapping[str, str] | None = None, report: Progress | None = None
) -> Layout:
    """Encode tensors as a delta, from which they can be decoded bit for bit with the base.

    Args:
        new: The tensors, read one at a time. Weights of an OpqFile keep their codes, steps and kinds of sections, and its
            auxiliary tensors their storage.
        base: The tensors of the base.
        metadata: {text: text} to keep in the file.
        report: Called after each tensor.

    Returns:
        The delta in pieces.

    Raises:
        WeightError: A tensor cannot be stored.
        SourceError: A name or metadata is not text, or a dtype of the base is not supported.
        TargetError: The tensors that the base does not have are too many for a file of this size; see `largest_content`.
    """
    metadata = metadata or {}
    for text in [*metadata, *metadata.values()]:
        check_text(text)
    names = in_order(new)
    parts = _Parts()
    for number, name in enumerate(names):
        if isinstance(new, OpqFile) and new.entry(name).is_weight:
            _sort_weight(parts, new, name, base)
        else:
            _add_array(parts, new, name, base)
        if report is not None:
            report("comparing", number + 1, len(names))
    if isinstance(new, OpqFile):
        _add_sections(parts, new, base)
    others = (AuxiliaryPack(_entries(pairs), encode_pack([array for _, array in pairs])) for pairs in in_packs(parts.others))
    packs = [*parts.coded, *others, *(_difference_pack(pairs, base) for pairs in in_packs(parts.small))]
    entries, sections = number_sections(parts.alone, packs)
    entries = sorted([*entries, *parts.same], key=lambda entry: entry.name.encode())
    layout = Layout(prefixed_header(entries, sections, metadata, digest_of(base)), sections, entries, parts.nonzero)
    own = sum(entry.decoded_bytes for entry in entries if not has_same(base, entry.name, entry.dtype, entry.shape))
    if own > largest_content(layout.size):
        raise TargetError(
            f"a delta of {layout.size:,} bytes must add at most {largest_content(layout.size):,} bytes of tensors, because "
            f"readers refuse to expand it further, got {own:,}; remove constant tensors"
        )
    return layout


def _sort_weight(parts: _Parts, file: OpqFile, name: str, base: Base) -> None:
    """Find whether a weight of a file is the same as in the base."""
    entry, weight = file.entry(name), cast(CompressedTensor, file[name])
    parts.nonzero[name] = weight.num_kept
    if has_same(base, name, entry.dtype, entry.shape) and _equal(weight.values(), base[name]):
        parts.same.append(_same(entry))
    else:
        parts.changed.setdefault(entry.section, []).append(replace(entry, section=0))


def _add_sections(parts: _Parts, file: OpqFile, base: Base) -> None:
    """Add the weights that changed. All of a section have the codes that the first one gives."""
    for number, entries in parts.changed.items():
        first, section = entries[0], file.section(number)
        coded = None
        if has_same(base, first.name, first.dtype, first.shape):
            coded = encode_codes(section, first, base[first.name])
        if coded is not None and len(coded) < len(section):
            parts.coded.append(AuxiliaryPack(tuple(entries), coded))  # never one with another, whose base differs
        else:
            parts.alone += [(entry, section) for entry in entries]


def _add_array(parts: _Parts, new: Base | OpqFile, name: str, base: Base) -> None:
    if isinstance(new, OpqFile):
        entry, stored = replace(new.entry(name), section=0), new.stored(name)
        array = restore(stored, entry)
    else:
        array = stored = new[name]
        check_auxiliary(name, array)
        entry = Entry(name, array.shape, dtypes.name_of(array.dtype), "exact", 0)
    before = base[name] if has_same(base, name, entry.dtype, entry.shape) else None
    if before is not None and _equal(array, before):
        parts.same.append(_same(entry))
        return
    # A tensor that a file stores with less precision keeps its storage, so that the file can be made again.
    if before is None or entry.dtype not in SUPPORTED or entry.storage != "exact":
        parts.others.append((entry, stored))
        return
    difference = encode_tensors([array], [before])
    if len(difference) >= estimate_pack([stored]):
        parts.others.append((entry, stored))
    elif is_alone(entry.count):
        parts.alone.append((_difference(entry), difference))
    else:
        parts.small.append((_difference(entry), array))


def _difference_pack(pairs: list[tuple[Entry, NDArray[np.generic]]], base: Base) -> AuxiliaryPack:
    section = encode_tensors([array for _, array in pairs], [base[entry.name] for entry, _ in pairs])
    return AuxiliaryPack(_entries(pairs), section)


def _entries(pairs: list[tuple[Entry, NDArray[np.generic]]]) -> tuple[Entry, ...]:
    return tuple(entry for entry, _ in pairs)


def _same(entry: Entry) -> Entry:
    return Entry(entry.name, entry.shape, entry.dtype, "base", NO_SECTION)


def _difference(entry: Entry) -> Entry:
    return Entry(entry.name, entry.shape, entry.dtype, "difference", 0)


def _equal(one: NDArray[np.generic], two: NDArray[np.generic]) -> bool:
    """Whether arrays of one dtype and shape are equal bit for bit."""
    kind = np.uint8
    return bool((np.ascontiguousarray(one).reshape(-1).view(kind) == np.ascontiguousarray(two).reshape(-1).view(kind)).all())
