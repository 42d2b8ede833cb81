"""Trainer: the training loop, for prepared and for plain networks."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from opq.errors import TrainingError
from opq.progress import Progress, logger
from opq.training.batches import Loader, forward, to_device
from opq.training.bn_statistics import refresh_batch_norm, to_training_mode
from opq.training.budget.controller import BudgetController
from opq.training.config import TrainingConfig
from opq.training.device import autocast, device_of, to_channels_last
from opq.training.objective import LossFunction, LossName, Objective
from opq.training.run_folder import RunFolder, plain_row

if TYPE_CHECKING:
    from accelerate import Accelerator

Teacher = Callable[[Any], Any]
"""inputs -> outputs: a network, or any function."""

Row = Mapping[str, Any]
"""Values of one epoch, by name."""


@dataclass
class Trainer:
    """The training of a network.

    Every epoch has its own seed, so that a run resumed from a checkpoint has the random numbers of an uninterrupted one.

    Args:
        model: The network, prepared or plain.
        loader: Batches. It has a length.
        config: The training settings.
        teacher: Gives the logits for distillation; None to train on labels alone.
        folder: Folder for checkpoints and history; None to write none.
        controller: Called after each step, with its state in checkpoints; None for none.
        on_epoch_end: Called with the network after each epoch. It returns more values for the history.
        accelerator: An Accelerator of Hugging Face Accelerate, for several processes; None for one process.
        progress: Called after each step.
        loss: The name of a loss, a function of outputs and batch, or None; see `opq.training.objective.Objective`.
    """

    model: nn.Module
    loader: Loader
    config: TrainingConfig
    teacher: Teacher | None = None
    folder: RunFolder | None = None
    controller: BudgetController | None = None
    on_epoch_end: Callable[[nn.Module], Row] | None = None
    accelerator: Accelerator | None = None
    progress: Progress | None = None
    loss: LossName | LossFunction | None = None

    def __post_init__(self) -> None:
        """Make the objective."""
        self.objective = Objective(self.loss, self.config.label_weight, self.config.temperature)

    def run(self) -> list[Row]:
        """Train for all epochs, from the folder's checkpoint if it has one. The network ends in evaluation mode.

        Returns:
            The history, one row per epoch.

        Raises:
            TrainingError: The loss becomes NaN or infinite, there is nothing to train or to learn from, the network fails on a
                batch, or no loss fits its outputs.
            SourceError: The checkpoint cannot be read.
        """
        if not _length(self.loader):
            raise TrainingError(
                "loader must have a length of at least one batch, because the schedule needs the number of steps"
            )
        to_channels_last(self.model)
        to_training_mode(self.model)
        device = self.accelerator.device if self.accelerator else device_of(self.model)
        if isinstance(self.teacher, nn.Module):
            self.teacher = self.teacher.to(device).eval()
            to_channels_last(self.teacher)
        optimizer = self.config.make_optimizer(self.model)
        network, loader = self.model, self.loader
        if self.accelerator:
            network, optimizer, loader = self.accelerator.prepare(self.model, optimizer, self.loader)
            if not _length(loader):
                raise TrainingError(
                    f"loader (={_length(self.loader)} batches) must have one per process, of {self.accelerator.num_processes}"
                )
        average = self._average()
        history: list[Row] = []
        if self.folder and (state := self.folder.load()):
            history = self._restore(state, optimizer, average)
            if self.accelerator is None or self.accelerator.is_main_process:
                done, whole = len(history), self.config.epochs
                what = f"resumes after epoch {done} of {whole}" if done < whole else "is finished already; its result is used"
                logger.info("the run in %s %s", self.folder.path, what)
        for epoch in range(len(history), self.config.epochs):
            start = time.perf_counter()
            seed_everything(self.config.seed, epoch, loader)
            result = self._epoch(epoch, network, loader, optimizer, average, device)
            row = {"epoch": epoch + 1, **result, "seconds": time.perf_counter() - start}
            leads = self.accelerator is None or self.accelerator.is_main_process
            history.append({**row, **(plain_row(self.on_epoch_end(self.model)) if self.on_epoch_end and leads else {})})
            if leads:
                metric = f", top-1 {row['top1']:.2f}%" if "top1" in row else ""
                logger.info("epoch %d of %d: loss %.4g%s", epoch + 1, self.config.epochs, row["loss"], metric)
            if self.folder and leads:
                self._save(self.folder, history, optimizer, average)
        if self.accelerator:
            self._share_statistics()
        if average is not None:
            with torch.no_grad():
                for parameter, mean in zip(self.model.parameters(), average.module.parameters(), strict=True):
                    parameter.copy_(mean)
            seed_everything(self.config.seed, self.config.epochs, self.loader)
            refresh_batch_norm(self.model, self.loader, device)
        self.model.eval()
        return history

    def _epoch(
        self,
        epoch: int,
        network: nn.Module,
        loader: Loader,
        optimizer: torch.optim.Optimizer,
        average: AveragedModel | None,
        device: torch.device,
    ) -> dict[str, float]:
        """Train for one pass over the loader, and return the mean loss of its batches, and the top-1 accuracy of classes."""
        to_training_mode(self.model)
        batches = len(cast(Sized, loader))
        total, counts = torch.zeros((), device=device), torch.zeros(2, dtype=torch.long, device=device)
        rates = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        for number, batch in enumerate(loader):
            share = self.config.rate_at(epoch * batches + number, self.config.epochs * batches)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share
            batch = to_device(batch, device)
            loss, outputs = self._loss(network, batch, device)
            if epoch == number == 0 and not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss of the first batch is {float(loss.detach())}; check inputs, labels and the loss function"
                )
            optimizer.zero_grad(set_to_none=True)
            if self.accelerator:
                self.accelerator.backward(loss)
            else:
                loss.backward()  # type: ignore[no-untyped-call]
            if self.config.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
            optimizer.step()
            if self.controller is not None:
                self.controller(epoch * batches + number, self.config.epochs * batches, share)
            if average is not None:
                average.update_parameters(self.model)
            total += loss.detach()
            counts += self.objective.correct(outputs, batch).to(device)
            if self.progress:
                self.progress(f"epoch {epoch + 1} of {self.config.epochs}", number + 1, batches)
        mean = float(total) / batches
        if not math.isfinite(mean):
            raise TrainingError(f"the loss became {mean} in epoch {epoch + 1}; lower the learning rate, or max_grad_norm")
        correct, labels = counts.tolist()
        return {"loss": mean} | ({"top1": 100.0 * correct / labels} if labels else {})

    def _loss(self, network: nn.Module, batch: Any, device: torch.device) -> tuple[Tensor, Any]:
        """The loss of a batch, and the outputs of the network."""
        with autocast(device):
            taught = None
            if self.teacher is not None:
                with torch.no_grad():
                    taught = forward(self.teacher, batch)
            outputs = forward(network, batch)
        return self.objective(outputs, batch, taught), outputs

    def _share_statistics(self) -> None:
        """Copy the batch-norm statistics of the first process to all, because each process has seen different batches."""
        from accelerate.utils import broadcast

        with torch.no_grad():
            for buffer in self.model.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(broadcast(buffer.clone(), from_process=0))

    def _average(self) -> AveragedModel | None:
        if self.config.ema_decay is None:
            return None
        return AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(self.config.ema_decay))  # type: ignore[no-untyped-call]

    def _save(
        self, folder: RunFolder, history: list[Row], optimizer: torch.optim.Optimizer, average: AveragedModel | None
    ) -> None:
        folder.save(
            {
                "model": self.model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.state_dict() if average is not None else None,
                "hold": self.controller.state() if self.controller is not None else None,
                "history": history,
            }
        )
        folder.write_history(history)

    def _restore(self, state: dict[str, Any], optimizer: torch.optim.Optimizer, average: AveragedModel | None) -> list[Row]:
        self.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
        if self.controller is not None:
            self.controller.restore(state["hold"])
        history: list[Row] = state["history"]
        return history


def seed_everything(seed: int, epoch: int, loader: Any) -> None:
    """Seed the random numbers of an epoch: Python's, NumPy's, torch's on all devices, and the loader's own generators.

    Args:
        seed: Seed of the run, >= 0.
        epoch: Number of the epoch, >= 0.
        loader: A loader, whose dataset and samplers may have generators too.
    """
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
    for source in _random_sources(loader):
        for name in ("generator", "synchronized_generator"):  # the latter is Accelerate's
            if isinstance(generator := getattr(source, name, None), torch.Generator):
                generator.manual_seed(mixed)
        if callable(begin := getattr(source, "set_epoch", None)):
            begin(epoch)


def _random_sources(loader: Any) -> list[Any]:
    """A loader, and its dataset and samplers, any of which may have a generator."""
    found: list[Any] = []
    waiting = [loader]
    while waiting:
        source = waiting.pop()
        if source is not None and all(source is not other for other in found):
            found.append(source)
            waiting += [getattr(source, name, None) for name in ("dataset", "sampler", "batch_sampler")]
    return found


def _length(loader: Loader) -> int:
    """Number of batches; 0 if the loader does not know it, as that of an iterable data set."""
    try:
        return len(cast(Sized, loader))
    except TypeError:
        return 0
