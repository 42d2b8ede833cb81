"""What errors cost: the diagonal of the Fisher information, from the network's own predictions and without labels.

For outputs (samples, classes) with probabilities p, the curvature of the KL divergence from the dense network is
J^T (diag(p) - p p^T) J, where J is the Jacobian of the logits. With v standard normal, u = sqrt(p) v - p sum(sqrt(p) v) has the
covariance diag(p) - p p^T. So the squared gradient of logits . u is an unbiased sample of the curvature's diagonal. If the
outputs are not (samples, classes), their squared error replaces the divergence: u = v.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from opq.calibration.batch_norm_pairs import outputs_of

_LEAST_SHARE = 1e-3


def fisher_information(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Tensor], *, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Measure the cost of a unit of squared error, as a mean over inputs.

    Args:
        model: The network, in evaluation mode. Its values and `requires_grad` flags are the same afterwards.
        layers: {name: module of `model`} whose outputs are measured.
        batches: Inputs, (samples, ...) each.
        seed: Of the random vectors v, >= 0.

    Returns:
        {layer: float64 (channels,) cost of a unit of squared error of each output channel, at least a thousandth of their
        mean}, and {parameter: cost of a unit of squared error, mean over its elements}. Layers and parameters without a
        gradient are absent.

    Raises:
        CalibrationError: The network does not return a tensor.
    """
    generator = torch.Generator().manual_seed(seed)
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> Tensor:
        if not output.requires_grad:  # computed without gradients
            return output
        output.retain_grad()
        outputs[name] = output
        return output.clone()  # the next module may change its input in place

    handles = [
        layer.register_forward_hook(lambda _, __, output, name=name: keep(name, output)) for name, layer in layers.items()
    ]
    requires_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    squares: dict[str, Tensor] = {}
    weights: dict[str, float] = {}
    samples = sum(len(batch) for batch in batches)
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        for batch in batches:
            with torch.enable_grad():
                logits = outputs_of(model, batch)
            model.zero_grad(set_to_none=True)
            logits.backward(_random_direction(logits.detach(), generator))  # type: ignore[no-untyped-call]
            for name, output in outputs.items():
                if output.grad is not None:
                    channels = _by_channel(output.grad, layers[name])
                    squares[name] = (
                        squares.get(name, torch.zeros(1)) + channels.square().mean(1).double() * len(batch) / samples
                    )
            for name, parameter in model.named_parameters(remove_duplicate=False):
                if parameter.grad is not None:
                    weights[name] = weights.get(name, 0.0) + float(parameter.grad.square().mean()) / samples
            outputs.clear()
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(requires_grad[name])
            parameter.grad = None
    return {name: value.clamp(min=max(_LEAST_SHARE * float(value.mean()), 1e-30)) for name, value in squares.items()}, weights


def _random_direction(logits: Tensor, generator: torch.Generator) -> Tensor:
    """The vector u of the module's docstring, shaped as `logits`."""
    noise = torch.randn(logits.shape, generator=generator).to(logits)
    if logits.ndim != 2 or logits.shape[1] < 2:
        return noise
    probability = torch.softmax(logits, 1)
    pulled = probability.sqrt() * noise
    return pulled - probability * pulled.sum(1, keepdim=True)


def _by_channel(values: Tensor, layer: nn.Module) -> Tensor:
    """Values of a layer's output as (channels, samples and positions)."""
    axis = 1 if isinstance(layer, nn.Conv2d) and values.ndim == 4 else values.ndim - 1
    return values.movedim(axis, 0).flatten(1)
