"""What loaders give: batches of inputs, with labels or without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opq.errors import TrainingError

Batch = Any
"""A tensor of inputs; a tuple of inputs and labels; or a mapping of a network's keyword arguments, "labels" among them."""

Loader = Iterable[Batch]

_LABELS = "labels"


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(to_device(part, device) for part in batch)
    return batch


def labels_of(batch: Batch) -> Tensor | None:
    """The labels of a batch, None where it has none."""
    if isinstance(batch, Mapping):
        return batch.get(_LABELS)
    return batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None


def call(model: nn.Module | Callable[..., Any], batch: Batch) -> Tensor:
    """The logits that `model` gives for a batch; RecipeError when it gives none, or does not take such inputs."""
    inputs = batch if isinstance(batch, (Mapping, Tensor)) else batch[0]
    try:
        if isinstance(inputs, Mapping):
            outputs = model(**{key: value for key, value in inputs.items() if key != _LABELS})
        else:
            outputs = model(inputs)
    except (RuntimeError, TypeError, ValueError) as error:
        shape = f" of {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else ""
        reason = str(error).partition("\n")[0]
        raise TrainingError(f"the network fails on a batch{shape}: {reason}") from error
    outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor):
        raise TrainingError(f"expected the network to give logits, as a tensor or under .logits, got {type(outputs).__name__}")
    return outputs


def count(batch: Batch) -> int:
    """How many inputs a batch holds."""
    first = next(iter(batch.values())) if isinstance(batch, Mapping) else batch if isinstance(batch, Tensor) else batch[0]
    return len(first)


def check_labels(labels: Tensor, classes: int) -> None:
    """RecipeError for labels that are none of so many classes."""
    lowest, highest = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if lowest < 0 or highest >= classes:
        raise TrainingError(
            f"labels go from {lowest} to {highest}, and the network tells {classes} classes, 0 to {classes - 1}"
        )
