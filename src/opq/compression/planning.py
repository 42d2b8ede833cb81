"""From a survey and a target to a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np

from opq.checkpoints import as_state
from opq.compression.analysis import CheckpointAnalysis, analyze, auxiliary_of
from opq.compression.size_model import SizeModel
from opq.config import CompressionOptions, Target, is_shaped, read_overrides, read_target
from opq.errors import TargetError, WeightError
from opq.rate_distortion import joint, laplace, two_stage
from opq.rate_distortion.layers import Layer, LayerStatistics
from opq.rate_distortion.plan import AuxiliaryPlan, LayerPlan, Plan

AIM = 0.9975
"""Share of a byte target that a first prediction aims at, which lets about half of the first files pass as they are."""

SMALLEST_STEP, LARGEST_STEP = 2.0**-126, 2.0**127
"""Steps that are normal numbers of float32."""


def plan(source: Any, **options: Unpack[CompressionOptions]) -> Plan:
    """Decide, from the weights alone, how sparse each weight becomes and with which step.

    source   a state dict of NumPy arrays or torch tensors, a torch module, or the path of a checkpoint
    options  the target, and what is fixed: see `opq.Options`

    With `sparsity` and `bits` the plan is the paper's: two scalar roots. With `ratio` or `size` it is the joint one, whose
    target is the bytes of the finished file as predicted, which the real one misses by up to about 3%; `opq.compress` with the
    same target counts the real bytes and corrects the plan until they meet it.
    Raises TargetError, WeightError, SelectionError or SourceError.
    """
    target = read_target(options)
    state = as_state(source)
    auxiliary = auxiliary_of(state, options)
    analysis = analyze(state, options, auxiliary, estimated=True)
    layers = read_layers(analysis, target, options)
    budget = target.budget(analysis.dense_bytes)
    size_model = SizeModel(analysis, layers, budget is not None and is_shaped(options))
    if budget is None:
        return guess_two_stage(size_model, target, auxiliary)[1]
    return guess_joint(size_model, target, auxiliary, budget)[1]


def guess_two_stage(size_model: SizeModel, target: Target, auxiliary: AuxiliaryPlan) -> tuple[SizeModel, Plan]:
    """The paper's plan, and a forecast that has looked at excerpts under it."""
    points = two_stage.allocate(size_model.layers, target.asked["sparsity"], target.asked["bits"])
    better = size_model.guessed(two_stage_plan(size_model, target, auxiliary, points).layers)
    return better, two_stage_plan(better, target, auxiliary, points)


def guess_joint(size_model: SizeModel, target: Target, auxiliary: AuxiliaryPlan, budget: int) -> tuple[SizeModel, Plan]:
    """The plan predicted to take AIM * `budget` bytes, and a forecast that has looked at excerpts near it.

    Raises TargetError when the budget is out of reach.
    """
    aim = AIM * budget
    first = joint_plan(size_model, target, auxiliary, size_model.rough_lambda(aim))
    better = size_model.guessed(first.layers)
    return better, joint_plan(better, target, auxiliary, better.reachable_lambda(budget, aim))


def read_layers(analysis: CheckpointAnalysis, target: Target, options: CompressionOptions) -> list[Layer]:
    """The weights as allocation sees them; TargetError when there are none."""
    names = list(analysis.statistics)
    overrides = read_overrides(names, options, joint="sparsity" not in target.asked)
    if not names:
        raise TargetError("there is no weight to compress: every tensor is excluded, of one dimension, empty, or not a float")
    repeats = {name: first for name, first in analysis.repeats.items() if overrides[name] == overrides[first]}
    return [Layer(name, analysis.statistics[name], overrides[name], repeats.get(name)) for name in names]


def two_stage_plan(
    size_model: SizeModel, target: Target, auxiliary: AuxiliaryPlan, points: Sequence[two_stage.TwoStagePoint]
) -> Plan:
    """The plan that these points of paper mode make."""
    plans = {}
    for layer, point in zip(size_model.layers, points, strict=True):
        # What counts for the prediction is the magnitude that separates the kept weights, not the closed form's.
        threshold = _separating_magnitude(layer.statistics, point.num_kept)
        plans[layer.name] = _layer_plan(
            size_model, layer, point.threshold, point.step, 0.5, threshold, point.num_kept, point.max_codes
        )
    return _finish("paper", size_model.analysis, target, auxiliary, None, plans)


def joint_plan(size_model: SizeModel, target: Target, auxiliary: AuxiliaryPlan, lmbda: float) -> Plan:
    """The plan in which a bit is worth `price` of squared error everywhere."""
    plans = {}
    for layer, point in zip(size_model.layers, joint.points_at(size_model.layers, lmbda, size_model.family), strict=True):
        offset = 1.0 - point.threshold / point.step
        found = _layer_plan(size_model, layer, point.threshold, point.step, offset, point.threshold)
        plans[layer.name] = replace(found, shaped=size_model.shaped)
    return _finish("joint", size_model.analysis, target, auxiliary, lmbda, plans)


def _layer_plan(
    size_model: SizeModel,
    layer: Layer,
    threshold: float,
    step: float,
    offset: float,
    separating: float,
    kept: int | None = None,
    limits: tuple[int, ...] | None = None,
) -> LayerPlan:
    statistics = layer.statistics
    if not SMALLEST_STEP <= step <= LARGEST_STEP:
        if statistics.magnitudes[-1] > threshold or step > LARGEST_STEP:
            raise WeightError.beyond_float32(layer.name, statistics.shape, statistics.laplace_scale)
        # A layer that has died away beside the others: pruned whole, so that any step serves.
        threshold = separating = LARGEST_STEP
        step, offset = 1.0, 0.5
    step = float(np.float32(step))
    scale = statistics.laplace_scale
    # The first cell reaches from the threshold to the first rounding border above it.
    first = (np.floor(separating / step + offset) + 1.0 - offset) * step - separating
    rate = float(laplace.rate(separating / scale, step / scale, first / scale)) if scale > 0.0 else 0.0
    if kept is not None:
        sparsity = 1.0 - kept / statistics.count
    else:
        magnitudes = statistics.magnitudes
        sparsity = float(np.searchsorted(magnitudes, magnitudes.dtype.type(threshold), side="right")) / len(magnitudes)
    return LayerPlan(
        shape=statistics.shape,
        step=step,
        threshold=float(threshold),
        rounding_offset=float(offset),
        sparsity=sparsity,
        bits=size_model.bits(layer, separating, step, offset) / statistics.count,
        laplace_bits=rate,
        num_kept=kept,
        max_codes=limits,
    )


def _separating_magnitude(statistics: LayerStatistics, kept: int) -> float:
    pruned = round((1.0 - kept / statistics.count) * len(statistics.magnitudes))
    return float(statistics.magnitudes[pruned - 1]) if pruned else 0.0


def _finish(
    mode: str,
    analysis: CheckpointAnalysis,
    target: Target,
    auxiliary: AuxiliaryPlan,
    lmbda: float | None,
    plans: dict[str, LayerPlan],
) -> Plan:
    repeats = analysis.repeats
    own = [layer for name, layer in plans.items() if name not in repeats or layer != plans[repeats[name]]]
    codes = sum(layer.bits * layer.count for layer in own) / 8.0
    predicted = round(analysis.fixed_bytes + codes)
    return Plan(mode, dict(target.asked), auxiliary, lmbda, analysis.dense_bytes, predicted, plans)
