"""An analyzed checkpoint and a target to a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np

from opq.compression.analysis import analyze
from opq.compression.size_model import SizeModel
from opq.config import CompressionConfig, CompressionOptions, Lossless, Target, TwoStage, as_config
from opq.errors import TargetError, WeightError
from opq.rate_distortion import joint, two_stage
from opq.rate_distortion.layers import Layer, LayerStatistics
from opq.rate_distortion.plan import LayerPlan, Plan

AIM = 0.9975
"""Share of a byte target that a first prediction aims at, which lets about half of the first files pass as they are."""

SMALLEST_STEP, LARGEST_STEP = 2.0**-126, 2.0**127
"""Steps that are normal numbers of float32."""


def plan(source: Any, config: CompressionConfig | None = None, **options: Unpack[CompressionOptions]) -> Plan:
    """Decide, from the weights alone, how sparse each weight becomes and with which step.

    With a `TwoStage` target the plan is that of the paper: two scalar roots. With a `Ratio` or a `Size` it is the joint one,
    whose target is the predicted size of the file; the real one differs by up to about 3%. `opq.compress` with the same target
    counts the real bytes and corrects the plan until they meet it.

    Args:
        source: A state dict of NumPy arrays or torch tensors, a torch module, or the path of a checkpoint.
        config: The target, and what is fixed; or None, then `options` say it.
        options: The fields of a config as keywords.

    Raises:
        TargetError: The target is malformed or cannot be reached.
        ConfigError: Another setting is out of range.
        SelectionError: A glob matches no weight.
        SourceError: The source cannot be read.
        WeightError: A weight cannot be compressed.
    """
    config = as_config(config, options, "plan")
    if isinstance(config.target, Lossless):
        raise TargetError("plan() does not support lossless, which decides nothing; call compress()")
    analysis = analyze(source, config, estimated=True)
    size_model = SizeModel.of(analysis, config)
    if isinstance(config.target, TwoStage):
        return guess_two_stage(size_model, config.target)[1]
    return guess_joint(size_model, config.target, config.target.budget(analysis.dense_bytes))[1]


def guess_two_stage(size_model: SizeModel, target: TwoStage) -> tuple[SizeModel, Plan]:
    """The two-stage plan, and a size model that has coded excerpts under it."""
    points = two_stage.allocate(size_model.layers, target.sparsity, target.bits)
    better = size_model.guessed(two_stage_plan(size_model, target, points).layers)
    return better, two_stage_plan(better, target, points)


def guess_joint(size_model: SizeModel, target: Target, budget: int) -> tuple[SizeModel, Plan]:
    """The plan predicted to take AIM * `budget` bytes, and a size model that has coded excerpts near it.

    Raises:
        TargetError: The budget cannot be reached.
    """
    aim = AIM * budget
    first = joint_plan(size_model, target, size_model.rough_lambda(aim))
    better = size_model.guessed(first.layers)
    return better, joint_plan(better, target, better.reachable_lambda(budget, aim))


def two_stage_plan(size_model: SizeModel, target: Target, points: Sequence[two_stage.TwoStagePoint]) -> Plan:
    """The plan of these points."""
    plans = {}
    for layer, point in zip(size_model.layers, points, strict=True):
        # What counts for the prediction is the magnitude that separates the kept weights, not the closed form's.
        threshold = _separating_magnitude(layer.statistics, point.num_kept)
        plans[layer.name] = _layer_plan(
            size_model, layer, point.threshold, point.step, 0.5, threshold, point.num_kept, point.max_codes
        )
    return _finish("two_stage", size_model, target, None, plans)


def joint_plan(size_model: SizeModel, target: Target, lmbda: float) -> Plan:
    """The plan at a Lagrange multiplier, squared error per bit, that is the same for all layers."""
    plans = {}
    for layer, point in zip(size_model.layers, joint.points_at(size_model.layers, lmbda, size_model.family), strict=True):
        rounding_offset = 1.0 - point.threshold / point.step
        found = _layer_plan(size_model, layer, point.threshold, point.step, rounding_offset, point.threshold)
        plans[layer.name] = replace(found, rounding=size_model.rounding)
    return _finish("joint", size_model, target, lmbda, plans)


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
        num_kept=kept,
        max_codes=limits,
    )


def _separating_magnitude(statistics: LayerStatistics, kept: int) -> float:
    pruned = round((1.0 - kept / statistics.count) * len(statistics.magnitudes))
    return float(statistics.magnitudes[pruned - 1]) if pruned else 0.0


def _finish(mode: str, size_model: SizeModel, target: Target, lmbda: float | None, plans: dict[str, LayerPlan]) -> Plan:
    analysis = size_model.analysis
    repeats = analysis.repeats
    own = [layer for name, layer in plans.items() if name not in repeats or layer != plans[repeats[name]]]
    codes = sum(layer.bits * layer.count for layer in own) / 8.0
    predicted = round(analysis.fixed_bytes + codes)
    return Plan(mode, target, analysis.auxiliary, lmbda, analysis.dense_bytes, predicted, plans)
