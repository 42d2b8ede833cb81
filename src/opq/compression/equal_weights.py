"""Weights of a checkpoint that have equal values, as tied weights and copies have: they are stored, and counted, once."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from opq.checkpoints import State
from opq.codec.file_writer import in_order
from opq.quantization.statistics import blocks

_FIRST_ROWS = 256
"""About how many elements are compared first."""


def equal_weights(state: State, names: Collection[str]) -> dict[str, str]:
    """Find the weights that repeat another one bit for bit, with its dtype and shape.

    Of most weights only the first rows are read.

    Args:
        state: The checkpoint.
        names: Names of the weights.

    Returns:
        {weight: the first weight, in order of names, that has its values}, without the first ones.
    """
    first: dict[object, list[str]] = {}
    by_memory: dict[object, str] = {}
    repeats = {}
    for name in in_order(names):
        memory = state.memory(name)
        earlier = by_memory.get(memory) if memory is not None else None
        if earlier is None:
            kind, shape = state.describe(name)
            alike = first.setdefault((kind, shape, _bytes(state, name, 0, _first_rows(shape))), [])
            earlier = next((other for other in alike if _are_equal(state, name, other)), name)
            if earlier == name:
                alike.append(name)
            if memory is not None:
                by_memory[memory] = earlier
        if earlier != name:
            repeats[name] = earlier
    return repeats


def _first_rows(shape: tuple[int, ...]) -> int:
    return min([-(-_FIRST_ROWS // max(math.prod(shape[1:]), 1)), *shape[:1]])


def _are_equal(state: State, name: str, other: str) -> bool:
    """Whether two weights of one dtype and shape have the same bytes."""
    shape = state.describe(name)[1]
    pieces = blocks(shape[0], math.prod(shape[1:])) if shape else [(0, 1)]
    return all(_bytes(state, name, *piece) == _bytes(state, other, *piece) for piece in pieces)


def _bytes(state: State, name: str, start: int, stop: int) -> bytes:
    rows = state.rows(name, start, stop) if state.describe(name)[1] else state[name]
    return np.ascontiguousarray(rows).tobytes()
