"""Initialize a finetuning: masks and steps from a config, a plan, a file or a calibration."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from opq.calibration.calibrate import Calibration
from opq.checkpoints import as_state
from opq.codec.file_reader import OpqFile
from opq.compression.analysis import choose_roles, dense_bytes
from opq.compression.compress import compress
from opq.compression.planning import plan as make_plan
from opq.config import CompressionConfig, Lossless, Size, TwoStage
from opq.errors import PlanError, TargetError
from opq.quantization.rounding import ROUNDINGS
from opq.rate_distortion.plan import Plan
from opq.training.attach import prepared_weights
from opq.training.config import TrainingConfig
from opq.training.prepared_model import PreparedModel, Start, prepare
from opq.training.run_folder import RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator


def initialize(
    model: nn.Module,
    start: Start,
    training: TrainingConfig,
    *,
    calibration: Calibration | None,
    run: RunFolder | None,
    accelerator: Accelerator | None,
) -> PreparedModel:
    """Prepare `model` for a finetuning.

    A resumed run uses the plan or the file that its folder keeps.

    Args:
        model: The network; it is changed in place.
        start: As in `opq.finetune`.
        training: The training settings, for their `reserve`.
        calibration: As in `opq.finetune`.
        run: The folder of the run; None for none.
        accelerator: As in `opq.finetune`.

    Returns:
        The prepared network.

    Raises:
        TargetError: The target is lossless, malformed or out of reach.
        PlanError, SourceError, FormatError, ConfigError, SelectionError, WeightError: See `opq.prepare`.
    """
    if not isinstance(start, CompressionConfig):
        return prepare(model, start)
    kept = run.plan() if run is not None else None
    if calibration is not None:
        return _from_calibration(model, calibration, start, training, run, accelerator)
    if kept is not None:
        return prepare(model, kept)
    if isinstance(start.target, Lossless):
        raise TargetError("target must not be lossless, because it gives neither masks nor steps; give a ratio or a size")
    reduced = _with_reserve(model, training.reserve, start)
    plan = make_plan(model, start) if reduced is None else compress(model, _for_training(reduced)).plan
    if plan is None:
        raise PlanError("compression made no plan; give a ratio or a size as target")
    return prepare(model, replace(plan, target=start.target))


def mask_update_epochs(
    model: nn.Module, start: Start | None, training: TrainingConfig, calibration: Calibration | None, budget: int | None
) -> int:
    """Number of first epochs in which masks are recomputed: the requested one, or two thirds if the plan is made here.

    Args:
        model: The network, plain or prepared.
        start: As in `opq.finetune`.
        training: The training settings, with the requested number.
        calibration: As in `opq.finetune`.
        budget: Requested bytes of the file; None for the default.

    Raises:
        PlanError: It was requested, but masks cannot be recomputed.
    """
    fixed = _why_masks_are_fixed(model, start, calibration, budget)
    requested = training.mask_update_epochs
    if requested is None:
        return 0 if fixed or not isinstance(start, CompressionConfig) else 2 * training.epochs // 3
    if requested and fixed:
        raise PlanError(f"mask_update_epochs must be 0, because {fixed}")
    return requested


def opened(start: OpqFile | str | os.PathLike[str] | bytes) -> AbstractContextManager[OpqFile]:
    """Context of a .opq file; a file that the caller opened stays open."""
    return nullcontext(start) if isinstance(start, OpqFile) else OpqFile(start)


def _why_masks_are_fixed(
    model: nn.Module, start: Start | None, calibration: Calibration | None, budget: int | None
) -> str | None:
    """The reason why masks are fixed from the start; None if they can be recomputed.

    A threshold cannot separate values that are already quantized, since none lies between their codes.
    """
    if prepared_weights(model):
        return "the network is prepared already"
    if isinstance(start, Plan):
        return _why_plan_fixes_masks(start, budget)
    if calibration is not None or not isinstance(start, CompressionConfig):
        return "the masks of a file or a calibration are kept"
    if isinstance(start.target, TwoStage):
        return "a two-stage target of sparsity and bits fixes the masks"
    if start.rounding in ("compensated", "trellis"):
        return f"{start.rounding} rounding leaves no weights between codes"
    if any(layer.sparsity is not None or layer.bits is not None for layer in start.layers.values()):
        return "a layer config fixes how many weights are pruned"
    return None


def _why_plan_fixes_masks(plan: Plan, budget: int | None) -> str | None:
    if plan.mode == "two_stage":
        return "a two-stage target of sparsity and bits fixes the masks"
    if any(not ROUNDINGS[layer.rounding].is_elementwise for layer in plan.layers.values()):
        return "the plan's compensated or trellis rounding leaves no weights between codes"
    if any(layer.num_kept is not None for layer in plan.layers.values()):
        return "the plan fixes how many weights of a layer are kept"
    return "the plan has no byte target; give a budget" if (budget or plan.budget) is None else None


def _from_calibration(
    model: nn.Module,
    calibration: Calibration,
    config: CompressionConfig,
    training: TrainingConfig,
    run: RunFolder | None,
    accelerator: Accelerator | None,
) -> PreparedModel:
    """Prepare `model` with masks, steps and values of the calibrated file, which one process makes and the run folder keeps."""
    state = as_state(model)
    budget = config.budget(dense_bytes(state, choose_roles(state, config).weights))
    kept = run.start() if run is not None else None
    if kept is not None:
        return prepare(model, kept, budget=budget)
    data: list[bytes | None] = [None]
    if leads := accelerator is None or accelerator.is_main_process:
        data = [calibration.compress(_with_reserve(model, training.reserve, config) or config).data]
    if accelerator is not None:
        from accelerate.utils import broadcast_object_list

        data = broadcast_object_list(data)
    file = data[0] or b""
    if run is not None and leads:
        run.write_start(file)
    return prepare(model, file, budget=budget)


def _with_reserve(model: nn.Module, reserve: float, config: CompressionConfig) -> CompressionConfig | None:
    """The config with a target reduced by `reserve`; None if its target is not in bytes."""
    state = as_state(model)
    requested = config.budget(dense_bytes(state, choose_roles(state, config).weights))
    if requested is None:
        return None
    return replace(config, target=Size(max(math.floor(requested * (1.0 - reserve)), 1)))


def _for_training(config: CompressionConfig) -> CompressionConfig:
    """The config with dead-zone rounding instead of "auto", because training rounds each weight alone."""
    return replace(config, rounding="deadzone") if config.rounding == "auto" else config
