"""Accuracy of a network, and its agreement with the dense one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from opq.errors import TrainingError
from opq.progress import Progress, counted, show_progress
from opq.training.batches import Batch, Loader, call, check_labels, check_logits, count, labels_of, to_device
from opq.training.device import autocast, device_of


@dataclass(frozen=True)
class Evaluation:
    """The quality of a network on some inputs. Percentages are 0..100.

    Args:
        inputs: Number of inputs.
        top1: Percent of inputs whose label is the largest logit; None without labels.
        top5: Percent of inputs whose label is among the five largest logits; None without labels or with at most five classes.
        loss: Mean cross-entropy with the labels, in nats; None without labels.
        agreement: Percent of inputs to which the dense network gives the same class, or of all tokens of the inputs if there
            are logits for each token; None without a dense network.
    """

    inputs: int
    top1: float | None = None
    top5: float | None = None
    loss: float | None = None
    agreement: float | None = None


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Loader, *, dense: nn.Module | None = None, progress: Progress | bool = False
) -> Evaluation:
    """Evaluate a network on the batches of `loader`.

    Networks run in bfloat16 autocast if the device computes faster so. Every module keeps its training or evaluation mode.

    Args:
        model: The network, prepared or plain, on the device to run on. It returns logits (n, classes); or (n, tokens, classes),
            as language models do, and then there must be no labels.
        loader: Batches: inputs, or (inputs, labels), or mappings of keyword arguments with "labels". Labels are integers (n,).
            Every token counts, padding too, so batches of a language model should have none.
        dense: A network on the same device whose classes are compared with those of `model`.
        progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each step.

    Returns:
        The evaluation.

    Raises:
        TrainingError: There are no inputs, labels are not classes (n,), a network fails on a batch, or its outputs are not such
            logits.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"evaluate() takes a torch module, got {type(model).__name__}")
    with show_progress(progress) as report:
        return _evaluate(model, counted(loader, report, "evaluating", length_hint(loader)), dense)


def _evaluate(model: nn.Module, batches: Iterator[Batch], dense: nn.Module | None) -> Evaluation:
    networks = [network for network in (model, dense) if network is not None]
    modes = {module: module.training for network in networks for module in network.modules()}
    device = device_of(model)
    inputs = labelled = top1 = top5 = compared = agreeing = 0
    loss, classes = 0.0, 0
    try:
        for network in networks:
            network.eval()
        for batch in batches:
            batch = to_device(batch, device)
            with autocast(device):
                outputs = _logits(model, batch)
                reference = _logits(dense, batch) if dense is not None else None
            inputs += count(batch)
            best = outputs.argmax(-1)
            if reference is not None:
                if reference.shape != outputs.shape:
                    raise TrainingError(
                        f"dense must return logits of shape {tuple(outputs.shape)}, as the network does, got "
                        f"{tuple(reference.shape)}"
                    )
                compared += best.numel()
                agreeing += int((best == reference.argmax(-1)).sum())
            if (labels := labels_of(batch)) is not None:
                classes = outputs.shape[-1]
                _check_labels(labels, outputs)
                labelled += len(labels)
                top1 += int((best == labels).sum())
                top5 += int((outputs.topk(min(5, classes)).indices == labels[:, None]).sum())
                loss += float(functional.cross_entropy(outputs, labels.long(), reduction="sum"))
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not inputs:
        raise TrainingError("there are no inputs to evaluate on; loader must give at least one batch")
    return Evaluation(
        inputs=inputs,
        top1=100.0 * top1 / labelled if labelled else None,
        top5=100.0 * top5 / labelled if labelled and classes > 5 else None,
        loss=loss / labelled if labelled else None,
        agreement=100.0 * agreeing / compared if dense is not None else None,
    )


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """The network's logits for each input of a batch, float32."""
    outputs = call(model, batch)
    check_logits(outputs)
    if len(outputs) != count(batch):
        raise TrainingError(
            f"the network must return logits for each of the {count(batch)} inputs of a batch, got shape {tuple(outputs.shape)}"
        )
    return outputs.float()


def _check_labels(labels: Any, outputs: Tensor) -> None:
    """Check that labels are one class for each row of the logits."""
    if outputs.ndim != 2:
        raise TrainingError(
            f"labels must be left out if there are logits for each token, of shape {tuple(outputs.shape)}; "
            "then only the agreement with a dense network is measured"
        )
    is_integer = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex())
    if not is_integer or labels.shape != outputs.shape[:1]:
        got = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise TrainingError(f"labels must be a tensor of {len(outputs)} integers, one for each input of a batch, got {got}")
    check_labels(labels, outputs.shape[-1])
