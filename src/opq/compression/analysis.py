"""One walk through a checkpoint: weights measured, auxiliary tensors encoded."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial

from opq import dtypes
from opq.checkpoints import State
from opq.checkpoints.folded_state import FoldedBatchNormState
from opq.codec.file_writer import AuxiliaryPack, check_text, fixed_bytes, pack_auxiliary
from opq.codec.header import LARGEST_TENSOR
from opq.config import CompressionOptions, read_auxiliary, select
from opq.errors import SourceError, WeightError
from opq.quantization.statistics import measure, measure_rows
from opq.rate_distortion.layers import LayerStatistics
from opq.rate_distortion.plan import AuxiliaryPlan
from opq.thread_map import thread_map

_PREPARED = re.compile(r"(^|\.)parametrizations\.[^.]+\.0\.most$")
"""The name of a codebook's buffer, as `opq.prepare` makes it, in a state dict."""

_LARGEST_SCALE = 2.0**151
"""The largest step times the largest code: beyond it no weight is quantized, and squares would soon be infinite."""


@dataclass(frozen=True)
class CheckpointAnalysis:
    """What planning needs to know of a checkpoint.

    statistics   {weight name: its statistics}, in order of names
    dtypes       {weight name: name of its dtype}
    packs        all other tensors, encoded
    dense_bytes  bytes of all tensors as the source stores them, a weight that modules share once
    metadata     the checkpoint's own
    """

    statistics: dict[str, LayerStatistics]
    dtypes: dict[str, str]
    packs: list[AuxiliaryPack]
    dense_bytes: int
    metadata: dict[str, str]

    @property
    def weights(self) -> int:
        """How many weights there are, in all of them together."""
        return sum(measured.count for measured in self.statistics.values())

    @cached_property
    def repeats(self) -> dict[str, str]:
        """{weight: earlier weight with the same values}, as tied weights have: their codes will be stored once.

        Told by the sums of magnitudes of all their channels; it serves prediction, not correctness.
        """
        first: dict[object, str] = {}
        again = {}
        for name, measured in self.statistics.items():
            key = (measured.shape, self.dtypes[name], measured.channel_scales.tobytes())
            if (earlier := first.setdefault(key, name)) != name:
                again[name] = earlier
        return again

    @cached_property
    def fixed_bytes(self) -> int:
        """Bytes of the file that are not codes, closely estimated: header, checksums, auxiliary tensors."""
        weights = ((name, measured.shape, self.dtypes[name]) for name, measured in self.statistics.items())
        return fixed_bytes(weights, self.packs, self.metadata)


def auxiliary_of(state: State, options: CompressionOptions) -> AuxiliaryPlan:
    """How auxiliary tensors are stored; with the eps of the batch-norms of `state`, so that the plan serves without modules."""
    asked = read_auxiliary(options)
    declared = set(state.epsilons.values())
    if asked.batch_norm != "canonical" or not declared:
        return asked
    return replace(asked, eps=declared.pop() if len(declared) == 1 else None)


def analyze(
    state: State,
    options: CompressionOptions,
    auxiliary: AuxiliaryPlan,
    weights: Collection[str] | None = None,
    *,
    estimated: bool = False,
) -> CheckpointAnalysis:
    """Walk through `state`, one tensor at a time.

    The weights are the given ones, or else those of `choose_weights`. Raises WeightError for a weight that cannot be
    compressed, and what `choose_weights` raises. With `estimated`, other tensors are not encoded, only their size is estimated.
    """
    selected = choose_weights(state, options)
    chosen = set(selected if weights is None else weights)
    if auxiliary.batch_norm == "canonical":
        state = FoldedBatchNormState(state, auxiliary.eps)
    kinds = {name: state.describe(name)[0] for name in chosen}
    measured = thread_map(lambda name: (name, _measure(state, name)), in_order(chosen))
    statistics = dict(measured)
    rest = ((name, state[name]) for name in in_order(state) if name not in chosen)
    packs = pack_auxiliary(rest, auxiliary.storage, estimated=estimated)
    return CheckpointAnalysis(statistics, kinds, packs, dense_bytes(state, chosen), dict(state.metadata))


def choose_weights(state: State, options: CompressionOptions) -> list[str]:
    """Every float16, bfloat16, float32 or float64 tensor of at least two dimensions and one element that `include` and
    `exclude` leave, in order of names.

    SourceError when `state` holds nothing, codebooks, or names or metadata that are no text.
    """
    if not len(state):
        raise SourceError("the state dict", "it holds no tensors")
    if any(_PREPARED.search(name) for name in state):
        raise SourceError("the state dict", "it is of a network prepared for training: opq.convert the network first")
    for text in [*state, *state.metadata, *state.metadata.values()]:
        check_text(text)
    return select([name for name in in_order(state) if _is_weight(*state.describe(name))], options)


def in_order(names: Iterable[str]) -> list[str]:
    """Names as a file has them: in ascending order of their UTF-8 bytes."""
    return sorted(names, key=lambda name: name.encode())


def dense_bytes(state: State, weights: Collection[str]) -> int:
    """Bytes of all tensors as the source stores them; names of one of the `weights` count once, as it is coded once."""
    coded = set(weights)
    first = {memory: name for name in coded if (memory := state.memory(name)) is not None}
    counted = [name for name in state if name not in coded or first.get(state.memory(name), name) == name]
    shapes = (state.describe(name) for name in counted)
    return sum(math.prod(shape) * dtypes.NUMPY[kind].itemsize for kind, shape in shapes if kind in dtypes.NUMPY)


def _measure(state: State, name: str) -> LayerStatistics:
    _, shape = state.describe(name)
    if math.prod(shape) > LARGEST_TENSOR:
        raise WeightError(name, shape, f"more than {LARGEST_TENSOR:,} elements")
    measured = measure_rows(shape, partial(state.rows, name), name) if shape else measure(state[name], name)
    if measured.laplace_scale > _LARGEST_SCALE:
        raise WeightError.beyond_float32(name, shape, measured.laplace_scale)
    return measured


def _is_weight(kind: str, shape: tuple[int, ...]) -> bool:
    return kind in dtypes.COMPRESSIBLE and len(shape) >= 2 and math.prod(shape) > 0
