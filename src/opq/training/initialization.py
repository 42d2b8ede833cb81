"""What a training starts from: a network with masks and steps, and the plan that says which."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from opq.calibration.calibrate import Calibration
from opq.checkpoints import as_state
from opq.checkpoints.open import epsilons_of
from opq.checkpoints.state import TensorState
from opq.codec.auxiliary import asked_storage
from opq.codec.file_reader import OpqFile
from opq.compression.analysis import auxiliary_of, choose_weights, dense_bytes
from opq.compression.compress import CompressedModel, compress
from opq.compression.planning import plan as make_plan
from opq.config import CompressionOptions, Target, read_target
from opq.errors import PlanError, TargetError, TrainingError
from opq.rate_distortion.layers import LayerConfig
from opq.rate_distortion.plan import Plan
from opq.training.bn_statistics import is_canonical
from opq.training.prepared_model import codebooks, fixed_layers, for_training, plain_state_dict, prepare
from opq.training.run_folder import RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

Start = Plan | OpqFile | str | os.PathLike[str] | bytes


def begin(
    model: nn.Module,
    start: Start | None,
    calibration: Calibration | None,
    reserve: float,
    run: RunFolder | None,
    accelerator: Accelerator | None,
    options: CompressionOptions,
) -> Plan:
    """Prepare `model` where it is not; the plan, with the target that was asked for. Arguments are those of `finetune`.

    A run that began before has kept what it began with, whatever would be made today.
    """
    if not 0.0 <= reserve < 1.0:
        raise TrainingError(f"reserve must lie in [0, 1), got {reserve}")
    if calibration is not None and (start is not None or codebooks(model)):
        raise PlanError("masks and steps are fixed already: leave the calibration out")
    if codebooks(model):
        if start is not None:
            raise PlanError("the network is prepared already; convert it first, or give no other start")
        return _plan_of(model, options, {})
    given = start if isinstance(start, Plan) else None
    known = (run.plan() if run is not None and (start is None or given is not None) else None) or given
    if calibration is not None:
        return _from_calibration(model, calibration, reserve, run, known, accelerator, options)
    if known is not None:
        prepare(model, known)
        return known
    if start is not None and not isinstance(start, Plan):
        with opened(start) as file:
            prepare(model, file)
            stored = CompressionOptions(auxiliary=asked_storage(file.entries))
            return _plan_of(model, {**stored, **options}, {"bytes": file.file_bytes})
    target = read_target(options)
    narrower = _with_reserve(model, reserve, options)
    plan = make_plan(model, **options) if narrower is None else _plan_in(compress(model, **for_training(narrower)))
    plan = replace(plan, target=target.asked)
    prepare(model, plan)
    return plan


def mask_update_epochs_of(
    asked: int | None,
    epochs: int,
    model: nn.Module,
    start: Start | None,
    calibration: Calibration | None,
    budget: int | None,
    options: CompressionOptions,
) -> int:
    """How many of the first `epochs` leave masks open: as many as asked, by default two thirds where the plan is made here.

    Raises RecipeError for a number out of range, PlanError where masks cannot be open.
    """
    fixed = _why_fixed(model, start, calibration, budget, options)
    if asked is None:
        return 0 if fixed or start is not None else 2 * epochs // 3
    if asked and not 0 < asked < epochs:
        raise TrainingError(f"open_epochs must be 0 or more and less than the {epochs} epochs, got {asked}")
    if asked and fixed:
        raise PlanError(f"no epoch can leave masks open: {fixed}")
    return asked


def _why_fixed(
    model: nn.Module, start: Start | None, calibration: Calibration | None, budget: int | None, options: CompressionOptions
) -> str | None:
    """Why masks are fixed from the start; None where they need not be.

    Values that are rounded already leave nothing for a border to part: all codes of 1 would go together.
    """
    if codebooks(model):
        return "the network is prepared already"
    if isinstance(start, Plan):
        return _why_plan_is_fixed(start, budget)
    if start is not None or calibration is not None:
        return "the file's are kept"
    if "sparsity" in read_target(options).asked:
        return "the paper's mode fixes them"
    if options.get("rounding") == "shaped":
        return "rounding is shaped, and leaves no weight between its codes"
    overrides = options.get("overrides", {})
    declared = isinstance(overrides, Mapping) and any(map(_tells_zeros, overrides.values()))
    return "an override says how many weights of a layer to prune" if declared else None


def _why_plan_is_fixed(plan: Plan, budget: int | None) -> str | None:
    if plan.mode == "paper":
        return "the paper's mode fixes them"
    if any(layer.shaped for layer in plan.layers.values()):
        return "the plan's rounding is shaped, and leaves no weight between its codes"
    if any(layer.num_kept is not None for layer in plan.layers.values()):
        return "the plan says how many weights of a layer to keep"
    asked = budget or Target(dict(plan.target)).budget(plan.dense_bytes)
    return None if asked is not None else "the plan was asked for no bytes to hold them to; give a budget"


def _tells_zeros(override: object) -> bool:
    fields = vars(override) if isinstance(override, LayerConfig) else override  # what is neither is refused by the plan
    return isinstance(fields, Mapping) and any(fields.get(key) is not None for key in ("sparsity", "bits"))


def opened(start: OpqFile | str | os.PathLike[str] | bytes) -> AbstractContextManager[OpqFile]:
    """A file to read from; one that the caller opened stays open."""
    return nullcontext(start) if isinstance(start, OpqFile) else OpqFile(start)


def _from_calibration(
    model: nn.Module,
    calibration: Calibration,
    reserve: float,
    run: RunFolder | None,
    known: Plan | None,
    accelerator: Accelerator | None,
    options: CompressionOptions,
) -> Plan:
    """Prepare `model` with the calibrated file's masks, steps and values: one process makes it, a run keeps it."""
    kept = run.start() if run is not None and known is not None else None
    if known is not None and kept is not None:
        prepare(model, kept)
        return known
    made: list[bytes | None] = [None]
    if leads := accelerator is None or accelerator.is_main_process:
        made = [calibration.compress(**(_with_reserve(model, reserve, options) or options)).data]
    if accelerator is not None:
        from accelerate.utils import broadcast_object_list

        made = broadcast_object_list(made)
    data = made[0] or b""
    if run is not None and leads:
        run.write_start(data)
    prepare(model, data)
    return _plan_of(model, options, read_target(options).asked)


