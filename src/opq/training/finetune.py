"""finetune: quantization-aware finetuning of a network into a file of the requested size."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal, Unpack

from torch import nn

from opq import torch as save_load
from opq.calibration.calibrate import Calibration
from opq.compression.compressed_model import CompressedModel
from opq.config import CompressionConfig, CompressionOptions, as_config, refuse_unknown
from opq.errors import PlanError, TrainingError
from opq.progress import Progress, logger, show_progress
from opq.text_table import html_text
from opq.training.attach import prepared_weights, restore_on_failure
from opq.training.batches import Loader
from opq.training.bn_statistics import restore_statistics
from opq.training.budget.code_reduction import CodeReduction
from opq.training.budget.controller import BudgetController
from opq.training.budget.scheduler import code_budget
from opq.training.config import TrainingConfig
from opq.training.device import device_of, to_contiguous
from opq.training.half_precision import half_dtypes
from opq.training.initialization import initialize, mask_update_epochs
from opq.training.measurement import Measurement, measure
from opq.training.objective import LossFunction, LossName, Objective
from opq.training.prepared_model import PreparedModel, Start
from opq.training.run_arguments import run_arguments
from opq.training.run_folder import FILE, RunFolder
from opq.training.trainer import Row, Teacher, Trainer, seed_everything
from opq.training.training_plan import check_calibration

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class FinetuneResult:
    """A finetuned network.

    Args:
        compressed: The file, with the plan that gave its steps.
        budget: Largest requested size of the file in bytes; None if no size was requested.
        trained_bytes: Size of the file at the end of training, before codes were lowered.
        reduction: Number of codes that were lowered to meet the budget.
        history: One row per epoch: "epoch", "loss" (mean over batches), "top1" (percent, if labels are classes), "seconds", and
            what `on_epoch_end` returned.
        before: Loss and metric of the network as it was given; None if they cannot be computed in evaluation mode.
        after: Those of the file, on the same batches.
    """

    compressed: CompressedModel
    budget: int | None
    trained_bytes: int
    reduction: CodeReduction
    history: tuple[Row, ...]
    before: Measurement | None = None
    after: Measurement | None = None

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write the file; see `CompressedModel.save`."""
        self.compressed.save(path, overwrite=overwrite)

    def __str__(self) -> str:
        """The size, the budget, the number of lowered codes, and loss and metric before and after."""
        change = f"; before: {self.before}; after: {self.after}" if self.before and self.after else ""
        return self._size() + change

    def _size(self) -> str:
        if self.budget is None:
            return str(self.compressed)
        under = 100.0 * (1.0 - self.compressed.file_bytes / self.budget)
        lowered = f"{self.reduction.lowered:,} of {self.reduction.num_kept:,} kept codes were lowered to meet it"
        reduced = lowered if self.reduction.lowered else "no code had to be lowered"
        return f"{self.compressed}; {under:.2f}% under the budget of {self.budget:,} bytes, {reduced}"

    def __repr__(self) -> str:
        """The same, in brackets."""
        return f"<FinetuneResult: {self}>"

    def _repr_html_(self) -> str:
        return html_text(str(self))


