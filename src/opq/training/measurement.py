"""Loss and metric of a network on some batches, before and after a training."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from operator import length_hint

import torch
from torch import nn

from opq.progress import Progress, counted, no_progress
from opq.training.batches import Loader, forward, to_device
from opq.training.bn_statistics import REFRESHING
from opq.training.device import autocast, device_of
from opq.training.objective import Objective


@dataclass(frozen=True)
class Measurement:
    """The quality of a network in evaluation mode.

    Args:
        loss: Mean of the training's loss over batches.
        top1: Percent of labels that are the largest logit, 0..100; None if labels are no classes, or there are none.
    """

    loss: float
    top1: float | None = None

    def __str__(self) -> str:
        """Both, in words."""
        return f"loss {self.loss:.4g}" + ("" if self.top1 is None else f", top-1 {self.top1:.2f}%")


@torch.no_grad()
def measure(
    model: nn.Module, loader: Loader, objective: Objective, teacher: object = None, report: Progress = no_progress
) -> Measurement | None:
    """Measure a network on up to REFRESHING batches. Every module keeps its training or evaluation mode.

    Args:
        model: The network, plain or prepared.
        loader: Batches.
        objective: The loss of the training.
        teacher: Function or network for distillation; None for none.
        report: Called after each batch.

    Returns:
        The measurement; None if the network, in evaluation mode, does not return what a loss function needs.

    Raises:
        TrainingError: The network fails on a batch, or no loss fits.
    """
    modes = {module: module.training for module in model.modules()}
    device, losses = device_of(model), []
    counts = torch.zeros(2, dtype=torch.long, device=device)
    try:
        model.eval()
        total = min(length_hint(loader), REFRESHING)
        for batch in counted(islice(loader, REFRESHING), report, "measuring", total):
            batch = to_device(batch, device)
            with autocast(device):
                outputs = forward(model, batch)
                taught = forward(teacher, batch) if callable(teacher) else None
            if (loss := objective.evaluated(outputs, batch, taught)) is None:
                return None
            losses.append(float(loss))
            counts += objective.correct(outputs, batch).to(device)
    finally:
        for module, mode in modes.items():
            module.training = mode
    correct, labels = counts.tolist()
    return Measurement(sum(losses) / max(len(losses), 1), 100.0 * correct / labels if labels else None)
