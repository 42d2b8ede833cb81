"""The rate-distortion curve of a checkpoint: ratio against error, from one pass over the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from opq.checkpoints import State, as_state
from opq.compression.analysis import analyze
from opq.compression.planning import joint_plan
from opq.compression.size_model import SizeModel
from opq.config import CompressionConfig, CompressionOptions, Ratio, without_target
from opq.errors import TargetError
from opq.progress import Progress, counted, show_progress
from opq.quantization.rounding import ROUNDINGS, magnitude_levels
from opq.rate_distortion import joint, trellis
from opq.rate_distortion.layers import Layer
from opq.rate_distortion.plan import Plan

RATIOS = (4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 32.0, 40.0, 50.0)
"""Default file ratios of the curve."""

_SAMPLE = 4096
"""Approximate number of magnitudes per weight from which the error is computed."""


@dataclass(frozen=True)
class RDPoint:
    """One point of the curve: the predicted file of joint mode at one size.

    Args:
        ratio: Dense bytes over predicted bytes of the whole file.
        bytes: Predicted bytes of the whole file.
        bits_per_weight: Predicted bits of the codes, mean over all weights.
        sparsity: Predicted fraction of zeros over all weights, 0..1.
        distortion: Squared error over energy, both weighted by sensitivity and by cost (`opq.rate_distortion.costs`), from a
            sample of magnitudes, 0..1; with scales those of weights over the factors of their rows.
    """

    ratio: float
    bytes: int
    bits_per_weight: float
    sparsity: float
    distortion: float


def rd_curve(
    source: Any,
    *,
    ratios: Sequence[float] = RATIOS,
    key: str | None = None,
    progress: Progress | bool = False,
    **options: Unpack[CompressionOptions],
) -> list[RDPoint]:
    """Predict the file at several ratios, in joint mode.

    Args:
        source: As in `opq.plan`.
        ratios: File ratios, > 0.
        key: As in `opq.plan`.
        progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each step.
        options: The fields of a config as keywords, without a target.

    Returns:
        One point per ratio that can be reached, in ascending order.

    Raises:
        TypeError: A keyword is unknown.
        TargetError: A target is given, or no ratio can be reached.
        ConfigError, SelectionError, SourceError, WeightError: See `opq.plan`.
    """
    settings = without_target(options, "rd_curve", "the curve covers all sizes")
    try:
        valid = all(0.0 < ratio < math.inf for ratio in ratios)
    except TypeError:
        valid = False
    if not valid:
        raise TargetError(f"ratios must be a list of positive and finite numbers, got {ratios!r}")
    config = CompressionConfig(target=Ratio(1.0), **settings)
    with show_progress(progress) as report:
        points = _points(as_state(source, key=key), config, sorted(ratios), report)
    if not points:
        raise TargetError(f"ratios must contain one that can be reached, got {tuple(ratios)}; choose others")
    return points


def _points(state: State, config: CompressionConfig, ratios: Sequence[float], report: Progress) -> list[RDPoint]:
    """The points of the ratios that can be reached."""
    analysis = analyze(state, config, estimated=True, report=report)
    size_model = SizeModel.of(analysis, config)
    layers = size_model.layers
    low, high = joint.lambda_bounds(layers, size_model.family)
    points = []
    for ratio in counted(ratios, report, "planning", len(ratios)):
        size = analysis.dense_bytes / ratio
        if size <= size_model.fixed_bytes:
            break
        # The gain of contexts depends on the size, so it is measured at each ratio.
        near = size_model.guessed(joint_plan(size_model, config.target, size_model.rough_lambda(size)).layers)
        lmbda = near.lambda_for(size)
        if not low * (1.0 + 1e-9) < lmbda < high * (1.0 - 1e-9):
            continue
        plan = joint_plan(near, config.target, lmbda)
        weights = sum(layer.count for layer in plan.layers.values())
        points.append(
            RDPoint(
                ratio=plan.predicted_ratio,
                bytes=plan.predicted_bytes,
                bits_per_weight=8.0 * (plan.predicted_bytes - size_model.fixed_bytes) / weights,
                sparsity=plan.sparsity,
                distortion=_distortion(layers, plan),
            )
        )
    return points


def _distortion(layers: Sequence[Layer], plan: Plan) -> float:
    """Weighted squared error over weighted energy, of a sample of magnitudes."""
    error = energy = 0.0
    for layer in layers:
        statistics, layer_plan = layer.statistics, plan.layers[layer.name]
        sample = statistics.magnitudes[:: max(len(statistics.magnitudes) // _SAMPLE, 1)].astype(np.float64)
        step, threshold = layer_plan.step, layer_plan.threshold
        if layer_plan.is_trellis:
            step = trellis.uniform_step(step, statistics.laplace_scale)
            threshold = 0.5 * step
        levels = np.where(
            sample > threshold,
            np.maximum(magnitude_levels(sample, np.float64(step), np.float64(layer_plan.rounding_offset)), 1.0),
            0.0,
        )
        weight = layer.sensitivity * statistics.count / len(sample)
        factor = ROUNDINGS[layer_plan.rounding].squared_error_factor(statistics.shape)
        error += weight * factor * float(np.square(sample - step * levels).sum())
        energy += weight * float(np.square(sample).sum())
    return min(error / energy, 1.0) if energy > 0.0 else 0.0
