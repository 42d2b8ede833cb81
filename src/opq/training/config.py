"""TrainingConfig: the settings of a training, checked on creation, and the optimizer, schedule and loss that they describe."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from opq.config.checks import check_fields, finite_number, read_json
from opq.errors import ConfigError, TrainingError
from opq.training.objective import Objective

_JSON_FORMAT = "opq-training-config-1"

RESERVE = 0.07
"""Share of the byte budget that a plan for training leaves free by default."""

Optimizer = Callable[[Iterable[dict[str, object]]], torch.optim.Optimizer]
"""(parameter groups) -> optimizer: `torch.optim.AdamW`, for example, or a partial of it."""


_NUMBERS: Final[dict[str, tuple[Callable[[float], bool], str]]] = {
    "reserve": (lambda value: 0.0 <= value < 1.0, "lie in [0, 1)"),
    "learning_rate": (lambda value: value > 0.0, "be positive"),
    "momentum": (lambda value: 0.0 <= value < 1.0, "lie in [0, 1)"),
    "weight_decay": (lambda value: value >= 0.0, "be 0 or more"),
    "warmup": (lambda value: 0.0 <= value <= 1.0, "lie in [0, 1]"),
    "max_grad_norm": (lambda value: value > 0.0, "be positive"),
    "label_weight": (lambda value: 0.0 <= value <= 1.0, "lie in [0, 1]"),
    "temperature": (lambda value: value > 0.0, "be positive"),
    "ema_decay": (lambda value: 0.0 <= value < 1.0, "lie in [0, 1)"),
}
"""{field: (whether a finite number is valid, the rule in words)}"""

_OPTIONAL = ("max_grad_norm", "ema_decay")
"""Numbers that may be None."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train a prepared network. The defaults were measured (docs/log.md).

    Args:
        epochs: Passes over the loader, >= 1.
        mask_update_epochs: Number of first epochs, 0 <= n < epochs, in which masks are recomputed from the weights, under
            thresholds that keep the file within its byte budget. Afterwards masks are frozen. None: two thirds of the epochs if
            `opq.finetune` makes the plan and masks can be recomputed, else 0.
        reserve: Share of the byte budget, 0 <= reserve < 1, that a plan made by `opq.finetune` leaves free, because the entropy
            of codes grows in training. A short training leaves a part of it unused, and the file is smaller by that.
        seed: Of all random numbers, >= 0. The same seed on the same device gives the same bytes.
        learning_rate: The highest learning rate, for the loader's batch size, > 0.
        momentum: Nesterov momentum of stochastic gradient descent, 0 <= momentum < 1.
        weight_decay: Weight decay of tensors of two or more dimensions, >= 0. Biases and batch norms have none.
        warmup: Share of all steps, 0..1, in which the learning rate rises linearly. Afterwards it falls to zero as a cosine.
        max_grad_norm: Norm to which gradients are clipped, > 0; None for no clipping. The latent values of pruned weights can
            make the norm very large while masks are recomputed.
        label_weight: Weight of the loss with the labels, 0..1. The rest is distillation from the teacher.
        temperature: Temperature of both distributions in the distillation of logits, > 0.
        ema_decay: Decay per step, 0 <= decay < 1, of an exponential moving average of the weights, which becomes the result;
            None for no average.
        optimizer: Makes the optimizer from parameter groups with "lr" and "weight_decay"; None for SGD with `momentum`.

    Raises:
        ConfigError: A field is out of range.
    """

    epochs: int
    mask_update_epochs: int | None = None
    reserve: float = RESERVE
    seed: int = 0
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 0.05
    max_grad_norm: float | None = 10.0
    label_weight: float = 0.0
    temperature: float = 4.0
    ema_decay: float | None = None
    optimizer: Optimizer | None = None

    def __post_init__(self) -> None:
        """Check every field, and bring numbers into floats."""
        updates = self.mask_update_epochs
        for key, valid, rule in (
            ("epochs", _is_count(self.epochs) and self.epochs >= 1, "be an integer >= 1"),
            ("seed", _is_count(self.seed) and self.seed >= 0, "be an integer >= 0"),
        ):
            if not valid:
                raise ConfigError(f"{key} must {rule}, got {getattr(self, key)!r}")
        if updates is not None and not (_is_count(updates) and 0 <= updates < self.epochs):
            raise ConfigError(
                f"mask_update_epochs must be an integer >= 0 and less than epochs (={self.epochs}), got {updates!r}"
            )
        for key, (is_valid, rule) in _NUMBERS.items():
            value = getattr(self, key)
            if value is None and key in _OPTIONAL:
                continue
            number = finite_number(key, value, ConfigError)
            if not is_valid(number):
                raise ConfigError(f"{key} must {rule}, got {value!r}")
            object.__setattr__(self, key, number)
        if self.optimizer is not None and not callable(self.optimizer):
            got = type(self.optimizer).__name__
            raise ConfigError(f"optimizer must be None, or a function of parameter groups such as torch.optim.AdamW, got {got}")

    def to_json(self) -> str:
        """The config as JSON text, from which `from_json` makes an equal config.

        Raises:
            ConfigError: `optimizer` is set, which JSON cannot hold.
        """
        if self.optimizer is not None:
            raise ConfigError("optimizer must be None, because JSON cannot hold a function; set it again after from_json")
        values = {key: value for key, value in asdict(self).items() if key != "optimizer"}
        return json.dumps({"format": _JSON_FORMAT, **values}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TrainingConfig:
        """The config of a JSON text that `to_json` wrote.

        Raises:
            ConfigError: The text is not JSON, or a field is unknown, missing or out of range.
        """
        document = read_json(text, _JSON_FORMAT, "training config")
        known = [item.name for item in fields(cls) if item.name != "optimizer"]
        check_fields("training config", document, known)
        if "epochs" not in document:
            raise ConfigError("training config: missing field 'epochs'")
        return cls(**document)

    def describe(self) -> dict[str, object]:
        """All fields as JSON values; an optimizer is described by its name and its arguments."""
        described = asdict(replace(self, optimizer=None))
        if isinstance(self.optimizer, partial):
            arguments = repr((self.optimizer.args, self.optimizer.keywords))
            described["optimizer_arguments"] = re.sub(r" at 0x[0-9a-f]+", "", arguments)  # addresses differ between processes
        maker = getattr(self.optimizer, "func", self.optimizer)
        return {**described, "optimizer": getattr(maker, "__name__", None)}

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Make the optimizer of the parameters of `model` that require gradients.

        Raises:
            TrainingError: No parameter does.
        """
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained:
            raise TrainingError(
                "no parameter of the network requires a gradient, so there is nothing to train; set requires_grad"
            )
        groups: list[dict[str, object]] = [
            {
                "params": [parameter for parameter in trained if (parameter.ndim >= 2) is decays],
                "lr": self.learning_rate,
                "weight_decay": self.weight_decay if decays else 0.0,
            }
            for decays in (True, False)
        ]
        groups = [group for group in groups if group["params"]]
        if self.optimizer is not None:
            return self.optimizer(groups)
        return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum, nesterov=self.momentum > 0.0)

    def rate_at(self, step: int, steps: int) -> float:
        """Learning rate at step number `step`, 0 <= step < steps, as a share of the highest one, 0..1.

        It rises linearly, then falls to zero as half a cosine (I. Loshchilov, F. Hutter, arXiv 1608.03983, 2016).
        """
        rising = self.warmup * steps
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))

    def loss(self, outputs: Tensor, labels: Tensor | None, teacher_logits: Tensor | None) -> Tensor:
        """Loss of a batch of logits: label_weight * cross-entropy + (1 - label_weight) * T^2 * KL(teacher || network).

        Both distributions of the divergence are softmaxes at temperature T (G. Hinton, O. Vinyals, J. Dean, arXiv 1503.02531,
        2015). Without a teacher the loss is the cross-entropy. Other tasks have other losses: see `opq.training.objective`.

        Args:
            outputs: (n, classes), (n, tokens, classes) or (n, classes, height, width) logits of the network.
            labels: Integers, shaped as the logits without the axis of classes, -100 where none counts; or probabilities, shaped
                as the logits; None if they are not used.
            teacher_logits: Logits of the teacher, likewise; None without a teacher.

        Returns:
            float32 scalar, in nats, mean over the batch and its positions.

        Raises:
            TrainingError: The loss needs labels, and there are none, or they do not fit.
        """
        return Objective("cross_entropy", self.label_weight, self.temperature)(outputs, (None, labels), teacher_logits)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
