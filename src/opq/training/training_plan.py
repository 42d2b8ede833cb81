"""Plans for training: element-wise rounding, and a file that is smaller than the target by a reserve."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from opq.calibration.calibrate import Calibration
from opq.checkpoints import as_state
from opq.compression.analysis import choose_roles, dense_bytes
from opq.compression.compress import compress
from opq.compression.planning import plan as make_plan
from opq.config import CompressionConfig, Lossless, Size
from opq.errors import PlanError, TargetError
from opq.progress import Progress, no_progress
from opq.quantization.rounding import ROUNDINGS
from opq.rate_distortion.plan import Plan
from opq.training.fingerprint import fingerprint


def training_plan(model: nn.Module, config: CompressionConfig, reserve: float, report: Progress = no_progress) -> Plan:
    """Make the plan of a training.

    Rounding "auto" is "deadzone", because training rounds each weight alone.

    Args:
        model: The network.
        config: The settings. A byte target is that of the trained file.
        reserve: Share of a byte target, 0 <= reserve < 1, that the plan leaves free, because the entropy of codes grows in
            training.
        report: Called after each step.

    Returns:
        The plan, with the target of `config`.

    Raises:
        TargetError: The target is lossless, or out of reach.
        SourceError, SelectionError, WeightError: See `opq.plan`.
    """
    if isinstance(config.target, Lossless):
        raise TargetError("target must not be lossless, because it gives neither masks nor steps; give a ratio or a size")
    if byte_budget(model, config) is None:
        return make_plan(model, config, progress=report)
    reduced = with_reserve(model, config, reserve)
    if reduced.rounding == "auto":
        reduced = replace(reduced, rounding="deadzone")
    plan = compress(model, reduced, progress=report).plan
    if plan is None:
        raise PlanError("compression made no plan; give a ratio or a size as target")
    return replace(plan, target=config.target)


def calibrated_file(
    model: nn.Module,
    calibration: Calibration,
    config: CompressionConfig,
    reserve: float,
    report: Progress = no_progress,
) -> bytes:
    """The calibrated file from which a training starts, smaller than the target of `config` by `reserve`.

    Raises:
        PlanError: The calibration is of another network.
    """
    check_calibration(model, calibration)
    return calibration.compress(with_reserve(model, config, reserve), progress=report).data


def check_calibration(model: nn.Module, calibration: Calibration) -> None:
    """Check that a calibration is of `model` as it is now.

    Raises:
        PlanError: It is not.
    """
    if fingerprint(calibration.model) != fingerprint(model):
        raise PlanError("the calibration is of another network, or of this one with other values; calibrate it again")


def byte_budget(model: nn.Module, config: CompressionConfig) -> int | None:
    """Largest size of the file in bytes; None if the target is not in bytes."""
    state = as_state(model)
    return config.budget(dense_bytes(state, choose_roles(state, config).weights))


def with_reserve(model: nn.Module, config: CompressionConfig, reserve: float) -> CompressionConfig:
    """The config with a byte target reduced by `reserve`; the same config if its target is not in bytes."""
    requested = byte_budget(model, config)
    if requested is None:
        return config
    return replace(config, target=Size(max(math.floor(requested * (1.0 - reserve)), 1)))


def why_masks_are_fixed(plan: Plan) -> str | None:
    """The reason why the masks of a plan are fixed from the start of a training; None if they can be recomputed.

    A threshold cannot separate values that are already quantized, since none lies between their codes.
    """
    if plan.mode == "two_stage":
        return "a two-stage target of sparsity and bits fixes the masks"
    if any(not ROUNDINGS[layer.rounding].is_elementwise for layer in plan.layers.values()):
        return "the plan's compensated or trellis rounding leaves no weights between codes"
    if any(layer.num_kept is not None for layer in plan.layers.values()):
        return "the plan fixes how many weights of a layer are kept"
    return None