def _with_reserve(model: nn.Module, reserve: float, options: CompressionOptions) -> CompressionOptions | None:
    """The options with fewer bytes than asked for; None where they ask for no bytes."""
    state = as_state(model)
    asked = read_target(options).budget(dense_bytes(state, choose_weights(state, options)))
    if asked is None:
        return None
    narrower = options.copy()
    narrower.pop("ratio", None)
    narrower["size"] = max(math.floor(asked * (1.0 - reserve)), 1)
    return narrower


def _plan_in(made: CompressedModel) -> Plan:
    if made.plan is None:
        raise TargetError("finetuning needs masks and steps, and lossless makes none; give a ratio or a size")
    return made.plan


def _plan_of(model: nn.Module, options: CompressionOptions, target: Mapping[str, float]) -> Plan:
    """A plan for a network that is prepared: its masks and steps, and the form that its batch-norms have, are all there is."""
    form = "canonical" if any(is_canonical(module) for module in model.modules()) else "keep"
    source = TensorState(plain_state_dict(model), epsilons=epsilons_of(model))
    auxiliary = auxiliary_of(source, CompressionOptions(**{"batch_norm": form, **options}))
    plan = Plan("joint", target, auxiliary, None, 1, 1, fixed_layers(model))
    made = compress(source, plan=plan)
    return replace(plan, dense_bytes=made.dense_bytes, predicted_bytes=made.file_bytes)
