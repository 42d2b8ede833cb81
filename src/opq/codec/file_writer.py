"""Encode tensors to the bytes of a .opq file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.codec import _native
from opq.codec.auxiliary import store
from opq.codec.byte_planes import estimate_pack, is_valid
from opq.codec.entry import LARGEST_TENSOR, Entry, contents_of
from opq.codec.file_start import DELTA_MAGIC, FORMAT_VERSION, MAGIC, PREFIX
from opq.codec.header import Header, encode_header
from opq.codec.section_choice import EncodedWeight, choose_pack, choose_sections
from opq.codec.stored_section import Section, checksum_of
from opq.codec.weight_section import encode_weight, entry_of
from opq.config import Speed
from opq.errors import SourceError, TargetError, WeightError
from opq.progress import Progress, counted, no_progress
from opq.quantization.compressed_tensor import QuantizedWeight
from opq.thread_map import thread_map

LARGEST_PACK = 2**20
"""Largest number of dense bytes in a section of several auxiliary tensors."""

EXPANSION, EXPANSION_START = 4096, 2**26
"""The tensors of a file of n bytes have at most EXPANSION_START + EXPANSION * n dense bytes."""


@dataclass(frozen=True)
class AuxiliaryPack:
    """Encoded auxiliary tensors that share a section.

    Args:
        entries: The tensors in order of their names. Their section number is 0, since it is not known yet.
        section: The section's bytes.
    """

    entries: tuple[Entry, ...]
    section: bytes


def pack_auxiliary(
    tensors: Iterable[tuple[str, NDArray[np.generic]]],
    storage: str | Mapping[str, str],
    *,
    estimated: bool = False,
    speed: Speed = "small",
    compared: bool = False,
) -> list[AuxiliaryPack]:
    """Encode auxiliary tensors.

    Args:
        tensors: (name, array), in ascending order of the UTF-8 names; read one at a time.
        storage: "exact", "float16" or "uint8", as in `opq.codec.auxiliary.store`: of all of them, or of each name.
        estimated: If True, the sections are zero bytes of approximately the right length. That is fast, and enough for a plan.
        speed: Which packs are coded for fast decoding, as in CompressionConfig.
        compared: As in `opq.codec.section_choice.choose_pack`.

    Returns:
        The packs, each of at most LARGEST_PACK dense bytes or with a single tensor.

    Raises:
        WeightError: A dtype is not supported, or a tensor has too many elements.
        SourceError: A name cannot be encoded as UTF-8.
    """

    def stored() -> Iterator[tuple[Entry, NDArray[np.generic]]]:
        for name, array in tensors:
            check_auxiliary(name, array)
            how, bounds, kept = store(array, storage if isinstance(storage, str) else storage[name])
            yield Entry(name, array.shape, dtypes.name_of(array.dtype), how, 0, bounds=bounds), kept

    def encode(pairs: Sequence[tuple[Entry, NDArray[np.generic]]]) -> bytes:
        arrays = [array for _, array in pairs]
        return bytes(estimate_pack(arrays)) if estimated else choose_pack(arrays, speed, compared=compared)

    return [AuxiliaryPack(tuple(entry for entry, _ in pairs), encode(pairs)) for pairs in in_packs(stored())]


def in_packs(
    tensors: Iterable[tuple[Entry, NDArray[np.generic]]],
) -> Iterator[list[tuple[Entry, NDArray[np.generic]]]]:
    """Auxiliary tensors in groups of at most LARGEST_PACK dense bytes, or of one tensor.

    Args:
        tensors: (entry, array as it is stored), in ascending order of the UTF-8 names; read one at a time.
    """
    pending: list[tuple[Entry, NDArray[np.generic]]] = []
    size = 0
    for entry, array in tensors:
        if pending and size + entry.dense_bytes > LARGEST_PACK:
            yield pending
            pending, size = [], 0
        pending.append((entry, array))
        size += entry.dense_bytes
    if pending:
        yield pending


def check_auxiliary(name: str, array: NDArray[np.generic]) -> None:
    """Raise WeightError or SourceError if an array or its name cannot be stored."""
    check_text(name)
    kind = dtypes.name_of(array.dtype)
    if kind not in dtypes.NUMPY:
        raise WeightError(name, array.shape, f"dtype {kind} is not supported; convert the tensor, or remove it")
    if array.size > LARGEST_TENSOR:
        raise WeightError(name, array.shape, f"it must have at most {LARGEST_TENSOR:,} elements, got {array.size:,}")
    if not is_valid(array):
        raise WeightError(name, array.shape, f"its bytes are not valid {kind} numbers; create it from numbers")


def check_text(text: str) -> None:
    """Raise SourceError if a name or metadata is not a string that can be encoded as UTF-8."""
    try:
        text.encode()
    except (UnicodeEncodeError, AttributeError):
        raise SourceError(f"name or metadata {text!r}", "it is not text that can be encoded as UTF-8") from None


Tensor = QuantizedWeight | NDArray[np.generic]
"""A weight as codes, which may be computed when they are read; or an auxiliary tensor as an array."""


@dataclass(frozen=True)
class Layout:
    """The bytes of a file in pieces.

    Args:
        header: Prefix and header.
        sections: The sections that follow, in this order.
        entries: The tensors in order of their names.
        nonzero: {weight name: number of its nonzero codes}.
    """

    header: bytes
    sections: Sequence[Section]
    entries: Sequence[Entry]
    nonzero: Mapping[str, int]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + sum(map(len, self.sections))

    def pieces(self) -> Iterator[bytes]:
        """The bytes of the file, a section at a time."""
        yield self.header
        yield from map(bytes, self.sections)

    def weight_bytes(self) -> dict[str, int]:
        """{weight name: bytes of its section}."""
        return {entry.name: len(self.sections[entry.section]) for entry in self.entries if entry.is_weight}


def write(
    tensors: Mapping[str, Tensor],
    *,
    storage: str = "exact",
    packs: Sequence[AuxiliaryPack] = (),
    metadata: Mapping[str, str] | None = None,
    speed: Speed = "balanced",
    report: Progress | None = None,
    encoded: Iterable[EncodedWeight] | None = None,
) -> Layout:
    """Encode tensors to a file: weights as codes, arrays as auxiliary tensors.

    Tensors are stored in order of their names, for any order of `tensors`. Equal sections of weights are stored once. Weights
    are encoded on all cores, and the codes of a weight are read when it is encoded.

    Args:
        tensors: {name: weight or array}.
        storage: How arrays are stored: "exact", "float16" or "uint8".
        packs: Further auxiliary tensors, which are encoded already.
        metadata: {text: text} to keep in the file.
        speed: Which weights are coded for fast decoding, as in CompressionConfig.
        report: Called after each weight.
        encoded: The weights, encoded, in their order. None: they are encoded on all cores of this machine.

    Raises:
        WeightError: A tensor cannot be stored.
        SourceError: A name or metadata is not text.
        TargetError: The tensors have more bytes than readers accept for a file of this size; see `largest_content`.
    """
    metadata = metadata or {}
    weights = {name: tensor for name, tensor in tensors.items() if not isinstance(tensor, np.ndarray)}
    arrays = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, np.ndarray)}
    for text in [*tensors, *metadata, *metadata.values()]:
        check_text(text)
    encoded = encoded or thread_map(lambda item: encode_named(*item), weights.items())
    found = dict(zip(weights, counted(encoded, report or no_progress, "encoding", len(weights)), strict=True))
    opened = [entry_of(name, weight) for name, weight in weights.items()]
    chosen = choose_sections(list(found.values()), list(map(contents_of, opened)), speed)
    nonzero = {name: weight.nonzero for name, weight in found.items()}
    own_packs = pack_auxiliary(((name, arrays[name]) for name in in_order(arrays)), storage)
    entries, sections = number_sections(list(zip(opened, chosen, strict=True)), [*packs, *own_packs])
    layout = Layout(prefixed_header(entries, sections, metadata), sections, entries, nonzero)
    decoded = sum(entry.decoded_bytes for entry in entries)
    if decoded > largest_content(layout.size):
        raise TargetError(
            f"a file of {layout.size:,} bytes must hold at most {largest_content(layout.size):,} bytes of tensors, because "
            f"readers refuse to expand it further, got {decoded:,}; request a larger file, or remove constant tensors"
        )
    return layout


def in_order(names: Iterable[str]) -> list[str]:
    """Names in ascending order of their UTF-8 bytes, which is their order in a file."""
    return sorted(names, key=lambda name: name.encode())


def encode_named(name: str, weight: QuantizedWeight) -> EncodedWeight:
    """Encode a weight, both ways; WeightError, which names it, if it cannot be stored."""
    try:
        return encode_weight(weight, fast=True)
    except WeightError as error:
        raise WeightError(name, weight.shape, error.problem) from None


def fixed_bytes(
    weights: Iterable[tuple[str, tuple[int, ...], str]], packs: Sequence[AuxiliaryPack], metadata: Mapping[str, str]
) -> int:
    """Estimate the bytes of a file other than those of codes.

    Steps, lengths and checksums are not known yet, so arbitrary ones are used in their place.

    Args:
        weights: (name, shape, dtype name) of each weight.
        packs: The auxiliary tensors.
        metadata: {text: text} to keep in the file.
    """
    placeholders: list[tuple[Entry, Section]] = [
        (Entry(name, shape, dtype, "codes", 0, (number * 0.6180339887) % 1.0 + 0.5), number.to_bytes(4, "big") * 50)
        for number, (name, shape, dtype) in enumerate(weights)
    ]
    entries, sections = number_sections(placeholders, packs)
    return len(prefixed_header(entries, sections, metadata)) + sum(len(pack.section) for pack in packs)


def largest_content(file_bytes: int) -> int:
    """The largest number of dense bytes that readers accept for a file of `file_bytes`, by default."""
    return EXPANSION_START + EXPANSION * file_bytes


def file_of_one(entry: Entry, section: bytes) -> bytes:
    """The bytes of a file that holds one tensor.

    Args:
        entry: The tensor, the first of its section.
        section: The section's bytes.
    """
    return prefixed_header([replace(entry, section=0)], [section], {}) + section


def number_sections(
    alone: Sequence[tuple[Entry, Section]], packs: Sequence[AuxiliaryPack]
) -> tuple[list[Entry], list[Section]]:
    """Entries in order of names, and their sections in order of first use.

    Args:
        alone: Tensors whose sections hold nothing else, and these.
        packs: All others.
    """
    # Weights with equal bytes and size share a section; packs with equal bytes do not, since they hold different tensors.
    rows: list[tuple[Entry, object, Section]] = [(entry, (contents_of(entry), section), section) for entry, section in alone]
    for number, pack in enumerate(packs):
        rows += [(entry, number, pack.section) for entry in pack.entries]
    rows.sort(key=lambda row: row[0].name.encode())
    numbers: dict[object, int] = {}
    sections: list[Section] = []
    entries = []
    for entry, key, section in rows:
        if key not in numbers:
            numbers[key] = len(sections)
            sections.append(section)
        entries.append(replace(entry, section=numbers[key]))
    return entries, sections


def prefixed_header(
    entries: Sequence[Entry], sections: Sequence[Section], metadata: Mapping[str, str], base: bytes = b""
) -> bytes:
    """Prefix and header of a file; with the digest of a base, of a delta."""
    packed = encode_header(Header(entries, list(map(len, sections)), list(map(checksum_of, sections)), metadata, base))
    start = PREFIX.pack(DELTA_MAGIC if base else MAGIC, FORMAT_VERSION, len(packed), 0)[:8]
    return start + _native.crc32(packed, _native.crc32(start)).to_bytes(4, "little") + packed
