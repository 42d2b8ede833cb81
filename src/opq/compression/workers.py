"""Who measures and encodes the weights of a checkpoint: the threads of this process, or something with the same methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from opq.checkpoints import State
from opq.codec.file_writer import encode_named
from opq.codec.section_choice import EncodedWeight
from opq.compression.planned_weight import PlannedWeight
from opq.compression.weight_statistics import measure_weight
from opq.rate_distortion.layers import LayerStatistics
from opq.thread_map import thread_map


class Workers(Protocol):
    """Both methods give their results in order. They may be called several times."""

    def measure(self, state: State, names: Sequence[str]) -> Iterator[LayerStatistics]:
        """The statistics of weights."""

    def encode(self, weights: Mapping[str, PlannedWeight]) -> Iterator[EncodedWeight]:
        """Weights of one state, encoded under their plans."""


class Threads:
    """Workers on all cores of this machine."""

    def measure(self, state: State, names: Sequence[str]) -> Iterator[LayerStatistics]:
        """As Workers.measure."""
        return thread_map(lambda name: measure_weight(state, name), names)

    def encode(self, weights: Mapping[str, PlannedWeight]) -> Iterator[EncodedWeight]:
        """As Workers.encode."""
        return thread_map(lambda item: encode_named(*item), weights.items())


THREADS: Workers = Threads()
"""The default."""
