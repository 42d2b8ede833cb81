"""From a plan to the bytes of a file, and from a byte target to the plan whose file meets it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.atomic_file import write_file
from opq.checkpoints import State, as_state
from opq.codec.code_stream import CHUNK, encode_pieces
from opq.codec.file_writer import EncodedWeight, Layout, layout
from opq.codec.sections import Section
from opq.compression.analysis import CheckpointAnalysis, analyze, auxiliary_of, dense_bytes
from opq.compression.journal import Journal, codes_key, open_journal
from opq.compression.lossless import encode_lossless
from opq.compression.planning import guess_joint, guess_two_stage, joint_plan, read_layers
from opq.compression.size_model import SizeModel
from opq.config import CompressionOptions, Target, is_shaped, read_target
from opq.errors import PlanError, TargetError, WeightError
from opq.quantization.chunked import code_pieces
from opq.quantization.compressed_tensor import compress_tensor
from opq.rate_distortion import joint
from opq.rate_distortion.plan import AuxiliaryPlan, LayerPlan, Plan
from opq.rate_distortion.rate_control import next_lambda
from opq.thread_map import thread_map

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many tensors of it are finished, and how many there are."""

# A first guess is taken when it is this close under the budget; the next ones know the coder and aim closer.
_CLOSE_ENOUGH, _CLOSER_AIM = 0.995, 0.9985
_MOST_ROUNDS = 24


