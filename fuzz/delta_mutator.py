"""Changes deltas as mutator.py changes files, and puts other differences into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from codec_strategies import trellised_as
from delta_laws import BASE, SEEDS, TENSORS
from mutator import Mutator

from opq.codec.delta_sections import encode_codes, grid_of
from opq.codec.difference_layout import KEYS, largest_contexts
from opq.codec.difference_stream import Classes, encode_differences
from opq.codec.entry import NO_SECTION, OF_BASE, Entry
from opq.codec.file_start import DELTA_MAGIC
from opq.codec.weight_section import encode_weight


class DeltaMutator(Mutator):
    """Makes changed deltas of `BASE`, nearly always with correct checksums."""

    _magic = DELTA_MAGIC

    def _valid_file(self) -> bytes:
        return SEEDS[self._chance.choice(sorted(SEEDS))]

    def _other(self, entry: Entry, sections: int) -> Entry:
        chance = self._chance
        if chance.random() < 0.5:
            entry = super()._other(entry, sections)
        else:
            name = chance.choice(sorted(TENSORS))
            dtype, shape = BASE.describe(name)
            storage = chance.choice((*OF_BASE, "exact", entry.storage))
            entry = replace(entry, name=name, dtype=dtype, shape=shape, storage=storage)
        if entry.storage == "base":
            return replace(entry, section=NO_SECTION, step=None, bounds=None)
        return replace(entry, section=chance.randrange(sections)) if entry.section == NO_SECTION else entry

    def _fill(self, members: Sequence[Entry]) -> bytes:
        if members[0].storage == "difference":
            return self._differences([BASE[member.name] for member in members if member.name in BASE])
        entry = members[0]
        if entry.is_weight and entry.name in BASE and self._chance.random() < 0.7:
            section = super()._fill(members)
            if entry.storage == "codes" and self._chance.random() < 0.5:
                codes = self._integers(np.dtype("i2"), entry.count).astype(np.int32).reshape(entry.shape)
                section = encode_weight(trellised_as(codes, 1.0)).adaptive
            return encode_codes(section, entry, BASE[entry.name]) or section
        return super()._fill(members)

    def _differences(self, bases: Sequence[np.ndarray]) -> bytes:
        """Differences of any size in any contexts."""
        chance, grid = self._chance, grid_of(bases)
        differences = self._integers(np.dtype("i8"), len(grid.keys)) >> chance.randrange(64)
        differences = np.where(self._integers(np.dtype("u1"), len(grid.keys)) < chance.choice((2, 40, 256)), differences, 0)

        def axis(size: int) -> np.ndarray | None:
            return self._integers(np.dtype("u1"), size) >> chance.randrange(8) if size and chance.random() < 0.5 else None

        count = chance.randint(1, largest_contexts(len(grid.keys)))
        classes = Classes(
            axis(len(grid.rows)), axis(grid.columns), axis(KEYS), chance.randrange(256) >> chance.randrange(8), count
        )
        return bytes([chance.choice((0, 0, 0, 1, 16))]) + encode_differences(differences, grid, classes)