def finetune(
    model: nn.Module | PreparedModel,
    loader: Loader,
    start: Start | None = None,
    training: TrainingConfig | None = None,
    *,
    loss: LossName | LossFunction | None = None,
    teacher: Teacher | Literal["dense"] | None = None,
    calibration: Calibration | None = None,
    validation: Loader | None = None,
    budget: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    on_epoch_end: Callable[[nn.Module], Row] | None = None,
    accelerator: Accelerator | None = None,
    progress: Progress | bool = True,
    metadata: Mapping[str, str] | None = None,
    loader_settings: Mapping[str, Any] | None = None,
    **options: Unpack[CompressionOptions],
) -> FinetuneResult:
    """Finetune a network whose weights stay in their codebooks, into a file of the requested size.

    Step sizes are fixed before training. Masks are recomputed in the first `mask_update_epochs` epochs and then fixed. All
    modules are in training mode during training, except batch norms whose weight and bias require no gradient, which stay as
    they are. Parameters that require no gradient are quantized but not trained. A network of half precision trains in float32.
    Afterwards the network is plain and holds the values of the file. If training fails or is interrupted, a dense network gets
    its original values back.

    Args:
        model: The network, on the device to train on; or a PreparedModel, then without `start`, `calibration` and `options`.
        loader: Batches: inputs, or (inputs, labels), or mappings of keyword arguments with "labels", "label", "targets" or
            "target", which the network gets too if it takes a keyword of that name. It has a length.
        start: A CompressionConfig, from which a plan is made; a plan; or a .opq file, whose masks and steps are kept. None to
            take the config from `options`.
        training: The training settings. Default: 10 epochs with the defaults of TrainingConfig.
        loss: "cross_entropy" of classes (n,) or of one class per token or pixel; "binary_cross_entropy" of several labels, with
            logits; "mse" of values; or a function (outputs of the network, batch) -> scalar, for any other task. None for the
            network's own loss if its outputs have `loss`, else the loss that fits outputs and labels; it is an error if several
            do, or none.
        teacher: Network or function from inputs to outputs, for distillation without labels. "dense", or `model` itself, is the
            network before training. Another network is moved to the device and put into evaluation mode. Classes and labels
            are distilled by the divergence at `TrainingConfig.temperature`, values by their squared error.
        calibration: A calibration of `model`. Masks, steps and initial values are then those of `Calibration.compress` at the
            target of the config, which helps if training is short. Without it they come from the weights alone.
        validation: Batches on which loss and metric are measured before and after. Default: up to 200 batches of `loader`.
        budget: Largest size of the file in bytes. Default: that of the target, or the size of the .opq file.
        folder: Folder for arguments, plan, history and checkpoints. An interrupted run resumes from it and gives the same bytes
            as an uninterrupted one. A finetuned network holds other values than before, so build it again to repeat a run.
        on_epoch_end: Called with the network after each epoch. It returns a mapping of JSON values for the history.
        accelerator: An Accelerator of Hugging Face Accelerate, to train in several processes.
        progress: Whether to show a progress bar if stderr is a terminal; or a function (stage, finished steps, all steps) that
            is called after each step.
        metadata: {text: text} to store in the file.
        loader_settings: JSON values that identify `loader`, such as its preprocessing, of which `folder` otherwise knows only
            the length: a folder that was created with others is refused.
        options: The fields of a CompressionConfig as keywords.

    Returns:
        The file, of at most `budget` bytes, and the history of the training.

    Raises:
        TrainingError: The loss becomes NaN or infinite, there is nothing to train or to learn from, the network fails on a
            batch, or no loss fits its outputs and labels.
        TargetError: The budget leaves no bytes for codes, or the trained codes cannot be reduced to it.
        SourceError: `folder` was created with different arguments, or a file cannot be read.
        PlanError: The plan or the calibration was not made for this network, or `mask_update_epochs` must be 0.
        ConfigError, SelectionError, WeightError, FormatError: See `opq.prepare`.
    """
    training = training or TrainingConfig(epochs=10)
    prepared = model if isinstance(model, PreparedModel) else None
    network: nn.Module = model.model if isinstance(model, PreparedModel) else model
    _check_arguments(network, prepared, start, training, teacher, calibration, options)
    if prepared is None and start is None:
        start = as_config(None, options, "finetune")
    update_epochs = mask_update_epochs(network, start, training, calibration, budget)
    if teacher == "dense" or teacher is network:
        if prepared is not None:
            raise TrainingError(
                'teacher must not be "dense", because the network is prepared already; give its dense form as the teacher'
            )
        teacher = _in_float32(copy.deepcopy(network)).requires_grad_(False)
    if isinstance(teacher, nn.Module):
        teacher.to(device_of(network)).eval()
    leads = accelerator is None or accelerator.is_main_process
    run = RunFolder(folder) if folder is not None else None
    if run is not None:
        arguments = run_arguments(
            network,
            loader,
            start,
            training,
            teacher=teacher,
            loss=loss,
            calibrated=calibration is not None,
            budget=budget,
            accelerator=accelerator,
            loader_settings=loader_settings,
        )
        run.claim(arguments, write=leads)
        if accelerator is not None:
            accelerator.wait_for_everyone()  # the plan of other arguments is gone before any process looks for it
    objective = Objective(loss, training.label_weight, training.temperature)
    taught_by = None if isinstance(teacher, str) else teacher
    with restore_on_failure(network), show_progress(progress if leads or callable(progress) else False) as report:
        seed_everything(training.seed, training.epochs, loader)
        measured_on = loader if validation is None else validation
        before = measure(_in_float32(network), measured_on, objective, taught_by, report)
        if before is not None and leads:
            logger.info("before: %s", before)
        if prepared is None:
            prepared = initialize(
                network, start, training, calibration=calibration, run=run, accelerator=accelerator, report=report
            )
        prepared = replace(
            prepared,
            budget=prepared.budget if budget is None else budget,
            metadata={**prepared.metadata, **(metadata or {})},
        ).in_float32()
        seed_everything(training.seed, training.epochs, loader)
        restore_statistics(network, loader, device_of(network))
        if run is not None and leads and prepared.plan is not None:
            run.write_plan(prepared.plan)
        controller = None
        if prepared.budget is not None:
            controller = BudgetController(network, code_budget(prepared), update_epochs / training.epochs)
        trainer = Trainer(network, loader, training, teacher, run, controller, on_epoch_end, accelerator, report, loss)
        history = tuple(trainer.run())
        seed_everything(training.seed, training.epochs, loader)
        compressed, trained_bytes, reduction = prepared.export_with_report(loader, progress=report)
        prepared.convert()
        to_contiguous(network)
        network.load_state_dict(save_load.load(compressed.data, device_of(network)))
        seed_everything(training.seed, training.epochs, loader)
        after = measure(_in_float32(network), measured_on, objective, taught_by, report)
    result = FinetuneResult(compressed, prepared.budget, trained_bytes, reduction, history, before, after)
    if run is not None and leads:
        result.save(run.path / FILE)
    return result


