"""Encode a checkpoint, or the tensors of a .opq file, as a delta: what they add to a base."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.codec.auxiliary import restore
from opq.codec.byte_planes import encode_pack, estimate_pack
from opq.codec.delta_base import Base, digest_of, has_same
from opq.codec.delta_sections import encode_codes, encode_tensors
from opq.codec.difference_words import SUPPORTED
from opq.codec.entry import NO_SECTION, Entry, by_section, is_alone
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
from opq.thread_map import thread_map


class _Part(NamedTuple):
    """What a delta will hold of a tensor.

    Args:
        kind: "same" as in the base; a "changed" weight; an "alone" section of a difference, small "differences" that share a
            section, or "others", which do not follow from the base.
        entry: Its entry, without the number of a section.
        content: The section; of differences the array, and of others the array as it is stored.
        num_kept: Of a weight, the number of nonzero codes.
    """

    kind: str
    entry: Entry
    content: Any = None
    num_kept: int | None = None


def write_delta(
    new: Base | OpqFile, base: Base, *, metadata: Mapping[str, str] | None = None, report: Progress | None = None
) -> Layout:
    """Encode tensors as a delta, from which they can be decoded bit for bit with the base.

    Args:
        new: The tensors, read one at a time on each core. Weights of an OpqFile keep their codes, steps and kinds of sections,
            and its auxiliary tensors their storage.
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
    parts: dict[str, list[_Part]] = defaultdict(list)
    found = thread_map(lambda name: _part_of(new, name, base), names)
    for number, part in enumerate(found):
        parts[part.kind].append(part)
        if report is not None:
            report("comparing", number + 1, len(names))
    alone = [(part.entry, part.content) for part in parts["alone"]]
    packs = []
    if isinstance(new, OpqFile):
        for members, section, is_near in _sections_of(new, [part.entry for part in parts["changed"]], base):
            if is_near:
                packs.append(AuxiliaryPack(members, section))  # never one with another, whose base differs
            else:
                alone += [(entry, section) for entry in members]
    packs += [AuxiliaryPack(_entries(pairs), encode_pack([array for _, array in pairs])) for pairs in _packs(parts["others"])]
    packs += [_difference_pack(pairs, base) for pairs in _packs(parts["differences"])]
    entries, sections = number_sections(alone, packs)
    entries = sorted([*entries, *(part.entry for part in parts["same"])], key=lambda entry: entry.name.encode())
    nonzero = {part.entry.name: part.num_kept for kind in parts.values() for part in kind if part.num_kept is not None}
    layout = Layout(prefixed_header(entries, sections, metadata, digest_of(base)), sections, entries, nonzero)
    own = sum(entry.decoded_bytes for entry in entries if not has_same(base, entry.name, entry.dtype, entry.shape))
    if own > largest_content(layout.size):
        raise TargetError(
            f"a delta of {layout.size:,} bytes must add at most {largest_content(layout.size):,} bytes of tensors, because "
            f"readers refuse to expand it further, got {own:,}; remove constant tensors"
        )
    return layout


def _part_of(new: Base | OpqFile, name: str, base: Base) -> _Part:
    if isinstance(new, OpqFile) and new.entry(name).is_weight:
        entry, weight = new.entry(name), cast(CompressedTensor, new[name])
        is_same = has_same(base, name, entry.dtype, entry.shape) and _equal(weight.values(), base[name])
        return _Part("same", _same(entry), None, weight.num_kept) if is_same else _Part("changed", entry, None, weight.num_kept)
    if isinstance(new, OpqFile):
        entry, stored = replace(new.entry(name), section=0), new.stored(name)
        array = restore(stored, entry)
    else:
        array = stored = new[name]
        check_auxiliary(name, array)
        entry = Entry(name, array.shape, dtypes.name_of(array.dtype), "exact", 0)
    before = base[name] if has_same(base, name, entry.dtype, entry.shape) else None
    if before is not None and _equal(array, before):
        return _Part("same", _same(entry))
    # A tensor that a file stores with less precision keeps its storage, so that the file can be made again.
    if before is None or entry.dtype not in SUPPORTED or entry.storage != "exact":
        return _Part("others", entry, stored)
    difference = encode_tensors([array], [before])
    if len(difference) >= estimate_pack([stored]):
        return _Part("others", entry, stored)
    return (
        _Part("alone", _difference(entry), difference)
        if is_alone(entry.count)
        else _Part("differences", _difference(entry), array)
    )


def _sections_of(file: OpqFile, changed: Sequence[Entry], base: Base) -> Iterator[tuple[tuple[Entry, ...], bytes, bool]]:
    """(weights, section, whether that is one of near codes) of the weights of a file that changed."""

    def encode(item: tuple[int, list[Entry]]) -> tuple[tuple[Entry, ...], bytes, bool]:
        number, members = item
        entries = tuple(replace(entry, section=0) for entry in members)
        first, section = entries[0], file.section(number)  # all have the codes that the first one gives
        if has_same(base, first.name, first.dtype, first.shape):
            near = encode_codes(section, first, base[first.name])
            if near is not None and len(near) < len(section):
                return entries, near, True
        return entries, section, False

    return thread_map(encode, by_section(changed).items())


def _packs(parts: Sequence[_Part]) -> Iterator[list[tuple[Entry, NDArray[np.generic]]]]:
    return in_packs([(part.entry, part.content) for part in parts])


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
