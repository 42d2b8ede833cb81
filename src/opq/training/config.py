"""How to train, as a typed and frozen object that is checked when it is made; and the optimizer, schedule and loss it stands for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from opq.config.checks import check_fields
from opq.errors import ConfigError, TrainingError

_JSON_FORMAT = "opq-training-config-1"

Optimizer = Callable[[Iterable[dict[str, object]]], torch.optim.Optimizer]
"""Makes an optimizer of parameter groups, as `torch.optim.AdamW` does, or a partial of it."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a prepared network is trained. Defaults were measured (docs/log.md).

    Args:
        epochs: Passes over the loader, >= 1.
        mask_update_epochs: In so many of the first epochs masks are recomputed from the weights, under a threshold that keeps
            the file within its bytes; then they are frozen. 0 <= n < epochs. None: two thirds of the epochs if masks can be
            recomputed and the plan is made by `opq.finetune`, else 0.
        reserve: Share of the byte budget, 0 <= reserve < 1, that a plan made by `opq.finetune` leaves free, since codes spread
            while they train.
        seed: Of everything drawn at random: the same seed and device give the same bytes.
        learning_rate: The highest, for a batch as large as the loader's, > 0.
        momentum: Of stochastic gradient descent with Nesterov momentum, 0 <= momentum < 1.
        weight_decay: Of tensors of two or more dimensions, >= 0; biases and batch norms have none.
        warmup: Share of all steps over which the rate rises from zero, 0..1; then it falls to zero as a cosine.
        max_grad_norm: Gradients are clipped to this norm, > 0; None for no clipping. Pruned weights whose masks are still
            recomputed can make the norm enormous.
        label_weight: Weight of the cross-entropy with the labels in the loss, 0..1; distillation from the teacher has the rest.
        temperature: Of the softmax under which teacher and network are compared, > 0.
        ema_decay: Decay per step of an exponential moving average of the weights, 0 <= decay < 1, which then is the result;
            None for none.
        optimizer: Makes another optimizer than SGD with the momentum above, of parameter groups that carry "lr" and
            "weight_decay".

    Raises:
        ConfigError: A number is out of range.
    """

    epochs: int
    mask_update_epochs: int | None = None
    reserve: float = 0.07
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
        """Check every field."""
        for key, valid, rule in (
            ("epochs", _is_count(self.epochs) and self.epochs >= 1, "be an integer >= 1"),
            (
                "mask_update_epochs",
                self.mask_update_epochs is None
                or (_is_count(self.mask_update_epochs) and 0 <= self.mask_update_epochs < max(self.epochs, 1)),
                f"be an integer from 0 to {self.epochs} - 1, one less than epochs",
            ),
            ("reserve", 0.0 <= self.reserve < 1.0, "lie in [0, 1)"),
            ("seed", _is_count(self.seed) and self.seed >= 0, "be an integer >= 0"),
            ("learning_rate", 0.0 < self.learning_rate < math.inf, "be positive"),
            ("momentum", 0.0 <= self.momentum < 1.0, "lie in [0, 1)"),
            ("weight_decay", 0.0 <= self.weight_decay < math.inf, "be 0 or more"),
            ("warmup", 0.0 <= self.warmup <= 1.0, "lie in [0, 1]"),
            ("max_grad_norm", self.max_grad_norm is None or 0.0 < self.max_grad_norm < math.inf, "be positive"),
            ("label_weight", 0.0 <= self.label_weight <= 1.0, "lie in [0, 1]"),
            ("temperature", 0.0 < self.temperature < math.inf, "be positive"),
            ("ema_decay", self.ema_decay is None or 0.0 <= self.ema_decay < 1.0, "lie in [0, 1)"),
        ):
            if not valid:
                raise ConfigError(f"{key} must {rule}, got {getattr(self, key)!r}")

    def to_json(self) -> str:
        """The config as JSON text; `from_json` gives back an equal config.

        Raises:
            ConfigError: It has an optimizer of its own, which JSON cannot hold.
        """
        if self.optimizer is not None:
            raise ConfigError("a config with an optimizer of its own cannot go to JSON")
        values = {key: value for key, value in asdict(self).items() if key != "optimizer"}
        return json.dumps({"format": _JSON_FORMAT, **values}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TrainingConfig:
        """The config that `to_json` wrote.

        Raises:
            ConfigError: The text is anything else.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"training config is not JSON: {error}") from None
        if not isinstance(document, dict) or document.pop("format", None) != _JSON_FORMAT:
            raise ConfigError(f'training config must be an object with "format": "{_JSON_FORMAT}"')
        known = [item.name for item in fields(cls) if item.name != "optimizer"]
        check_fields("training config", document, known)
        try:
            return cls(**document)
        except TypeError as error:
            raise ConfigError(f"training config: {error}") from None

    def describe(self) -> dict[str, object]:
        """All fields as JSON holds them, an optimizer by its name and what it was given."""
        described = asdict(replace(self, optimizer=None))
        if isinstance(self.optimizer, partial):
            given = repr((self.optimizer.args, self.optimizer.keywords))
            described["optimizer_arguments"] = re.sub(r" at 0x[0-9a-f]+", "", given)  # addresses differ between processes
        maker = getattr(self.optimizer, "func", self.optimizer)
        return {**described, "optimizer": getattr(maker, "__name__", None)}

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the parameters of `model` that want gradients."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained:
            raise TrainingError("no parameter of the network wants a gradient: there is nothing to train")
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
        """Share of the highest learning rate at `step` of `steps`: a linear rise, then half a cosine down to zero."""
        rising = self.warmup * steps
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))

    def loss(self, outputs: Tensor, labels: Tensor | None, taught: Tensor | None) -> Tensor:
        """The loss of logits (n, classes), given labels and the teacher's logits where there are any.

        Labels are integers (n,) or probabilities (n, classes).

        Against the teacher it is the divergence of the softened distributions times the square of the temperature
        (G. Hinton, O. Vinyals, J. Dean, arXiv 1503.02531, 2015).
        """
        outputs = outputs.float()
        share = self.label_weight if taught is not None else 1.0
        loss = outputs.new_zeros(())
        if share > 0.0:
            if labels is None:
                raise TrainingError("there are no labels to learn from; give a teacher, and a share of 0 to labels")
            loss = share * functional.cross_entropy(outputs, labels if labels.is_floating_point() else labels.long())
        if taught is not None and share < 1.0:
            soft, target = (functional.log_softmax(x.float() / self.temperature, dim=-1) for x in (outputs, taught))
            divergence = functional.kl_div(soft, target, reduction="batchmean", log_target=True)
            loss = loss + (1.0 - share) * self.temperature**2 * divergence
        return loss


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