@dataclass(frozen=True, eq=False)
class CompressedModel:
    """A compressed network.

    plan         the plan it follows; None where it is lossless
    layout       the .opq file in pieces
    dense_bytes  bytes of all tensors as the source stores them, a weight that modules share once
    journal      where the pieces wait, if not in memory
    """

    plan: Plan | None
    layout: Layout
    dense_bytes: int
    journal: Journal | None = None

    @property
    def data(self) -> bytes:
        """The bytes of the .opq file."""
        return b"".join(self.layout.pieces())

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return self.layout.size

    @property
    def file_ratio(self) -> float:
        """Dense bytes over file bytes."""
        return self.dense_bytes / self.file_bytes

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write the file, through a temporary one beside it: `path` holds the old file or the whole new one, never less.

        The work file of `compress`, if there is one, is removed. Raises OutputError when the file cannot be written, or when
        it exists and `overwrite` is False.
        """
        write_file(path, self.layout.pieces(), overwrite=overwrite)
        if self.journal is not None:
            self.journal.discard()


def compress(
    source: Any,
    *,
    plan: Plan | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    work_file: str | os.PathLike[str] | None = None,
    **options: Unpack[CompressionOptions],
) -> CompressedModel:
    """Compress a network to a file in memory, following a plan or meeting a target.

    source    as in `opq.plan`
    plan      follow this plan as it stands; then `options` must be empty
    metadata  {text: text} to keep in the file, where the source brings none of its own
    progress  called after each tensor
    work_file keep encoded weights there instead of in memory, from LONG_RUN weights on: a run that was stopped, by whatever
              means, leaves them, and the next one with the same `work_file` takes over those it needs. The result is the same
              bytes; `save` removes the work file
    options   as in `opq.plan`; with a byte target the file is counted, the plan corrected, and the file's size at most the
              target, close under it
    Weights are read some rows at a time, so that memory is bounded by about 100 MB a processor, the auxiliary tensors, and,
    without `work_file`, twice the file.
    Raises what `opq.plan` raises, PlanError when the plan was made for other names or shapes, and OutputError when the work
    file cannot be written.
    """
    report = progress or (lambda stage, done, total: None)
    state = as_state(source, metadata)
    if plan is not None:
        if options:
            raise TargetError(f"a plan already says {', '.join(sorted(options))}: give either the plan or options")
        analysis = _survey_planned(state, plan)
        with open_journal(work_file, analysis.weights) as journal:
            return _encode(state, analysis, plan, journal, report)[0]
    if options.get("lossless"):
        return _keep(state, options, report)
    target = read_target(options)
    auxiliary = auxiliary_of(state, options)
    analysis = analyze(state, options, auxiliary)
    layers = read_layers(analysis, target, options)
    budget = target.budget(analysis.dense_bytes)
    size_model = SizeModel(analysis, layers, budget is not None and is_shaped(options))
    with open_journal(work_file, analysis.weights) as journal:
        if budget is None:
            return _encode(state, analysis, guess_two_stage(size_model, target, auxiliary)[1], journal, report)[0]
        return _fit(state, size_model, target, auxiliary, budget, journal, report)


def _keep(state: State, options: CompressionOptions, report: Progress) -> CompressedModel:
    weights, packs = encode_lossless(state, options, report)
    return CompressedModel(
        None, layout(weights, packs, state.metadata), dense_bytes(state, {weight.name for weight in weights})
    )


def _survey_planned(state: State, plan: Plan) -> CheckpointAnalysis:
    """The survey of a checkpoint for a plan; PlanError when the plan was made for another."""
    for name, layer in plan.layers.items():
        if name not in state:
            raise PlanError(f"it has a layer {name!r}, which the checkpoint lacks")
        kind, shape = state.describe(name)
        if kind not in dtypes.COMPRESSIBLE:
            raise PlanError(f"layer {name!r}: the checkpoint has {kind}, which cannot be quantized")
        if shape != layer.shape:
            raise PlanError(f"layer {name!r}: made for shape {layer.shape}, the checkpoint has {shape}")
    return analyze(state, CompressionOptions(), plan.auxiliary, weights=plan.layers)


def _fit(
    state: State,
    size_model: SizeModel,
    target: Target,
    auxiliary: AuxiliaryPlan,
    budget: int,
    journal: Journal | None,
    report: Progress,
) -> CompressedModel:
    """Encode, count, learn from the count, until the file is close under its budget; the largest file that fits wins."""
    size_model, plan = guess_joint(size_model, target, auxiliary, budget)
    best: CompressedModel | None = None
    cheapest, dearest = joint.lambda_bounds(size_model.layers, size_model.family)
    tried: list[tuple[float, float]] = []
    for _ in range(_MOST_ROUNDS):
        lmbda = plan.lmbda or dearest
        made, taken = _encode(state, size_model.analysis, plan, journal, report)
        if made.file_bytes <= budget:
            dearest = lmbda
            if best is None or made.file_bytes > best.file_bytes:
                best = made
            if made.file_bytes >= _CLOSE_ENOUGH * budget:
                break
        else:
            cheapest = lmbda
        if dearest / cheapest < 1.0 + 1e-9:
            break
        tried.append((lmbda, made.file_bytes))
        if len(tried) == 1:
            size_model = size_model.learned(plan.layers, taken)
            lmbda = size_model.lambda_for(_CLOSER_AIM * budget)
        else:  # what each weight saves was learned, and the rest is how that changes with the price
            lmbda = next_lambda(tried, budget, _CLOSER_AIM * budget)[0]
        if not cheapest < lmbda < dearest:
            lmbda = (cheapest * dearest) ** 0.5
        plan = joint_plan(size_model, target, auxiliary, lmbda)
    if best is None:
        smallest = made.file_bytes
        raise TargetError.out_of_reach(budget, smallest, max(smallest, made.dense_bytes), made.dense_bytes)
    return best


def _encode(
    state: State, analysis: CheckpointAnalysis, plan: Plan, journal: Journal | None, report: Progress
) -> tuple[CompressedModel, dict[str, int]]:
    """The file, and how many bytes the section of each weight takes."""
    small = [item for item in plan.layers.items() if item[1].count <= CHUNK]
    large = [item for item in plan.layers.items() if item[1].count > CHUNK]  # each keeps all processors busy by itself
    weights = []
    encode = partial(_encode_weight, state, journal)
    for weight in chain(thread_map(lambda item: encode(*item), small), (encode(*item) for item in large)):
        weights.append(weight)
        report("encoding", len(weights), len(plan.layers))
    laid_out = layout(weights, analysis.packs, analysis.metadata)
    taken = {weight.name: Section.of(weight.section).size for weight in weights}
    return CompressedModel(plan, laid_out, analysis.dense_bytes, journal), taken


def _encode_weight(state: State, journal: Journal | None, name: str, layer: LayerPlan) -> EncodedWeight:
    try:
        codes = _codes(state, name, layer)
        encode = partial(encode_pieces, layer.shape, codes)
        section = journal.section(codes_key(layer.shape, codes), encode) if journal is not None else Section.of(encode())
    except WeightError as error:
        raise WeightError(name, layer.shape, error.problem) from None
    return EncodedWeight(name, layer.shape, state.describe(name)[0], layer.step, section)


def _codes(state: State, name: str, layer: LayerPlan) -> Callable[[int, int], NDArray[np.int32]]:
    """Gives the codes of a weight from one place to another; those of a large one are made when they are asked for."""
    if layer.count > CHUNK and layer.shape:
        return code_pieces(partial(state.rows, name), layer)
    flat = compress_tensor(state[name], layer).codes.reshape(-1)
    return lambda start, stop: flat[start:stop]
