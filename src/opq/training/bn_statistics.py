"""Batch-norm statistics of a network: estimate them again, or restore them if they are folded."""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor, nn

from opq.batch_norm import PARTS, BatchNormVectors, is_folded
from opq.training.batches import Loader, forward, to_device
from opq.training.device import autocast

REFRESHING = 200
"""Largest number of batches from which statistics are estimated."""

_BatchNorm = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def refresh_batch_norm(model: nn.Module, loader: Loader, device: torch.device) -> None:
    """Estimate the statistics of all batch norms again, in place, as means over up to REFRESHING batches.

    A batch norm that is frozen, or does not run on these batches, keeps its statistics.

    Args:
        model: The network.
        loader: Batches; labels are not used.
        device: Device of the network.

    Raises:
        TrainingError: The network fails on a batch.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and not _is_frozen(module)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    before = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]
    modes = _modes(model)
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
    to_training_mode(model)
    try:
        _run(model, loader, device)
    finally:
        _restore_modes(modes)
        for layer, momentum, buffers in zip(layers, momenta, before, strict=True):
            layer.momentum = momentum
            if not layer.num_batches_tracked:
                for name, buffer in buffers.items():
                    getattr(layer, name).copy_(buffer)


@torch.no_grad()
def restore_statistics(model: nn.Module, loader: Loader, device: torch.device) -> None:
    """Restore the statistics of folded batch norms, in place; the network computes the same function in evaluation mode.

    A folded batch norm (mean 0, constant variance) has its statistics in weight and bias. In training mode the batch's
    statistics would then normalize a second time. So mean and variance are measured on up to REFRESHING batches in evaluation
    mode, and removed from weight and bias.

    Args:
        model: The network.
        loader: Batches; labels are not used.
        device: Device of the network.

    Raises:
        TrainingError: The network fails on a batch.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and has_folded_statistics(module) and not _is_frozen(module)
    ]
    if not layers:
        return
    sums = {layer: _Moments() for layer in layers}
    hooks = [layer.register_forward_pre_hook(sums[layer].add) for layer in layers]
    modes = _modes(model)
    model.eval()
    try:
        _run(model, loader, device)
    finally:
        _restore_modes(modes)
        for hook in hooks:
            hook.remove()
    for layer, moments in sums.items():
        if moments.count:
            _move_statistics(layer, *moments.mean_and_variance())


def has_folded_statistics(module: nn.Module) -> bool:
    """Whether a module is a batch norm with folded statistics: mean 0, and one variance for all channels."""
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if mean is None or variance is None or module.weight is None or module.bias is None:
        return False
    return is_folded(mean, variance)


def to_training_mode(model: nn.Module) -> None:
    """Put all modules into training mode, except frozen batch norms, whose statistics stay."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and _is_frozen(module):
            module.eval()


def _is_frozen(layer: nn.Module) -> bool:
    """Whether a batch norm has weight and bias, and none of them requires a gradient."""
    own = list(layer.parameters(recurse=False))
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def _modes(model: nn.Module) -> dict[nn.Module, bool]:
    """Whether each module is in training mode."""
    return {module: module.training for module in model.modules()}


def _restore_modes(modes: dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training


def _run(model: nn.Module, loader: Loader, device: torch.device) -> None:
    for batch in islice(loader, REFRESHING):
        with autocast(device):
            forward(model, to_device(batch, device))


class _Moments:
    """Sums and sums of squares over the inputs of a batch norm, per channel."""

    def __init__(self) -> None:
        self.count = 0
        self.sum: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].detach().double().transpose(0, 1).flatten(1)
        self.count += values.shape[1]
        self.sum = self.sum + values.sum(1)
        self.squares = self.squares + values.square().sum(1)

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        mean = torch.as_tensor(self.sum) / self.count
        return mean, (torch.as_tensor(self.squares) / self.count - mean.square()).clamp(min=0.0)


def _move_statistics(layer: nn.Module, mean: Tensor, variance: Tensor) -> None:
    weight, bias, old_mean, old_variance = (getattr(layer, name).double() for name in PARTS)
    before = BatchNormVectors(weight, bias, old_mean, old_variance, float(layer.eps))  # type: ignore[arg-type]
    after = before.with_statistics(mean, variance)
    for name, values in zip(PARTS, (after.weight, after.bias, after.mean, after.variance), strict=True):
        getattr(layer, name).copy_(values)
