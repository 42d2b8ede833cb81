"""Initialize a finetuning: masks and steps from a config, a plan, a file or a calibration."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from torch import nn

from opq.calibration.calibrate import Calibration
from opq.codec.file_reader import OpqFile
from opq.config import CompressionConfig, TwoStage
from opq.errors import PlanError
from opq.progress import Progress
from opq.rate_distortion.plan import Plan
from opq.training.attach import prepared_weights
from opq.training.config import TrainingConfig
from opq.training.prepared_model import PreparedModel, Start, prepare
from opq.training.run_folder import RunFolder
from opq.training.training_plan import byte_budget, calibrated_file, why_masks_are_fixed

if TYPE_CHECKING:
    from accelerate import Accelerator


def initialize(
    model: nn.Module,
    start: Start | None,
    training: TrainingConfig,
    *,
    calibration: Calibration | None,
    run: RunFolder | None,
    accelerator: Accelerator | None,
    report: Progress,
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
        report: Called after each step.

    Returns:
        The prepared network.

    Raises:
        TargetError: The target is lossless, malformed or out of reach.
        PlanError, SourceError, FormatError, ConfigError, SelectionError, WeightError: See `opq.prepare`.
    """
    if not isinstance(start, CompressionConfig):
        return prepare(model, start, reserve=0.0)
    if calibration is not None:
        return _from_calibration(model, calibration, start, training, run, accelerator, report)
    kept = run.plan() if run is not None else None
    if kept is not None:
        return prepare(model, kept, reserve=0.0)
    return prepare(model, start, reserve=training.reserve, progress=report)


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
        no_budget = "the plan has no byte target; give a budget" if (budget or start.budget) is None else None
        return why_masks_are_fixed(start) or no_budget
    if calibration is not None or not isinstance(start, CompressionConfig):
        return "the masks of a file or a calibration are kept"
    if isinstance(start.target, TwoStage):
        return "a two-stage target of sparsity and bits fixes the masks"
    if start.rounding in ("compensated", "trellis"):
        return f"{start.rounding} rounding leaves no weights between codes"
    if any(layer.sparsity is not None or layer.bits is not None for layer in start.layers.values()):
        return "a layer config fixes how many weights are pruned"
    return None


def _from_calibration(
    model: nn.Module,
    calibration: Calibration,
    config: CompressionConfig,
    training: TrainingConfig,
    run: RunFolder | None,
    accelerator: Accelerator | None,
    report: Progress,
) -> PreparedModel:
    """Prepare `model` with masks, steps and values of the calibrated file, which one process makes and the run folder keeps."""
    budget = byte_budget(model, config)
    kept = run.start() if run is not None else None
    if kept is not None:
        return prepare(model, kept, budget=budget)
    data: list[bytes | None] = [None]
    if leads := accelerator is None or accelerator.is_main_process:
        data = [calibrated_file(model, calibration, config, training.reserve, report)]
    if accelerator is not None:
        from accelerate.utils import broadcast_object_list

        data = broadcast_object_list(data)
    file = data[0] or b""
    if run is not None and leads:
        run.write_start(file)
    return prepare(model, file, budget=budget)