def _in_float32(network: nn.Module) -> nn.Module:
    """The network, or a copy in float32 if it has tensors in half precision."""
    return copy.deepcopy(network).float() if half_dtypes(network) else network


def _check_arguments(
    network: nn.Module,
    prepared: PreparedModel | None,
    start: Start | None,
    training: TrainingConfig,
    teacher: Teacher | Literal["dense"] | None,
    calibration: Calibration | None,
    options: CompressionOptions,
) -> None:
    if not isinstance(network, nn.Module):
        raise TypeError(f"finetune() takes a torch module or a PreparedModel, got {type(network).__name__}")
    if not isinstance(training, TrainingConfig):
        raise TypeError(f"finetune() takes a TrainingConfig as training, got {type(training).__name__}")
    if calibration is not None and not hasattr(calibration, "compress"):
        raise TypeError(f"finetune() takes what opq.calibrate returned as calibration, got {type(calibration).__name__}")
    if teacher is not None and teacher != "dense" and not callable(teacher):
        raise TypeError(f'finetune() takes a network, a function or "dense" as teacher, got {teacher!r}')
    if prepared is None and prepared_weights(network):
        raise PlanError("the network is prepared already; give what opq.prepare returned as model")
    refuse_unknown("finetune", options, [*list(signature(finetune).parameters)[:-1], *CompressionOptions.__annotations__])
    if start is not None and options:
        raise TypeError(f"finetune() takes a start or keywords, got both a start and {min(options)!r}")
    if prepared is not None and (start is not None or calibration is not None):
        raise PlanError("a PreparedModel has masks and steps already; leave start and calibration out")
    if prepared is not None and options:
        raise PlanError(f"a PreparedModel has masks and steps already; leave {min(options)} out")
    if prepared is None and calibration is not None:
        check_calibration(network, calibration)
    if calibration is not None and start is not None and not isinstance(start, CompressionConfig):
        raise PlanError("a plan or a .opq file has masks and steps already; leave the calibration out")
