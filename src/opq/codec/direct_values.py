"""Decode fast sections to the values of a weight, without codes in between."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.codec.code_section import run
from opq.codec.code_stream import CHUNK, Geometry
from opq.codec.entry import Entry
from opq.codec.fast_section import FastSection, is_fast
from opq.codec.given_arrays import Arrays, new_array
from opq.codec.weight_section import decode_weights, naming, split, with_step_of
from opq.quantization.codebook import Codebook, LevelTable, ScaledCodebook, codebook_of
from opq.quantization.compressed_tensor import CompressedTensor
from opq.thread_map import thread_map_batched


@dataclass(frozen=True)
class DirectWeight:
    """A weight whose rows can be decoded to values, one block of rows without the others.

    Args:
        entry: Its entry.
        section: Its section, parsed.
        codebook: The values of its codes; columns have no scales.
        sets: (rows of the section,) the scale of each row, less the smallest one.
    """

    entry: Entry
    section: FastSection
    codebook: Codebook
    sets: NDArray[np.uint8]

    def jobs(self, output: NDArray[np.generic]) -> list[Callable[[], None]]:
        """Functions that together fill `output`, the weight's values; they may run in any order and in several threads."""
        return self.section.jobs(self._values, output.reshape(-1), sets=self.sets)

    def rows(self, start: int, stop: int) -> NDArray[np.generic]:
        """weight[start:stop], 0 <= start < stop <= the size of axis 0. Only streams with these rows are decoded."""
        shape, columns = self.entry.shape, self.section.columns
        size = math.prod(shape[1:])
        blocks = [
            block
            for block in self.section.blocks
            if block.top * columns < stop * size and (block.top + block.rows) * columns > start * size
        ]
        first = blocks[0].top * columns
        output = np.empty(sum(block.rows for block in blocks) * columns, dtype=dtypes.NUMPY[self.entry.dtype])
        with naming(self.entry):
            run(self.section.jobs(self._values, output, blocks, self.sets))
        return output[start * size - first : stop * size - first].reshape(stop - start, *shape[1:])

    def _values(self, codes: NDArray[np.int32], number: int) -> NDArray[np.generic]:
        if not isinstance(self.codebook, ScaledCodebook) or self.codebook.rows is None:
            return self.codebook.values(codes, self.entry.dtype)
        scale = int(self.codebook.rows.min()) + number
        return np.asarray(codebook_of(self.codebook.step, np.array([scale]), None).values(codes[None], self.entry.dtype)[0])


def direct_weights(sections: Mapping[int, bytes | memoryview], entries: Iterable[Entry]) -> Iterator[DirectWeight]:
    """Parse the weights that can be decoded to values: those of fast sections whose columns have no scales.

    Args:
        sections: {number of a section: its bytes, untrusted}.
        entries: Weights.

    Raises:
        FormatError: A fast section does not belong to its weight; the error names it.
    """
    parsed: dict[tuple[int, Geometry], tuple[Codebook, FastSection, NDArray[np.uint8]] | None] = {}
    for entry in entries:
        key = entry.section, Geometry.of(entry.shape)
        with naming(entry):
            if key not in parsed:
                parsed[key] = _parse(sections[entry.section], entry)
            parts = parsed[key]
            weight = None if parts is None else DirectWeight(entry, parts[1], with_step_of(parts[0], entry), parts[2])
        if weight is not None:
            yield weight


def _parse(section: bytes | memoryview, entry: Entry) -> tuple[Codebook, FastSection, NDArray[np.uint8]] | None:
    codebook, codes = split(section, entry)
    scaled = codebook if isinstance(codebook, ScaledCodebook) else None
    if not is_fast(codes) or (scaled is not None and (scaled.columns is not None or len(entry.shape) < 2)):
        return None
    parsed = FastSection(codes, entry.shape)
    sets = np.zeros(parsed.rows, dtype=np.uint8)
    if scaled is not None and scaled.rows is not None:
        scales = scaled.rows.astype(np.int16)
        sets = np.repeat((scales - scales.min()).astype(np.uint8), parsed.rows // entry.shape[0])
    if isinstance(codebook, LevelTable):
        lowest, highest = -codebook.negatives, len(codebook.levels) - codebook.negatives
        if not all(lowest <= part.min() and part.max() <= highest for part in (parsed.symbol_codes, *parsed.patched_codes)):
            return None  # the codes are checked one by one
    return codebook, parsed, sets


def value_jobs(
    weights: Iterable[DirectWeight], arrays: dict[str, NDArray[np.generic]], given: Arrays = MappingProxyType({})
) -> Iterator[Callable[[], None]]:
    """Functions that together decode weights. They may run in several threads while the next weight is parsed.

    Args:
        weights: The weights.
        arrays: Receives {name: values}, complete when all functions ran.
        given: Memory for some weights, as `check_given` accepts it.

    Raises:
        FormatError: A stream is damaged; raised by one of the functions, and names the weight.
    """

    def named(weight: DirectWeight, job: Callable[[], None]) -> Callable[[], None]:
        def run_named() -> None:
            with naming(weight.entry):
                job()

        return run_named

    for weight in weights:
        entry = weight.entry
        arrays[entry.name] = new_array(entry, given)
        yield from (named(weight, job) for job in weight.jobs(arrays[entry.name]))


def weight_values(sections: Mapping[int, bytes | memoryview], entries: Sequence[Entry]) -> dict[str, NDArray[np.generic]]:
    """The values of weights of any kind, decoded on all cores.

    Args:
        sections: {number of a section: its bytes, untrusted}.
        entries: The weights' entries.

    Returns:
        {name: values}; no two share memory.

    Raises:
        FormatError: A section does not hold exactly a weight; the error names it.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    run(value_jobs(direct_weights(sections, entries), arrays))
    return arrays | other_values(sections, [entry for entry in entries if entry.name not in arrays])


def other_values(sections: Mapping[int, bytes | memoryview], entries: Sequence[Entry]) -> dict[str, NDArray[np.generic]]:
    """As `weight_values`, of weights that are decoded to codes first."""
    arrays: dict[str, NDArray[np.generic]] = {}
    decoded = decode_weights(sections, entries)
    first = {id(weight): weight for weight in decoded}  # equal weights are one object
    sizes = [math.prod(weight.shape) for weight in first.values()]

    def values(batch: list[CompressedTensor]) -> list[NDArray[np.generic]]:
        return [weight.values() for weight in batch]

    found = dict(zip(first, thread_map_batched(values, list(first.values()), sizes, CHUNK), strict=True))
    for entry, weight in zip(entries, decoded, strict=True):
        is_first = first.pop(id(weight), None) is not None
        arrays[entry.name] = found[id(weight)] if is_first else found[id(weight)].copy()
    return arrays
