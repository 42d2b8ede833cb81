"""Objective: what a network learns from a batch, for any task: a loss with the labels, and distillation from a teacher.

| loss | outputs | labels | distillation |
|---|---|---|---|
| cross_entropy | logits, classes in the second axis, or in the last of three | classes, or probabilities | T^2 KL |
| binary_cross_entropy | a logit for each label | 0 and 1, or between | T^2 KL of each label |
| mse | values | values | squared error |
| a function, or the network's own loss | any | any | by the labels as above, else relative squared error |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from opq.errors import TrainingError
from opq.training.batches import Batch, check_labels, labels_of, logits_of

LossName = Literal["cross_entropy", "binary_cross_entropy", "mse"]
"""A loss that is known by name."""

LossFunction = Callable[[Any, Batch], Tensor]
"""(outputs of the network, batch on its device) -> scalar."""

_IGNORED = -100  # the label that torch's cross-entropy leaves out
_HELP = 'give loss="cross_entropy", "binary_cross_entropy", "mse", or a function of outputs and batch'


class Objective:
    """The loss of a training. What is not given is decided on the first batch, and then stays.

    Args:
        loss: The name of a loss; a function; or None for the network's own loss if its outputs have one, else the loss that
            fits outputs and labels.
        label_weight: Weight of the loss with the labels, 0..1. Distillation has the rest. Without a teacher it is 1.
        temperature: Temperature of the distillation of logits, > 0.

    Raises:
        TrainingError: There is no such loss.
    """

    def __init__(self, loss: LossName | LossFunction | None, label_weight: float, temperature: float) -> None:
        if loss is not None and not callable(loss) and loss not in get_args(LossName):
            raise TrainingError(f"loss must be one of {', '.join(get_args(LossName))}, or a function, got {loss!r}")
        self._loss, self._label_weight, self._temperature = loss, label_weight, temperature
        self._is_decided, self._axis_of_three = False, 2
        self.kind: LossName | None = None if callable(loss) else loss

    def __call__(self, outputs: Any, batch: Batch, taught: Any = None) -> Tensor:
        """The loss of a batch.

        Args:
            outputs: What the network returned.
            batch: The batch, on the network's device.
            taught: What the teacher returned; None without a teacher.

        Returns:
            float32 scalar, mean over the batch, and over all positions if there are outputs for each.

        Raises:
            TrainingError: There is nothing to learn from, or no loss fits outputs and labels.
        """
        self._decide(outputs, batch, taught is not None)
        share = 1.0 if taught is None else self._label_weight
        if share == 1.0:
            return self.label_loss(outputs, batch)
        loss = (1.0 - share) * self.distillation(outputs, taught)
        return loss if share == 0.0 else loss + share * self.label_loss(outputs, batch)

    def label_loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The loss with the labels of a batch, float32.

        Raises:
            TrainingError: There are no labels, or they do not fit.
        """
        if callable(self._loss):
            loss = self._loss(outputs, batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise TrainingError(f"loss must return a tensor of one value, got {got}")
            return loss.float().reshape(())
        own = _own_loss(outputs) if self._loss is None else None
        if own is not None:
            return own.float()
        labels = labels_of(batch)
        if labels is None:
            raise TrainingError("there are no labels to learn from; give a teacher and label_weight=0, or a loader with labels")
        logits = self._logits(outputs)
        try:
            return self._formula(logits, labels)
        except (IndexError, RuntimeError, ValueError) as error:
            raise TrainingError(
                f"labels of {labels.dtype} and shape {tuple(labels.shape)} do not fit outputs of shape {tuple(logits.shape)}: "
                f"{' '.join(str(error).split())}"
            ) from None

    def distillation(self, outputs: Any, taught: Any) -> Tensor:
        """The difference from what a teacher returned, float32, mean over the batch and its positions.

        Raises:
            TrainingError: Network and teacher return different things.
        """
        if self.kind is None:
            return _relative_error(outputs, taught)
        found, wanted = self._logits(outputs).float(), self._logits(taught).float()
        if found.shape != wanted.shape:
            raise TrainingError(
                f"the teacher must return outputs of shape {tuple(found.shape)}, as the network does, got {tuple(wanted.shape)}"
            )
        if self.kind == "mse":
            return functional.mse_loss(found, wanted)
        found, wanted = found / self._temperature, wanted / self._temperature
        if self.kind == "cross_entropy":
            axis = self._axis(found)
            soft, target = found.log_softmax(axis), wanted.log_softmax(axis)
            divergence = functional.kl_div(soft, target, reduction="none", log_target=True).sum(axis)
        else:
            divergence = sum(
                functional.kl_div(
                    functional.logsigmoid(sign * found), functional.logsigmoid(sign * wanted), reduction="none", log_target=True
                )
                for sign in (1.0, -1.0)
            )  # type: ignore[assignment]
        return self._temperature**2 * divergence.mean()

    def evaluated(self, outputs: Any, batch: Batch, taught: Any = None) -> Tensor | None:
        """The loss of a batch in evaluation mode; None if a loss function fails, because outputs may differ from training."""
        if not callable(self._loss):
            return self(outputs, batch, taught)
        try:
            return self(outputs, batch, taught)
        except Exception:  # the user's code may raise anything
            self._is_decided = False
            return None

    def correct(self, outputs: Any, batch: Batch) -> Tensor:
        """int64 (2,): the number of labels that are the largest logit, and of all labels; 0 if labels are no classes."""
        labels, logits = labels_of(batch), logits_of(outputs)
        if not isinstance(labels, Tensor) or logits is None or labels.is_floating_point() or logits.ndim < 2:
            return torch.zeros(2, dtype=torch.long)
        axis = self._axis(logits)
        if self.kind != "cross_entropy" or labels.shape != logits.shape[:axis] + logits.shape[axis + 1 :]:
            return torch.zeros(2, dtype=torch.long, device=logits.device)
        counted = labels != _IGNORED
        return torch.stack([((logits.argmax(axis) == labels) & counted).sum(), counted.sum()])

    def _formula(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss by name of outputs and labels."""
        outputs = outputs.float()
        if self.kind != "cross_entropy":
            labels = labels.to(outputs.dtype)
            outputs = outputs.reshape(labels.shape) if outputs.numel() == labels.numel() else outputs
            if outputs.shape != labels.shape:
                raise ValueError("they must have one shape")
            return _LOSSES[str(self.kind)](outputs, labels)
        if labels.is_floating_point():
            return functional.cross_entropy(outputs, labels)
        axis = self._axis(outputs)
        check_labels(labels[labels != _IGNORED], outputs.shape[axis])
        if not len(labels) or (labels == _IGNORED).all():
            return 0.0 * outputs.sum()  # the mean over no labels would be NaN
        return functional.cross_entropy(outputs.movedim(axis, 1), labels.long(), ignore_index=_IGNORED)

    def _axis(self, logits: Tensor) -> int:
        """The axis of the classes."""
        return self._axis_of_three if logits.ndim == 3 else 1

    def _logits(self, outputs: Any) -> Tensor:
        logits = logits_of(outputs)
        if logits is None:
            raise TrainingError(
                f"the network must return a tensor, or an object or mapping with logits, got {type(outputs).__name__}; "
                "for other outputs give loss= a function of outputs and batch"
            )
        if self.kind == "cross_entropy" and (logits.ndim < 2 or logits.shape[self._axis(logits)] < 2):
            raise TrainingError(
                "the network must return logits (n, classes), (n, tokens, classes) or (n, classes, height, width) of at least "
                f"two classes, got shape {tuple(logits.shape)}; {_HELP}"
            )
        return logits

    def _decide(self, outputs: Any, batch: Batch, is_taught: bool) -> None:
        """Choose the kind on the first batch, if it is not given."""
        if self._is_decided:
            return
        self._is_decided = True
        if callable(self._loss) and is_taught and self._label_weight == 0.0:
            raise TrainingError(
                "label_weight must be above 0 if loss is a function and there is a teacher, else it has no effect"
            )
        labels, logits = labels_of(batch), logits_of(outputs)
        if isinstance(labels, Tensor) and logits is not None and logits.ndim == 3:
            self._axis_of_three = _class_axis(logits, labels)
        if self.kind is not None:
            return
        if labels is not None and not isinstance(labels, Tensor):
            if callable(self._loss) or _own_loss(outputs) is not None:
                return
            raise TrainingError(f"labels must be a tensor, got {type(labels).__name__}; {_HELP}")
        found = None if logits is None or not logits.is_floating_point() else _fitting(logits, labels)
        if found in get_args(LossName):
            self.kind = found  # type: ignore[assignment]
        elif not callable(self._loss) and _own_loss(outputs) is None:
            self._logits(outputs)
            raise TrainingError(f"{found or 'outputs must be floating point'}; {_HELP}")


_LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "binary_cross_entropy": functional.binary_cross_entropy_with_logits,
    "mse": functional.mse_loss,
}


def _class_axis(logits: Tensor, labels: Tensor) -> int:
    """The axis of the classes: 1; or of three axes the last one, unless labels fit axis 1 alone.

    Args:
        logits: (n, classes), (n, tokens, classes), (n, classes, height, width), and so on.
        labels: Classes.
    """
    fits_second = tuple(labels.shape) == (logits.shape[0], *logits.shape[2:])
    return 2 if logits.ndim == 3 and (labels.shape == logits.shape[:2] or not fits_second) else 1


def _fitting(logits: Tensor, labels: Tensor | None) -> str:
    """The name of the loss that fits outputs and labels, or why none does."""
    shape = tuple(logits.shape)
    if labels is None:
        if logits.ndim in (2, 3) and shape[-1] > 1:
            return "cross_entropy"
        return (
            "without labels the network must return logits (n, classes) or (n, tokens, classes) of at least two classes, got "
            f"shape {shape}"
        )
    if not labels.is_floating_point():
        axis = _class_axis(logits, labels) if logits.ndim > 1 else 0
        if logits.ndim > 1 and shape[axis] > 1 and labels.shape == logits.shape[:axis] + logits.shape[axis + 1 :]:
            return "cross_entropy"
        return f"labels of {labels.dtype} and shape {tuple(labels.shape)} are not classes for logits of shape {shape}"
    if labels.numel() != logits.numel():
        return f"labels of {labels.dtype} and shape {tuple(labels.shape)} do not fit outputs of shape {shape}"
    if labels.shape == logits.shape and labels.ndim > 1 and shape[1] > 1 and bool((labels >= 0.0).all()):
        sums = labels.float().sum(1)
        if torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            return "cross_entropy"
    if bool(((labels == 0.0) | (labels == 1.0)).all()):
        return "labels of 0.0 and 1.0 fit several losses"
    return "mse"


def _own_loss(outputs: Any) -> Tensor | None:
    """The loss that a network computed itself."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 else None


def _relative_error(outputs: Any, taught: Any) -> Tensor:
    """Squared error over the squares of the teacher, mean over all floating tensors of the outputs; losses do not count."""
    found, wanted = list(_tensors(outputs)), list(_tensors(taught))
    if not wanted or [tensor.shape for tensor in found] != [tensor.shape for tensor in wanted]:
        raise TrainingError("the teacher must return floating-point tensors of the shapes that the network returns")
    errors = [
        (a.float() - b.float()).square().sum() / b.float().square().sum().clamp(min=1e-12)
        for a, b in zip(found, wanted, strict=True)
    ]
    return torch.stack(errors).mean()


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield outputs
    elif isinstance(outputs, Mapping):
        yield from _tensors([value for key, value in outputs.items() if key != "loss"])
    elif isinstance(outputs, (tuple, list)):
        for part in outputs:
            yield from _tensors(part)
