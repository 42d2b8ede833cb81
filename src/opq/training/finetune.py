"""From a dense network, or a file, to a trained one in a file of the asked size."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Unpack

import numpy as np
import torch
from torch import nn

from opq import torch as face
from opq.calibration.calibrate import Calibration
from opq.checkpoints.open import epsilons_of
from opq.checkpoints.state import TensorState
from opq.compression.compress import CompressedModel, compress
from opq.config import CompressionOptions, Target
from opq.errors import PlanError, TargetError, TrainingError
from opq.progress import progress_bar
from opq.rate_distortion.plan import Plan
from opq.training.batches import Loader
from opq.training.bn_statistics import refresh_batch_norm, restore_statistics
from opq.training.budget.code_reduction import CodeReduction, reduce_codes, section_bytes
from opq.training.budget.controller import BudgetController
from opq.training.config import TrainingConfig
from opq.training.device import device_of, to_contiguous
from opq.training.fingerprint import fingerprint, run_arguments
from opq.training.initialization import Start, begin, mask_update_epochs_of
from opq.training.prepared_model import codebooks, convert, current_codes, fixed_layers, plain_state_dict, restore_on_failure
from opq.training.run_folder import FILE, RunFolder
from opq.training.trainer import Progress, Row, Teacher, Training, seed_everything

if TYPE_CHECKING:
    from accelerate import Accelerator

_MOST_ROUNDS = 8
_STORED = {"auxiliary", "batch_norm", "batch_norm_eps"}


@dataclass(frozen=True)
class FinetuneResult:
    """A finetuned network.

    compressed     the file, and the plan that it began with, whose steps it has
    budget         most bytes that the file was to have; None where nothing was asked
    trained_bytes  bytes that the file would have had as training left it
    fit            what it took to come from there into the budget
    history        a row an epoch: epoch, loss, seconds, and what `watch` gave
    """

    compressed: CompressedModel
    budget: int | None
    trained_bytes: int
    fit: CodeReduction
    history: tuple[Row, ...]

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write the file; see `Compressed.save`."""
        self.compressed.save(path, overwrite=overwrite)

    def __str__(self) -> str:
        """The size, what was asked, and what it took."""
        size = f"{self.compressed.file_bytes:,} bytes, file ratio {self.compressed.file_ratio:.2f}"
        if self.budget is None:
            return size
        under = 100.0 * (1.0 - self.compressed.file_bytes / self.budget)
        took = f"{self.fit.lowered:,} of {self.fit.num_kept:,} kept codes lowered, from {self.trained_bytes:,} bytes"
        return f"{size}, {under:.2f}% under the {self.budget:,} asked for; {took if self.fit.lowered else 'as trained'}"


