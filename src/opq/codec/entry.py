"""The entry of one tensor in the header."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from opq import dtypes

LARGEST_TENSOR = 2**31 - 1
"""The largest number of elements of a tensor."""

EIGHT_BITS = ("linear8", "relative8")
"""Storages that have bounds."""


STEPPED = ("codes", "scaled")
"""Storages that have a step."""

OF_BASE = ("base", "difference")
"""Storages of a delta: the same as in the base, without a section; and as a difference from it."""

NO_SECTION = -1
"""The section of a tensor that is the same as in the base."""

ALONE = 2**14
"""A difference of at least so many elements has a section of its own."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Args:
        name: State-dict key.
        shape: Sizes, all >= 0, with at most LARGEST_TENSOR elements.
        dtype: Name of the dtype of the restored tensor.
        storage: Of a weight "codes" (with a step), "scaled" (with a step, and scales in its section) or "levels" (with a table
            in its section); of an auxiliary tensor "exact", "float16", "linear8" or "relative8" (see opq.codec.auxiliary). Of a
            tensor that a delta takes from its base "base" or "difference".
        section: Number of the section that holds it; NO_SECTION if the storage is "base". Tensors may share a section.
        step: Quantization step if the storage is "codes" or "scaled"; otherwise None.
        bounds: The lowest and the highest value of an 8-bit grid, float32 numbers; None for other storages.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    storage: str
    section: int
    step: float | None = None
    bounds: tuple[float, float] | None = None

    @property
    def is_weight(self) -> bool:
        """Whether it is stored as codes; otherwise it is an auxiliary tensor."""
        return self.storage in (*STEPPED, "levels")

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the tensor in its dtype."""
        return dtypes.dense_bytes(self.dtype, self.count)

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the tensor as a NumPy array, in which an element of float4 or float6 takes one byte."""
        return self.count * dtypes.NUMPY[self.dtype].itemsize


def contents_of(entry: Entry) -> object:
    """A key that all tensors of a section share: for weights storage and size, with levels also dtype, with scales shape."""
    if entry.storage == "difference":
        return (entry.storage, entry.shape, entry.dtype) if is_alone(entry.count) else entry.storage
    if not entry.is_weight:
        return "pack"
    if entry.storage == "scaled":
        return entry.storage, entry.shape
    return entry.storage, entry.count, entry.dtype if entry.storage == "levels" else ""


def is_alone(count: int) -> bool:
    """Whether the difference of a tensor with so many elements has a section of its own."""
    return count >= ALONE


def repeated_weights(entries: Sequence[Entry], nonzero: Mapping[str, int]) -> set[str]:
    """Names of weights that are equal, bit for bit, to a weight earlier in `entries`.

    A weight that is all zero is not among them: others that became all zero differed before.

    Args:
        entries: All tensors of a file.
        nonzero: {weight name: number of its nonzero codes}.
    """
    first: dict[object, str] = {}
    return {
        entry.name
        for entry in entries
        if entry.is_weight
        and nonzero[entry.name]
        and first.setdefault((entry.section, entry.shape, entry.dtype, entry.step), entry.name) != entry.name
    }


def dense_bytes(entries: Sequence[Entry], repeats: Collection[str]) -> int:
    """Bytes of all tensors in their dtypes, without those of `repeats`."""
    return sum(entry.dense_bytes for entry in entries if entry.name not in repeats)


def by_section(entries: Iterable[Entry]) -> dict[int, list[Entry]]:
    """{number of a section: its entries}, in their order."""
    sections: dict[int, list[Entry]] = {}
    for entry in entries:
        sections.setdefault(entry.section, []).append(entry)
    return sections


def grouped(entries: Iterable[Entry], largest: int) -> Iterator[list[Entry]]:
    """Entries in groups of at most `largest` elements, or of one entry, in their order."""
    group: list[Entry] = []
    size = 0
    for entry in entries:
        size += entry.count
        if group and size > largest:
            yield group
            group, size = [], entry.count
        group.append(entry)
    if group:
        yield group
