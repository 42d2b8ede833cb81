"""How to train: the numbers a user may want to change, with defaults that were measured (docs/log.md)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from opq.errors import TrainingError

Optimizer = Callable[[Iterable[dict[str, object]]], torch.optim.Optimizer]
"""Makes an optimizer of parameter groups, as `torch.optim.AdamW` does, or a partial of it."""


@dataclass(frozen=True)
class TrainingConfig:
    """The training of a prepared network.

    learning_rate  the highest, for a batch as large as the loader's
    momentum       of stochastic gradient descent, in Nesterov's form
    weight_decay   of tensors of two or more dimensions; biases and batch-norm have none
    warm_up        share of all steps over which the rate rises from zero; then it falls to zero as a cosine
    clip           largest norm of the gradient; None for any. Pruned weights that learn unseen can make it enormous
    labels         share of cross-entropy with the labels in the loss, 0..1, where a teacher gives the rest
    temperature    of the softmax under which teacher and network are compared
    average        decay a step of a moving average of the weights, which then is the result; or None
    optimizer      makes another optimizer than SGD with the momentum above, of parameter groups that carry "lr" and
                   "weight_decay"
    """

    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warm_up: float = 0.05
    clip: float | None = 10.0
    labels: float = 0.0
    temperature: float = 4.0
    average: float | None = None
    optimizer: Optimizer | None = None

    def __post_init__(self) -> None:
        """Raise RecipeError for a number out of range."""
        for key, valid, rule in (
            ("learning_rate", 0.0 < self.learning_rate < math.inf, "be positive"),
            ("momentum", 0.0 <= self.momentum < 1.0, "lie in [0, 1)"),
            ("weight_decay", 0.0 <= self.weight_decay < math.inf, "be 0 or more"),
            ("warm_up", 0.0 <= self.warm_up <= 1.0, "lie in [0, 1]"),
            ("clip", self.clip is None or 0.0 < self.clip < math.inf, "be positive"),
            ("labels", 0.0 <= self.labels <= 1.0, "lie in [0, 1]"),
            ("temperature", 0.0 < self.temperature < math.inf, "be positive"),
            ("average", self.average is None or 0.0 <= self.average < 1.0, "lie in [0, 1)"),
        ):
            if not valid:
                raise TrainingError(f"{key} must {rule}, got {getattr(self, key)}")

    def described(self) -> dict[str, object]:
        """The numbers, and another optimizer's name and what it is given, as JSON has them."""
        declared = asdict(replace(self, optimizer=None))
        if isinstance(self.optimizer, partial):
            given = repr((self.optimizer.args, self.optimizer.keywords))
            declared["given"] = re.sub(r" at 0x[0-9a-f]+", "", given)  # where something lies differs from process to process
        maker = getattr(self.optimizer, "func", self.optimizer)
        return {**declared, "optimizer": getattr(maker, "__name__", None)}

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
        rising = self.warm_up * steps
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
        share = self.labels if taught is not None else 1.0
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
