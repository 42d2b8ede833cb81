"""Statistics of batch norms that make up for what quantization changes before them.

Rounding errors change the mean and the variance of a channel. A batch norm with the new ones gives its output the old ones.
Both are compared on the same inputs, so few suffice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from opq.calibration.inputs import Batch
from opq.calibration.outputs import outputs_of

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Modules whose statistics are corrected."""

_LARGEST_CHANGE = 4.0

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

Statistics = tuple[Tensor, Tensor]
"""Mean and variance of each channel, float64."""

Correction = tuple[Tensor, Tensor]
"""What a channel has become, factor * old + shift, up to noise: the factor and the shift of each channel, float64."""


def batch_norms_of(model: nn.Module) -> dict[str, BatchNorm]:
    """{name: module} of every batch norm that has running statistics."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BATCH_NORMS) and module.running_mean is not None and module.running_var is not None
    }


@torch.no_grad()
def input_statistics(model: nn.Module, batch: Batch) -> dict[str, Statistics]:
    """Mean and variance of the inputs of each batch norm that runs once.

    Args:
        model: The network, in evaluation mode.
        batch: Inputs.
    """
    found: dict[str, Statistics] = {}
    calls = Counter[str]()

    def note(name: str, inputs: Tensor) -> None:
        calls[name] += 1
        found[name] = _statistics(inputs)

    handles = [
        norm.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
        for name, norm in batch_norms_of(model).items()
    ]
    try:
        outputs_of(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: statistics for name, statistics in found.items() if calls[name] == 1}


@torch.no_grad()
def correct(model: nn.Module, batch: Batch, wanted: Mapping[str, Statistics]) -> dict[str, Correction]:
    """Correct the statistics of a quantized network in place, each behind those before it.

    Args:
        model: The quantized network, in evaluation mode, with the statistics of the dense one.
        batch: The inputs of `wanted`.
        wanted: What `input_statistics` found in the dense network.

    Returns:
        {batch norm: its correction}.
    """
    norms = batch_norms_of(model)
    found: dict[str, Correction] = {}

    def adapt(name: str, inputs: Tensor) -> None:
        (mean, variance), (old_mean, old_variance) = _statistics(inputs), wanted[name]
        factor = torch.where(old_variance > 0.0, variance / old_variance.clamp(min=1e-300), 1.0).sqrt()
        factor = factor.clamp(1.0 / _LARGEST_CHANGE, _LARGEST_CHANGE)
        found[name] = factor, mean - factor * old_mean
        apply(norms[name], found[name])

    handles = [
        norms[name].register_forward_pre_hook(lambda _, args, name=name: adapt(name, args[0]))
        for name in norms.keys() & wanted.keys()
    ]
    try:
        outputs_of(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def apply(norm: BatchNorm, correction: Correction) -> None:
    """Correct the statistics of a batch norm in place."""
    factor, shift = correction
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.copy_(factor * norm.running_mean.double() + shift)
        norm.running_var.copy_(factor.square() * norm.running_var.double())


def _statistics(inputs: Tensor) -> Statistics:
    channels = inputs.detach().transpose(0, 1).flatten(1).double()
    return channels.mean(1), channels.var(1, unbiased=False)
