"""How good a network is, and how like the dense one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from opq.errors import TrainingError
from opq.training.batches import Loader, call, check_labels, count, labels_of, to_device
from opq.training.device import autocast, device_of


@dataclass(frozen=True)
class Evaluation:
    """What a network does on some inputs; percentages are 0..100, and None where there is nothing to compare with.

    inputs     how many there were
    top1       percent of inputs whose label is the largest logit
    top5       percent of inputs whose label is among the five largest logits; None for fewer classes
    loss       mean cross-entropy with the labels, in nats
    agreement  percent of inputs to which the dense network gives the same class
    """

    inputs: int
    top1: float | None = None
    top5: float | None = None
    loss: float | None = None
    agreement: float | None = None


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader, *, dense: nn.Module | None = None) -> Evaluation:
    """Run `model`, prepared or plain, over the batches of `loader`, on the device where it is.

    loader  gives inputs, (inputs, labels), or mappings of keyword arguments with "labels"; logits are (n, classes)
    dense   the network to compare classes with
    Where bfloat16 is faster than float32, both networks run in its autocast. Each module is left in the mode, training or
    evaluation, in which it was. Raises RecipeError when there are no inputs, and for labels that are none of the classes.
    """
    networks = [network for network in (model, dense) if network is not None]
    modes = {module: module.training for network in networks for module in network.modules()}
    device = device_of(model)
    total = labelled = hits = near = same = 0
    loss, classes = 0.0, 0
    try:
        for network in networks:
            network.eval()
        for batch in loader:
            batch = to_device(batch, device)
            with autocast(device):
                outputs = call(model, batch).float()
                reference = call(dense, batch) if dense is not None else None
            total += count(batch)
            best = outputs.argmax(-1)
            if reference is not None:
                same += int((best == reference.argmax(-1)).sum())
            if (labels := labels_of(batch)) is not None:
                labelled += len(labels)
                classes = outputs.shape[-1]
                check_labels(labels, classes)
                hits += int((best == labels).sum())
                near += int((outputs.topk(min(5, classes)).indices == labels[:, None]).sum())
                loss += float(functional.cross_entropy(outputs, labels.long(), reduction="sum"))
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not total:
        raise TrainingError("there are no inputs to evaluate on")
    return Evaluation(
        inputs=total,
        top1=100.0 * hits / labelled if labelled else None,
        top5=100.0 * near / labelled if labelled and classes > 5 else None,
        loss=loss / labelled if labelled else None,
        agreement=100.0 * same / total if dense is not None else None,
    )
