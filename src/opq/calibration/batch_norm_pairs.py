"""Layers that calibration can reconstruct, and the batch norms that directly follow them.

If a batch norm is the only consumer of a layer's output, the scale of each output channel is free: the weights of a channel
times s, its running mean times s and the weight of its batch norm over s compute the same function. One forward pass shows
which batch norm receives which output. A second pass under changed scales proves that nothing else uses that output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from opq.errors import CalibrationError

Layer = nn.Conv2d | nn.Linear
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
LAYERS, BATCH_NORMS = (nn.Conv2d, nn.Linear), (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_TOLERANCE = 1e-4


def find_layers(model: nn.Module) -> dict[str, Layer]:
    """Find the layers that can be reconstructed.

    Args:
        model: The network.

    Returns:
        {module name: module} of every `Linear` and every `Conv2d` with zero padding whose weight no other module shares.
        Subclasses are left out, because they may compute something else.
    """
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in LAYERS
        and not (isinstance(module, nn.Conv2d) and (module.padding_mode != "zeros" or module.padding == "same"))
        and isinstance(module, nn.Conv2d | nn.Linear)
        and owners[id(module.weight)] == 1
    }


def find_batch_norms(model: nn.Module) -> dict[str, BatchNorm]:
    """Find the batch norms that have running statistics, a weight and a bias.

    Args:
        model: The network.

    Returns:
        {module name: module}.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BATCH_NORMS) and module.running_mean is not None and module.affine
    }


def statistics(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean and running variance of a batch norm, both (channels,).

    Raises:
        CalibrationError: The batch norm has none.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise CalibrationError("batch norm must have running statistics, because calibration writes them; load it with its own")
    return norm.running_mean, norm.running_var


def outputs_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """Run `model` on `inputs` and return its output tensor.

    Args:
        model: The network. It returns a tensor, or an object with a tensor as `.logits`, as Hugging Face models do.
        inputs: (samples, ...).

    Returns:
        (samples, ...), on the network's device.

    Raises:
        CalibrationError: The network returns something else.
    """
    outputs = model(inputs)
    outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor):
        raise CalibrationError(f"the network must return a tensor, or an object with .logits, got {type(outputs).__name__}")
    return outputs


def find_pairs(model: nn.Module, example: Tensor) -> dict[str, str]:
    """Find the batch norms that are the only consumer of a layer's output.

    Args:
        model: The network, in evaluation mode. Its values are the same afterwards.
        example: (samples, ...) inputs; two samples suffice.

    Returns:
        {name of the layer: name of the batch norm}.

    Raises:
        CalibrationError: The network does not return a tensor.
    """
    candidates = _find_followers(model, example)
    if candidates and not _scales_are_free(model, example, candidates):
        candidates = {name: norm for name, norm in candidates.items() if _scales_are_free(model, example, {name: norm})}
    return candidates


def _find_followers(model: nn.Module, example: Tensor) -> dict[str, str]:
    """{layer: batch norm that receives its unmodified output}; other consumers of that output are not detected here."""
    outputs: dict[int, tuple[str, int]] = {}
    kept_alive: list[Tensor] = []  # no two outputs may have the same id
    pairs: dict[str, list[str]] = {}
    handles = []

    def note_output(name: str, output: Tensor) -> None:
        kept_alive.append(output)
        outputs[id(output)] = name, output._version

    def note_input(name: str, norm_input: Tensor) -> None:
        layer, version = outputs.get(id(norm_input), ("", -1))
        if version == norm_input._version:  # an activation function may have changed the output in place
            pairs.setdefault(layer, []).append(name)

    for name, layer in find_layers(model).items():
        handles.append(layer.register_forward_hook(lambda _, __, out, name=name: note_output(name, out)))
    for name, norm in find_batch_norms(model).items():
        handles.append(norm.register_forward_pre_hook(lambda _, args, name=name: note_input(name, args[0])))
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    # A layer or batch norm that runs more than once belongs to no pair.
    used = [norm for norms in pairs.values() for norm in norms]
    return {name: norms[0] for name, norms in pairs.items() if len(norms) == 1 and used.count(norms[0]) == 1}


def _scales_are_free(model: nn.Module, example: Tensor, pairs: Mapping[str, str]) -> bool:
    """Whether the outputs stay the same if channels are scaled by powers of two and their batch norms undo it."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    layers, norms = find_layers(model), find_batch_norms(model)
    with torch.no_grad():
        before = outputs_of(model, example)
        try:
            for name, norm in pairs.items():
                layer, batch_norm = layers[name], norms[norm]
                scale = 2.0 ** torch.randint(-2, 3, (len(layer.weight),), generator=generator).to(layer.weight)
                layer.weight.mul_(scale.reshape(-1, *(1,) * (layer.weight.ndim - 1)))
                if layer.bias is not None:
                    layer.bias.mul_(scale)
                statistics(batch_norm)[0].mul_(scale)
                batch_norm.weight.div_(scale)
            after = outputs_of(model, example)
        finally:
            model.load_state_dict(state)
    return bool(torch.allclose(before, after, rtol=_TOLERANCE, atol=_TOLERANCE * float(before.abs().max())))
