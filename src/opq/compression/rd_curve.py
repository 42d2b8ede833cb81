"""The whole curve of ratio against error, from one look at the weights: a target can be picked before anything is paid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from opq.compression.analysis import analyze
from opq.compression.planning import joint_plan
from opq.compression.size_model import SizeModel
from opq.config import CompressionConfig, CompressionOptions, Ratio, without_target
from opq.errors import TargetError
from opq.quantization.rounding import ROUNDINGS, magnitude_levels
from opq.rate_distortion import joint
from opq.rate_distortion.layers import Layer
from opq.rate_distortion.plan import Plan

RATIOS = (4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 32.0, 40.0, 50.0)
"""File ratios at which the curve is given, where they can be reached."""

_SAMPLED = 4096


@dataclass(frozen=True)
class RDPoint:
    """One size of the file, as the joint mode would make it.

    ratio            dense bytes over predicted bytes of the whole file
    bytes            the same as bytes
    bits_per_weight  predicted bits of the codes, mean over all weights
    sparsity         predicted fraction of zeros, 0..1
    distortion       sensitivity-weighted squared error over sensitivity-weighted energy, of the measured magnitudes, 0..1
    """

    ratio: float
    bytes: int
    bits_per_weight: float
    sparsity: float
    distortion: float


def rd_curve(source: Any, *, ratios: Sequence[float] = RATIOS, **options: Unpack[CompressionOptions]) -> list[RDPoint]:
    """Predict the file at each of `ratios`, in joint mode; those that cannot be reached are left out.

    Args:
        source: As in `opq.plan`.
        ratios: File ratios, > 0.
        options: The fields of a config as keywords, without a target.

    Raises:
        TargetError: A target is given, or no ratio can be reached.
        ConfigError, SelectionError, SourceError, WeightError: See `opq.plan`.
    """
    settings = without_target(options, "rd_curve", "the curve covers all sizes")
    if not all(0.0 < ratio < math.inf for ratio in ratios):
        raise TargetError(f"ratios must be positive and finite, got {tuple(ratios)}")
    target = Ratio(1.0)
    config = CompressionConfig(target=target, **settings)
    analysis = analyze(source, config, estimated=True)
    size_model = SizeModel.of(analysis, config)
    layers = size_model.layers
    low, high = joint.lambda_bounds(layers, size_model.family)
    points = []
    for ratio in sorted(ratios):
        size = analysis.dense_bytes / ratio
        if size <= analysis.fixed_bytes:
            break
        # Contexts save differently at each size; a forecast that looked near it knows.
        near = size_model.guessed(joint_plan(size_model, target, size_model.rough_lambda(size)).layers)
        lmbda = near.lambda_for(size)
        if not low * (1.0 + 1e-9) < lmbda < high * (1.0 - 1e-9):
            continue
        plan = joint_plan(near, target, lmbda)
        weights = sum(layer.count for layer in plan.layers.values())
        points.append(
            RDPoint(
                ratio=plan.predicted_ratio,
                bytes=plan.predicted_bytes,
                bits_per_weight=8.0 * (plan.predicted_bytes - analysis.fixed_bytes) / weights,
                sparsity=plan.sparsity,
                distortion=_distortion(layers, plan),
            )
        )
    if not points:
        raise TargetError("no ratio of the curve can be reached; give others")
    return points


def _distortion(layers: Sequence[Layer], plan: Plan) -> float:
    """Of the measured magnitudes."""
    error = energy = 0.0
    for layer in layers:
        measured, made = layer.statistics, plan.layers[layer.name]
        sample = measured.magnitudes[:: max(len(measured.magnitudes) // _SAMPLED, 1)].astype(np.float64)
        levels = np.where(
            sample > made.threshold,
            np.maximum(magnitude_levels(sample, np.float64(made.step), np.float64(made.rounding_offset)), 1.0),
            0.0,
        )
        worth = layer.sensitivity * measured.count / len(sample)
        more = ROUNDINGS[made.rounding].squared_error_factor(measured.shape)
        error += worth * more * float(np.square(sample - made.step * levels).sum())
        energy += worth * float(np.square(sample).sum())
    return min(error / energy, 1.0) if energy > 0.0 else 0.0
