"""From a plan to the bytes of a file, and from a byte target to the plan whose file meets it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Unpack

from opq import dtypes
from opq.allocation import joint
from opq.allocation.plans import AuxiliaryPlan, LayerPlan, Plan
from opq.codec.entropy import encode_codes
from opq.codec.writing import EncodedWeight, assemble
from opq.compression.forecast import Forecast
from opq.compression.lossless import encode_lossless
from opq.compression.options import Options, Target, read_auxiliary, read_target
from opq.compression.planning import guess_joint, guess_paper, joint_plan, read_layers
from opq.compression.survey import Survey, dense_bytes, survey
from opq.errors import PlanError, TargetError, WeightError
from opq.files import write_file
from opq.parallel import in_parallel
from opq.quantization.compressed import compress_tensor
from opq.sources import State, as_state

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many tensors of it are finished, and how many there are."""

# A first guess is taken when it is this close under the budget; the next ones know the coder and aim closer.
_CLOSE_ENOUGH, _CLOSER_AIM = 0.995, 0.9985
_MOST_ROUNDS = 24


@dataclass(frozen=True)
class Compressed:
    """A compressed network.

    plan         the plan it follows; None where it is lossless
    data         the bytes of the .opq file
    dense_bytes  bytes of all tensors as the source stores them
    """

    plan: Plan | None
    data: bytes
    dense_bytes: int

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return len(self.data)

    @property
    def file_ratio(self) -> float:
        """Dense bytes over file bytes."""
        return self.dense_bytes / self.file_bytes

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write the file, through a temporary one beside it: `path` holds the old file or the whole new one, never less.

        Raises OutputError when it cannot be written, or when it exists and `overwrite` is False.
        """
        write_file(path, self.data, overwrite=overwrite)


def compress(
    source: Any,
    *,
    plan: Plan | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Compressed:
    """Compress a network to a file in memory, following a plan or meeting a target.

    source    as in `opq.plan`
    plan      follow this plan as it stands; then `options` must be empty
    metadata  {text: text} to keep in the file, where the source brings none of its own
    progress  called after each tensor
    options   as in `opq.plan`; with a byte target the file is counted, the plan corrected, and the file's size at most the
              target, close under it
    Raises what `opq.plan` raises, and PlanError when the plan was made for other weights.
    """
    report = progress or (lambda stage, done, total: None)
    state = as_state(source, metadata)
    if plan is not None:
        if options:
            raise TargetError(f"a plan already says {', '.join(sorted(options))}: give either the plan or options")
        return _follow(state, plan, report)
    if options.get("lossless"):
        return _keep(state, options, report)
    target = read_target(options)
    auxiliary = read_auxiliary(options)
    surveyed = survey(state, options, auxiliary)
    layers = read_layers(surveyed, target, options)
    budget = target.budget(surveyed.dense_bytes)
    forecast = Forecast(surveyed, layers, {})
    if budget is None:
        return _encode(state, surveyed, guess_paper(forecast, target, auxiliary)[1], report)[0]
    return _fit(state, forecast, target, auxiliary, budget, report)


def _keep(state: State, options: Options, report: Progress) -> Compressed:
    weights, packs = encode_lossless(state, options, report)
    return Compressed(None, assemble(weights, packs, state.metadata), dense_bytes(state))


def _follow(state: State, plan: Plan, report: Progress) -> Compressed:
    for name, layer in plan.layers.items():
        if name not in state:
            raise PlanError(f"it has a layer {name!r}, which the checkpoint lacks")
        kind, shape = state.describe(name)
        if kind not in dtypes.COMPRESSIBLE:
            raise PlanError(f"layer {name!r}: the checkpoint has {kind}, which cannot be quantized")
        if shape != layer.shape:
            raise PlanError(f"layer {name!r}: made for shape {layer.shape}, the checkpoint has {shape}")
    surveyed = survey(state, Options(), plan.auxiliary, weights=plan.layers)
    return _encode(state, surveyed, plan, report)[0]


def _fit(
    state: State, forecast: Forecast, target: Target, auxiliary: AuxiliaryPlan, budget: int, report: Progress
) -> Compressed:
    """Encode, count, learn from the count, until the file is close under its budget; the largest file that fits wins."""
    forecast, plan = guess_joint(forecast, target, auxiliary, budget)
    best: Compressed | None = None
    cheapest, dearest = joint.price_bounds(forecast.layers)
    for _ in range(_MOST_ROUNDS):
        price = plan.price or dearest
        made, taken = _encode(state, forecast.surveyed, plan, report)
        if made.file_bytes <= budget:
            dearest = price
            if best is None or made.file_bytes > best.file_bytes:
                best = made
            if made.file_bytes >= _CLOSE_ENOUGH * budget:
                break
        else:
            cheapest = price
        if dearest / cheapest < 1.0 + 1e-9:
            break
        forecast = forecast.learned(plan.layers, taken)
        price = forecast.price_for(_CLOSER_AIM * budget)
        if not cheapest < price < dearest:
            price = (cheapest * dearest) ** 0.5
        plan = joint_plan(forecast, target, auxiliary, price)
    if best is None:
        smallest = made.file_bytes
        raise TargetError.out_of_reach(budget, smallest, max(smallest, made.dense_bytes), made.dense_bytes)
    return best


def _encode(state: State, surveyed: Survey, plan: Plan, report: Progress) -> tuple[Compressed, dict[str, int]]:
    """The file, and how many bytes the section of each weight takes."""
    weights = []
    for done, weight in enumerate(in_parallel(lambda item: _encode_weight(state, *item), plan.layers.items())):
        weights.append(weight)
        report("encoding", done + 1, len(plan.layers))
    data = assemble(weights, surveyed.packs, surveyed.metadata)
    return Compressed(plan, data, surveyed.dense_bytes), {weight.name: len(weight.section) for weight in weights}


def _encode_weight(state: State, name: str, layer: LayerPlan) -> EncodedWeight:
    try:
        tensor = compress_tensor(state[name], layer)
    except WeightError as error:
        raise WeightError(name, layer.shape, error.problem) from None
    return EncodedWeight(name, tensor.shape, tensor.dtype, tensor.step, encode_codes(tensor.codes))
