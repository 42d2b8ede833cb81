"""Batches of inputs, with or without labels, as loaders return them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opq.errors import TrainingError

Batch = Any
"""A tensor of inputs; or (inputs, labels); or a mapping of the network's keyword arguments, with or without labels."""

Loader = Iterable[Batch]
"""Batches, which can be iterated more than once."""

LABELS = ("labels", "label", "targets", "target")
"""Names of the labels in a batch that is a mapping."""


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move all tensors of a batch to `device`; lists become tuples."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(to_device(part, device) for part in batch)
    return batch


def labels_of(batch: Batch) -> Any:
    """The labels of a batch; None if it has none."""
    if isinstance(batch, Mapping):
        return next((batch[key] for key in LABELS if key in batch), None)
    return batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None


def forward(model: nn.Module | Callable[..., Any], batch: Batch) -> Any:
    """Run a network on a batch.

    Args:
        model: A network or function.
        batch: A batch, on the network's device. Labels of a mapping are passed on if the network takes a keyword of their name;
            other labels are not. Inputs of half precision become float32 if the network is float32.

    Returns:
        What the network returns.

    Raises:
        TrainingError: The network fails on the batch.
    """
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(inputs, (Mapping, Tensor)):
        raise TrainingError(
            "a batch must be a tensor, (inputs, labels), or a mapping of the network's keyword arguments, got "
            f"{type(inputs).__name__}"
        )
    if isinstance(model, nn.Module):
        inputs = _widened(inputs, model)
    try:
        if isinstance(inputs, Mapping):
            return model(**{key: value for key, value in inputs.items() if key not in LABELS or _takes(model, key)})
        return model(inputs)
    except Exception as error:  # the user's code may raise anything
        shape = f" of {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else ""
        reason = str(error).partition("\n")[0]
        raise TrainingError(f"the network fails on a batch{shape}: {type(error).__name__}: {reason}") from error


def logits_of(outputs: Any) -> Tensor | None:
    """The logits of a network's outputs: a tensor, or `logits` of an object or a mapping; None if there are none."""
    if isinstance(outputs, Mapping):
        outputs = outputs.get("logits")
    outputs = getattr(outputs, "logits", outputs)
    return outputs if isinstance(outputs, Tensor) else None


def call(model: nn.Module | Callable[..., Any], batch: Batch) -> Tensor:
    """The logits of a network on a batch, as `forward` runs it; (n, classes) for a classifier.

    Raises:
        TrainingError: The network fails on the batch, or returns no logits.
    """
    outputs = forward(model, batch)
    logits = logits_of(outputs)
    if logits is None:
        raise TrainingError(
            f"the network must return logits as a tensor, or an object or mapping with logits, got {type(outputs).__name__}"
        )
    return logits


def _takes(model: nn.Module | Callable[..., Any], key: str) -> bool:
    """Whether a network has a parameter of this name."""
    while isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        model = model.module
    return key in inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters


def _widened(inputs: Any, model: nn.Module) -> Any:
    """Inputs in float32 in place of half precision, if the network is not of half precision."""
    own = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), None)
    if own != torch.float32:
        return inputs
    if isinstance(inputs, Mapping):
        return {key: _widened(value, model) for key, value in inputs.items()}
    is_half = isinstance(inputs, Tensor) and inputs.dtype in (torch.float16, torch.bfloat16)
    return inputs.float() if is_half else inputs


def count(batch: Batch) -> int:
    """Number of inputs in a batch that `call` takes."""
    if isinstance(batch, (tuple, list)):
        return count(batch[0])
    tensors = batch.items() if isinstance(batch, Mapping) else [("inputs", batch)]
    return next((len(value) for key, value in tensors if key not in LABELS and isinstance(value, Tensor) and value.ndim), 0)


def check_logits(outputs: Tensor) -> None:
    """Check that the outputs of a network are the logits of a classifier, with the classes in the last axis.

    Args:
        outputs: What `call` returned.

    Raises:
        TrainingError: They are not floating point of shape (n, classes) or (n, tokens, classes) with at least two classes.
    """
    if not outputs.is_floating_point() or outputs.ndim not in (2, 3) or outputs.shape[-1] < 2:
        raise TrainingError(
            "the network must return logits (n, classes) or (n, tokens, classes) of at least two classes, got "
            f"{outputs.dtype} of shape {tuple(outputs.shape)}; other outputs need a loop of your own"
        )


def check_labels(labels: Tensor, classes: int) -> None:
    """Check that labels are classes.

    Args:
        labels: Integers, any shape.
        classes: Number of classes, >= 1.

    Raises:
        TrainingError: A label is not in 0..classes - 1.
    """
    lowest, highest = (int(labels.min()), int(labels.max())) if labels.numel() else (0, 0)
    if lowest < 0 or highest >= classes:
        raise TrainingError(f"labels go from {lowest} to {highest}, but the network has {classes} classes, 0 to {classes - 1}")