def finetune(
    model: nn.Module,
    loader: Loader,
    *,
    epochs: int,
    start: Start | None = None,
    teacher: Teacher | Literal["dense"] | None = None,
    recipe: TrainingConfig | None = None,
    calibration: Calibration | None = None,
    reserve: float = 0.07,
    mask_update_epochs: int | None = None,
    budget: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
    watch: Callable[[nn.Module], Row] | None = None,
    accelerator: Accelerator | None = None,
    progress: Progress | bool = True,
    metadata: Mapping[str, str] | None = None,
    **options: Unpack[CompressionOptions],
) -> FinetuneResult:
    """Train the weights of `model` with the steps of a plan, and its masks or better ones, into a file of the asked size.

    model      on the device to train on; a dense one, or one that is prepared already. Afterwards it holds what the file holds.
               All modules are in training mode meanwhile; parameters that want no gradient keep their values but for rounding
    loader     batches: inputs, or (inputs, labels), or mappings of keyword arguments with "labels"; it has a length
    start      a plan, or a .opq file, whose masks and steps are kept; or None, to plan with `options`
    teacher    gives logits to learn from; then labels are not needed. "dense", or `model` itself, stands for the network as it
               comes; another is put onto the device, and into evaluation mode
    recipe     how to train; by default `Recipe()`
    calibration  of `model`: masks, steps and first values are those of `Calibration.compress` at the target that `options` ask
               for, a ratio or a size; the better start where few inputs follow. Without it they come from the weights
    reserve    share of the budget that a plan made here leaves to codes, which spread while they train
    open_epochs  how many of the first epochs leave open which weights are pruned: those under a multiple of the plan's rounding
               borders that keeps the file within its bytes, so that some come back where training needs them. By default two
               thirds where a plan for bytes is made here; a given plan opens only when asked. Never open are masks of a
               file, a calibration, a prepared network, the paper's mode, shaped rounding, or overrides of sparsity or bits
    budget     most bytes of the file; by default what `options` ask for where they make a plan, what the given plan was
               asked for, or the size of the file
    folder     where arguments, plan, history and checkpoints go; a run that was interrupted goes on from there, and a run of
               other arguments or of another network is refused (SourceError)
    seed       of everything drawn at random: the same seed, device and folder give the same bytes
    watch      called with the network after each epoch; what it returns goes into the history
    accelerator  of Hugging Face Accelerate, to train in many processes
    progress   whether to show a bar where stderr is a terminal; or called after each step with what is done, how many steps of
               it are finished, and how many there are
    metadata   {text: text} to keep in the file
    options    a target and what is fixed, as for `opq.plan`
    Raises what `opq.prepare` and `opq.compress` raise, RecipeError when training fails, and TargetError when the budget leaves
    no byte to codes, or the trained codes cannot be brought into it. A dense network that fails, or is interrupted, is dense
    again, with the values that it came with.
    """
    if epochs < 0:
        raise TrainingError(f"epochs must be 0 or more, got {epochs}")
    recipe = recipe or TrainingConfig()
    opened = mask_update_epochs_of(mask_update_epochs, epochs, model, start, calibration, budget, options)
    if codebooks(model) or start is not None:
        allowed = set() if isinstance(start, Plan) else _STORED
        if others := sorted(set(options) - allowed):
            raise TargetError(f"masks and steps are fixed already: leave {others[0]} out, and say the bytes as budget")
    if teacher == "dense" or teacher is model:
        if codebooks(model):
            raise TrainingError("the network is prepared already; give its dense form as the teacher")
        teacher = copy.deepcopy(model).eval().requires_grad_(False)
    if calibration is not None and not codebooks(model) and fingerprint(calibration.model) != fingerprint(model):
        raise PlanError("the calibration is of another network, or of this one with other values; calibrate it as it is now")
    leads = accelerator is None or accelerator.is_main_process
    run = RunFolder(folder) if folder is not None else None
    if run is not None:
        plain = {"epochs": epochs, "open_epochs": opened, "budget": budget, "reserve": reserve, "seed": seed}
        declared = {**plain, "recipe": recipe.described()}
        run.claim(
            run_arguments(model, loader, start, teacher, calibration is not None, options, declared, accelerator), write=leads
        )
    own = None if isinstance(progress, bool) else progress
    with restore_on_failure(model), progress_bar() if progress is True and leads else nullcontext(own) as report:
        plan = begin(model, start, calibration, reserve, run, accelerator, options)
        seed_everything(seed, epochs, loader)
        restore_statistics(model, loader, device_of(model))
        if run is not None and leads:
            run.write_plan(plan)
        if budget is None:
            budget = Target(dict(plan.target)).budget(plan.dense_bytes)
        controller = None
        if budget is not None:
            controller = BudgetController(
                model, _room(model, plan, budget, metadata or {}, accelerator), opened / max(epochs, 1)
            )
        history = Training(model, loader, epochs, recipe, teacher, seed, run, controller, watch, accelerator, report).run()
        seed_everything(seed, epochs, loader)
        finetuned = _finish(model, loader, plan, budget, metadata or {}, tuple(history))
    if run is not None and leads:
        finetuned.save(run.path / FILE)
    return finetuned


def _room(model: nn.Module, plan: Plan, budget: int, metadata: Mapping[str, str], accelerator: Accelerator | None) -> int:
    """Bytes of the budget that the sections of a prepared network's weights may take, the same in all processes."""
    codes = current_codes(codebooks(model))
    room = budget - _pack(model, plan, metadata).file_bytes + section_bytes(codes)
    if accelerator is not None:
        from accelerate.utils import broadcast

        room = int(broadcast(torch.tensor(room, device=accelerator.device), from_process=0))
    if room <= 0:
        beside = budget - room
        raise TargetError(f"a file of {budget:,} bytes was asked for; it takes {beside:,} beside its codes: ask for more")
    return room


def _finish(
    model: nn.Module, loader: Loader, plan: Plan, budget: int | None, metadata: Mapping[str, str], history: tuple[Row, ...]
) -> FinetuneResult:
    """The file of a trained, prepared `model`, within the budget; the model converted, and as the file has it."""
    device = device_of(model)
    weights = codebooks(model)
    codes = current_codes(weights)
    compressed = _pack(model, plan, metadata)
    trained_bytes = compressed.file_bytes
    fit = CodeReduction(0, sum(int(np.count_nonzero(array)) for array in codes))
    latent = [weight.latent.detach().clone() for weight in weights]
    room = float(budget - trained_bytes + section_bytes(codes)) if budget is not None else math.inf
    for _ in range(_MOST_ROUNDS):
        if budget is None or compressed.file_bytes <= budget:
            break
        with torch.no_grad():
            for weight, values in zip(weights, latent, strict=True):
                weight.latent.copy_(values)
        fit = reduce_codes(model, room)
        refresh_batch_norm(model, loader, device)
        compressed = _pack(model, plan, metadata)
        room -= compressed.file_bytes - budget + 2  # batch-norm and the header may have grown by a few bytes
    if budget is not None and compressed.file_bytes > budget:
        raise TargetError(f"the file takes {compressed.file_bytes:,} bytes, {budget:,} were asked for; leave a larger reserve")
    convert(model)
    to_contiguous(model)
    model.load_state_dict(face.load(compressed.data, device))
    return FinetuneResult(compressed, budget, trained_bytes, fit, history)


def _pack(model: nn.Module, plan: Plan, metadata: Mapping[str, str]) -> CompressedModel:
    """The file of a prepared network, under its own plan."""
    source = TensorState(plain_state_dict(model), metadata, epsilons_of(model))
    followed = compress(source, plan=replace(plan, layers=fixed_layers(model)))
    return replace(followed, plan=plan)
