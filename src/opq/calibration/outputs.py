"""What a network computes for a batch, how wrong another network's outputs are, and directions to measure curvature along."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opq.calibration.inputs import Batch, mapped, tensors_of
from opq.errors import CalibrationError

_CACHES = frozenset(("past_key_values", "mems"))
_FEWEST_TOKENS = 64


def outputs_of(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Run `model` on a batch and return its outputs.

    Args:
        model: The network. It returns a tensor, or any structure of tensors: tuples, mappings, dataclasses, or an object with
            `.logits`, which are then the only output.
        batch: Its arguments, which are moved to the network's device.

    Returns:
        The outputs of floating point, at least one.

    Raises:
        CalibrationError: The network fails, or returns no tensor of floating point.
    """
    arguments, keywords = mapped(lambda tensor: tensor.to(device_of(model)), batch)
    outputs = model(*arguments, **keywords)
    found = [tensor for tensor in tensors_of(_structure(outputs)) if tensor.is_floating_point()]
    if not found:
        raise CalibrationError(f"the network must return tensors of floating point, got {type(outputs).__name__}")
    return found


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter of a network; the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def is_next_token(batch: Batch, outputs: list[Tensor]) -> bool:
    """Whether the first output holds logits of many tokens for each token id of the input, as a language model's do."""
    shapes = {tuple(tensor.shape) for tensor in tensors_of(batch) if not tensor.is_floating_point()}
    logits = outputs[0]
    return logits.ndim == 3 and tuple(logits.shape[:2]) in shapes and logits.shape[2] >= _FEWEST_TOKENS


def errors(wanted: list[Tensor], found: list[Tensor], *, distributions: bool) -> tuple[float, float]:
    """The error of a network's outputs, and what it is relative to.

    Args:
        wanted: The outputs of the dense network.
        found: Those of the other one.
        distributions: Whether outputs are logits of distributions.

    Returns:
        The sum of the Kullback-Leibler divergences in nats, and their number; or the sum over outputs of the squared error over
        the mean square of that output, and the number of values.
    """
    if distributions:
        log_p, log_q = (logits[0].log_softmax(-1) for logits in (wanted, found))
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
        return float(divergence.sum(dtype=torch.float64)), float(divergence.numel())
    pairs = [(one.double(), other.double()) for one, other in zip(wanted, found, strict=True)]
    error = sum(float((other - one).square().sum() / one.square().mean().clamp(min=1e-30)) for one, other in pairs)
    return error, float(sum(one.numel() for one, _ in pairs))


def magnitudes_of(outputs: list[Tensor]) -> list[float]:
    """The root mean square of each output, > 0."""
    return [max(float(output.detach().double().square().mean()), 1e-60) ** 0.5 for output in outputs]


def random_directions(
    outputs: list[Tensor], magnitudes: list[float], generator: torch.Generator, *, distributions: bool
) -> list[Tensor]:
    """A random vector for each output: the squared gradient of their scalar product estimates what errors of weights cost.

    For a squared error, the vectors are standard normal, over the output's magnitude. For the divergence of
    distributions p of logits, they have the covariance diag(p) - p p^T of the Fisher information: with v standard normal,
    sqrt(p) v - p sum(sqrt(p) v). That of a confident classifier nearly vanishes, so logits of few classes count as other
    outputs do.

    Args:
        outputs: Detached outputs.
        magnitudes: Of each output; all batches have the same, so that all samples count alike.
        generator: Of the CPU.
        distributions: Whether outputs are logits of distributions.
    """
    noise = [torch.randn(output.shape, generator=generator).to(output) for output in outputs]
    if not distributions:
        return [normal / magnitude for normal, magnitude in zip(noise, magnitudes, strict=True)]
    root = torch.softmax(outputs[0], -1).sqrt()
    pulled = root * noise[0]
    return [pulled - root.square() * pulled.sum(-1, keepdim=True)]


def _structure(outputs: Any) -> Any:
    """Nested tuples, lists and mappings for any outputs."""
    if isinstance(logits := getattr(outputs, "logits", None), Tensor):
        return logits
    if isinstance(outputs, Mapping):
        return [_structure(value) for key, value in outputs.items() if key not in _CACHES]
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        return [_structure(getattr(outputs, field.name)) for field in dataclasses.fields(outputs) if field.name not in _CACHES]
    return [_structure(part) for part in outputs] if isinstance(outputs, tuple | list) else outputs
