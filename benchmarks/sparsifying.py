"""Training with a sparsity penalty, and the one-shot plan of a network that is sparse already."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import opq

_SIGNIFICANT, _FLAT = 0.2, 0.6
_FASTER, _EVERY, _DONE = 1.06, 10, 0.7
_THRESHOLD = 0.55


class Sparsifier(torch.optim.Adam):
    """Adam on loss + lambda * sum(log(1 + |w| / a)), the penalty by a proximal step, until about `num_kept` weights are left.

    The penalty flattens as a weight grows, so that large weights keep their size (reweighted l1: E. Candes, M. Wakin, S. Boyd,
    2008). Its a is the sum of two terms: 0.6 of the layer's mean magnitude before training, and the mean magnitude of the
    weight's row times that of its column over that of the layer. So weights of units with many large weights cost less, as they
    do in the entropy coder. Biases are pruned too. Lambda is raised and lowered such that the number of significant weights,
    those of at least a fifth of the layer's mean magnitude before training, follows a schedule from all weights to `num_kept`
    over the first 0.7 of `steps`.

    Args:
        groups: Parameter groups.
        steps: Number of steps of the training.
        num_kept: Number of weights to keep.
        lmbda: The lambda of the first steps.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, steps: int, num_kept: int, lmbda: float = 1e-5) -> None:
        super().__init__(groups)
        self._trained = [tensor for group in self.param_groups for tensor in group["params"]]
        self._steps, self._num_kept = steps, num_kept
        self._count = sum(tensor.numel() for tensor in self._trained)
        # In the groups, because a checkpoint saves those.
        self.param_groups[0].update(lmbda=lmbda, taken=0, scales=[float(w.detach().abs().mean()) for w in self._trained])

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of Adam, then the proximal one."""
        loss = super().step(closure)
        lead = self.param_groups[0]
        for tensor, scale in zip(self._trained, lead["scales"], strict=True):
            curvature = self.state[tensor]["exp_avg_sq"].sqrt() + 1e-6
            proximal_step(tensor, curvature, lead["lr"] * lead["lmbda"], _FLAT * scale)
        lead["taken"] += 1
        if lead["taken"] % _EVERY == 0:
            thresholds = (_SIGNIFICANT * scale for scale in lead["scales"])
            significant = sum(int((w.abs() > minimum).sum()) for w, minimum in zip(self._trained, thresholds, strict=True))
            lead["lmbda"] *= _FASTER if significant > self._wanted(lead["taken"]) else 1.0 / _FASTER
        return loss

    def _wanted(self, taken: int) -> float:
        left = 1.0 - min(taken / (_DONE * self._steps), 1.0)
        return float(self._num_kept * (self._count / self._num_kept) ** (left**1.5))


def proximal_step(tensor: Tensor, curvature: Tensor, lmbda: float, flat: float) -> None:
    """Move all values towards zero, in place, by lmbda / (expected + value + flat) / curvature, but not beyond zero."""
    magnitude = tensor.abs()
    expected = magnitude
    if tensor.ndim >= 2:
        inner = tuple(range(2, tensor.ndim))
        rows, columns = (magnitude.mean((axis, *inner), keepdim=True) for axis in (1, 0))
        expected = rows * columns / magnitude.mean().clamp(min=1e-12)
    smaller = magnitude - lmbda / (magnitude + expected + flat) / curvature
    tensor.copy_(tensor.sign() * smaller.clamp(min=0.0))


def plan_sparse(model: nn.Module, images: Tensor, budget: int) -> opq.Plan:
    """The plan, of about `budget` bytes, of a network whose layers are mostly zeros.

    Neither the mean magnitude of such a layer nor a Laplace density describes its kept weights. But kept weights have similar
    sizes in all layers, and at one Lagrange multiplier steps are c / sqrt(sensitivity), so that only the number c has to be
    found. The sensitivity is the square root of the mean squared gradient of kept weights over `images`; without the root
    results were worse.
    """
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    sensitivity = _sensitivity(model, images)
    low, high = math.log(1e-6), math.log(1e2)
    for _ in range(24):
        middle = 0.5 * (low + high)
        plan = _plan_at(state, math.exp(middle), sensitivity, budget)
        low, high = (middle, high) if opq.compress(state, plan).file_bytes > budget else (low, middle)
    return _plan_at(state, math.exp(high), sensitivity, budget)


def _plan_at(state: dict[str, Tensor], step: float, sensitivity: dict[str, float], budget: int) -> opq.Plan:
    layers = {}
    for name, value in sensitivity.items():
        own = float(np.float32(step / math.sqrt(value)))
        layers[name] = opq.LayerPlan(tuple(state[name].shape), own, _THRESHOLD * own, 1.0 - _THRESHOLD, 0.0, 0.0)
    dense_bytes = sum(tensor.nbytes for tensor in state.values())
    return opq.Plan("joint", opq.Size(budget), opq.AuxiliaryPlan("float16"), None, dense_bytes, budget, layers)


def _sensitivity(model: nn.Module, images: Tensor) -> dict[str, float]:
    # A separate generator, so that a resumed run has the same plan.
    generator = torch.Generator().manual_seed(0)
    weights = {name: tensor for name, tensor in model.named_parameters() if tensor.ndim >= 2}
    squares = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for image in images:
        logits = model(image[None])
        label = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)[:, 0]
        gradients = torch.autograd.grad(functional.cross_entropy(logits, label), list(weights.values()))
        for square, gradient in zip(squares.values(), gradients, strict=True):
            square += gradient**2
    means = {name: float(squares[name][tensor != 0].mean()) / len(images) for name, tensor in weights.items()}
    return {name: math.sqrt(mean) for name, mean in means.items()}
