"""plan(): choose the quantizer of each weight for a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np

from opq.checkpoints import as_state
from opq.compression.analysis import analyze
from opq.compression.size_model import SizeModel
from opq.config import CompressionConfig, CompressionOptions, Lossless, Target, TwoStage, as_config
from opq.errors import TargetError, WeightError
from opq.progress import Progress, show_progress
from opq.rate_distortion import joint, trellis, two_stage
from opq.rate_distortion.layer_plan import LayerPlan
from opq.rate_distortion.layers import Layer, LayerStatistics
from opq.rate_distortion.plan import Plan
from opq.rate_distortion.scales import LARGEST_STEP, SMALLEST_STEP

AIM = 0.9975
"""The fraction of a byte target at which the first plan aims. With it about half of the first files meet the target."""


def plan(
    source: Any,
    config: CompressionConfig | None = None,
    *,
    key: str | None = None,
    progress: Progress | bool = False,
    **options: Unpack[CompressionOptions],
) -> Plan:
    """Choose the sparsity and the step of each weight, from the weights alone.

    A `TwoStage` target gives the plan of the OPQ paper: two scalar roots. A `Ratio` or `Size` gives the joint plan, whose
    predicted file size meets the target; the actual size differs by up to about 3%. `opq.compress` with the same target counts
    the actual bytes, and corrects the plan until they meet the target.

    Args:
        source: A state dict of NumPy arrays or torch tensors, a torch module, or the path of a checkpoint.
        config: The target and all settings; or None if `options` give them.
        key: The key of the state dict in a source that has several, such as "params_ema".
        progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each step.
        options: The fields of a config as keywords, such as `ratio=20` and `exclude=["fc.*"]`.

    Raises:
        TypeError: A keyword is unknown, or `config` and `options` are both given.
        TargetError: The target is malformed or cannot be reached.
        ConfigError: Another setting is out of range.
        SelectionError: A glob matches no weight.
        SourceError: The source cannot be read.
        WeightError: A weight cannot be compressed.
    """
    config = as_config(config, options, "plan")
    if isinstance(config.target, Lossless):
        raise TargetError("a plan cannot be lossless, because there are no quantizers to choose; give a ratio or a size")
    with show_progress(progress) as report:
        analysis = analyze(as_state(source, key=key), config, estimated=True, report=report)
    size_model = SizeModel.of(analysis, config)
    if isinstance(config.target, TwoStage):
        return guess_two_stage(size_model, config.target)[1]
    return guess_joint(size_model, config.target, config.target.budget(analysis.dense_bytes))[1]


def guess_two_stage(size_model: SizeModel, target: TwoStage) -> tuple[SizeModel, Plan]:
    """Make the two-stage plan.

    Args:
        size_model: The size model, before any excerpt was encoded.
        target: Sparsity and bits.

    Returns:
        A size model with gains measured on excerpts under the plan, and the plan.

    Raises:
        TargetError: The target is out of range or cannot be reached.
    """
    points = two_stage.allocate(size_model.layers, target.sparsity, target.bits)
    better = size_model.guessed(two_stage_plan(size_model, target, points).layers)
    return better, two_stage_plan(better, target, points)


def guess_joint(size_model: SizeModel, target: Target, budget: int) -> tuple[SizeModel, Plan]:
    """Make the joint plan whose predicted file has AIM * `budget` bytes.

    Args:
        size_model: The size model, before any excerpt was encoded.
        target: The target that the plan records.
        budget: The largest allowed size of the file in bytes.

    Returns:
        A size model with gains measured on excerpts, and the plan.

    Raises:
        TargetError: The budget cannot be reached.
    """
    aim = AIM * budget
    first = joint_plan(size_model, target, size_model.rough_lambda(aim))
    better = size_model.guessed(first.layers)
    return better, joint_plan(better, target, better.reachable_lambda(budget, aim))


def two_stage_plan(size_model: SizeModel, target: Target, points: Sequence[two_stage.TwoStagePoint]) -> Plan:
    """The two-stage plan with given quantizers.

    Args:
        size_model: Its layers are planned.
        target: The target that the plan records.
        points: The quantizer of each layer.

    Raises:
        WeightError: A step would not be a normal float32 number.
    """
    plans = {}
    for layer, point in zip(size_model.layers, points, strict=True):
        # The prediction needs the magnitude below which weights are really pruned, not the threshold of the closed form.
        threshold = _pruned_magnitude(layer.statistics, point.num_kept)
        plans[layer.name] = _layer_plan(
            size_model, layer, point.threshold, point.step, 0.5, threshold, point.num_kept, point.max_codes
        )
    return _finish("two_stage", size_model, target, None, plans)


def joint_plan(size_model: SizeModel, target: Target, lmbda: float) -> Plan:
    """The joint plan at a Lagrange multiplier.

    Args:
        size_model: Its layers are planned.
        target: The target that the plan records.
        lmbda: Sensitivity-weighted squared error per bit, the same for all layers.

    Raises:
        WeightError: A step would not be a normal float32 number.
    """
    plans = {}
    for layer, point in zip(size_model.layers, joint.points_at(size_model.layers, lmbda, size_model.family), strict=True):
        rounding_offset = 1.0 - point.threshold / point.step
        layer_plan = _layer_plan(size_model, layer, point.threshold, point.step, rounding_offset, point.threshold)
        if size_model.follows_trellis(layer, point.step):
            plans[layer.name] = _trellis_plan(layer.statistics, layer_plan)
        else:
            plans[layer.name] = replace(layer_plan, rounding=size_model.rounding_without_trellis)
    return _finish("joint", size_model, target, lmbda, plans)


def _layer_plan(
    size_model: SizeModel,
    layer: Layer,
    threshold: float,
    step: float,
    offset: float,
    pruned_magnitude: float,
    num_kept: int | None = None,
    max_codes: tuple[int, ...] | None = None,
) -> LayerPlan:
    """The plan of a layer; `pruned_magnitude` is the largest pruned magnitude, from which the bits are predicted."""
    statistics, rows = layer.statistics, layer.statistics.rows
    lowest, highest = (step * 2.0 ** (end((0, *(rows or ()))) / 8.0) for end in (min, max))
    if not SMALLEST_STEP <= lowest <= highest <= LARGEST_STEP:
        if statistics.magnitudes[-1] > threshold or highest > LARGEST_STEP:
            raise WeightError.beyond_float32(layer.name, statistics.shape, statistics.laplace_scale)
        # Its weights are negligible beside those of other layers. It is pruned completely, so any step is correct.
        threshold = pruned_magnitude = LARGEST_STEP
        step, offset = 1.0, 0.5
    step = float(np.float32(step))
    sparsity = _share_up_to(statistics, threshold) if num_kept is None else 1.0 - num_kept / statistics.count
    return LayerPlan(
        shape=statistics.shape,
        step=step,
        threshold=float(threshold),
        rounding_offset=float(offset),
        sparsity=sparsity,
        bits=size_model.bits(layer, pruned_magnitude, step, offset) / statistics.count,
        num_kept=num_kept,
        max_codes=max_codes,
        rows=rows,
    )


def _trellis_plan(statistics: LayerStatistics, uniform: LayerPlan) -> LayerPlan:
    """The plan with a trellis in place of the uniform rounding of a plan."""
    step = float(np.float32(trellis.codebook_step(uniform.step, statistics.laplace_scale)))
    sparsity = _share_up_to(statistics, trellis.ZERO * step)
    return replace(uniform, step=step, threshold=0.0, rounding_offset=0.5, sparsity=sparsity, rounding="trellis")


def _share_up_to(statistics: LayerStatistics, magnitude: float) -> float:
    """The fraction of a weight's magnitudes that are at most this one."""
    magnitudes = statistics.magnitudes
    return float(np.searchsorted(magnitudes, magnitudes.dtype.type(magnitude), side="right")) / len(magnitudes)


def _pruned_magnitude(statistics: LayerStatistics, num_kept: int) -> float:
    """The largest pruned magnitude of the sample if the `num_kept` largest weights are kept; 0.0 if none is pruned."""
    pruned = round((1.0 - num_kept / statistics.count) * len(statistics.magnitudes))
    return float(statistics.magnitudes[pruned - 1]) if pruned else 0.0


def _finish(mode: str, size_model: SizeModel, target: Target, lmbda: float | None, plans: dict[str, LayerPlan]) -> Plan:
    analysis = size_model.analysis
    repeats = analysis.repeats
    distinct = [layer for name, layer in plans.items() if name not in repeats or layer != plans[repeats[name]]]
    codes = sum(layer.bits * layer.count for layer in distinct) / 8.0
    predicted = round(size_model.fixed_bytes + codes)
    dense, exact = analysis.dense_bytes, analysis.exact
    return Plan(mode, target, analysis.auxiliary, lmbda, dense, predicted, plans, exact, size_model.speed)
