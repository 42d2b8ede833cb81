"""The iterative procedure, for comparison: gradual pruning while training, then training with learned step sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from opq.training.batches import Loader

_EVERY = 100


class Mask(nn.Module):
    """Keeps the largest magnitudes of a weight."""

    kept: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, pruned."""
        return weight * self.kept


class LearnedStep(nn.Module):
    """Rounds to step * k, |k| <= 2^(bits - 1) - 1, with a learned step (S. Esser et al., arXiv 1902.08153, 2019: LSQ)."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.largest = 2 ** (bits - 1) - 1
        kept = weight[weight != 0].abs()
        self.step = nn.Parameter(2.0 * kept.mean() / math.sqrt(self.largest))
        self.gain = 1.0 / math.sqrt(len(kept) * self.largest)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, rounded; gradients pass straight through to weights within range, and to the step."""
        step = self.step * self.gain + (self.step - self.step * self.gain).detach()
        scaled = (weight / step).clamp(-self.largest, self.largest)
        return (scaled + (scaled.round() - scaled).detach()) * step


def compress_iteratively(
    model: nn.Module,
    loader: Loader,
    make_optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    *,
    sparsity: float,
    bits: int,
    pruning_epochs: int,
    quantizing_epochs: int,
) -> dict[str, float]:
    """Prune `model` gradually, by one threshold for all weights, then quantize it, in place.

    The sparsity follows 1 - (1 - t)^3 over the first three quarters of the pruning epochs (M. Zhu, S. Gupta, arXiv 1710.01878,
    2017). In the last quarter no more weights are pruned, and the others train.

    Returns:
        {weight name: its step}.
    """
    weights = {f"{path}.weight": module for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    for module in weights.values():
        parametrize.register_parametrization(module, "weight", Mask(module.weight))
    steps = math.ceil(0.75 * pruning_epochs * len(loader))  # type: ignore[arg-type]

    def prune(step: int) -> None:
        if (step % _EVERY == 0 and step <= steps) or step == steps:
            _prune(list(weights.values()), sparsity * (1.0 - (1.0 - min(step / steps, 1.0)) ** 3))

    _train(model, loader, make_optimizer, pruning_epochs, prune)
    for module in weights.values():
        parametrize.register_parametrization(module, "weight", LearnedStep(module.weight.detach(), bits))
    _train(model, loader, make_optimizer, quantizing_epochs, lambda step: None)
    learned = {name: float(_chain(module)[1].step.detach()) for name, module in weights.items()}
    for module in weights.values():
        parametrize.remove_parametrizations(module, "weight")
    return learned


def _train(
    model: nn.Module,
    loader: Any,
    make_optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    epochs: int,
    before: Callable[[int], None],
) -> None:
    optimizer = make_optimizer(list(model.parameters()))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    step = 0
    for _ in range(epochs):
        for images, labels in loader:
            before(step)
            loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            step += 1


def _prune(modules: list[nn.Module], sparsity: float) -> None:
    magnitudes = [_chain(module).original.detach().abs() for module in modules]
    every = torch.cat([magnitude.flatten() for magnitude in magnitudes])
    threshold = every.kthvalue(max(round(sparsity * len(every)), 1)).values
    for module, magnitude in zip(modules, magnitudes, strict=True):
        _chain(module)[0].kept.copy_(magnitude > threshold)


def _chain(module: nn.Module) -> Any:
    return module.parametrizations["weight"]  # type: ignore[index]
