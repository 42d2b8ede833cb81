"""Layers that can be compressed against their outputs, and the batch-norms that directly follow them.

A batch-norm that takes a layer's output, and nothing else does, makes the scale of each output channel free: a channel's
weights times s, its running mean times s and its batch-norm's weight over s leave the function as it is. Which follows which
is seen by running the network; that nothing else takes the output is proved by changing the scales and running it again.
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
    """{name of the module: it}, of every linear layer and convolution padded with zeros whose weight is its own alone."""
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
    """{name of the module: it}, of every batch-norm that has statistics, weight and bias of its own."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BATCH_NORMS) and module.running_mean is not None and module.affine
    }


def statistics(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean and variance of a batch-norm of `norms_of`."""
    if norm.running_mean is None or norm.running_var is None:
        raise CalibrationError("a batch-norm lost its running statistics")
    return norm.running_mean, norm.running_var


def outputs_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """What `model` gives, as a tensor or under `.logits`; CalibrationError where it is neither."""
    outputs = model(inputs)
    outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor):
        raise CalibrationError(f"expected the network to give a tensor, itself or under .logits, got {type(outputs).__name__}")
    return outputs


def find_pairs(model: nn.Module, example: Tensor) -> dict[str, str]:
    """{name of a layer: name of the batch-norm that alone takes its output}; `model` is in evaluation mode."""
    candidates = _followers(model, example)
    if candidates and not _scales_are_free(model, example, candidates):
        candidates = {name: norm for name, norm in candidates.items() if _scales_are_free(model, example, {name: norm})}
    return candidates


def _followers(model: nn.Module, example: Tensor) -> dict[str, str]:
    outputs: dict[int, tuple[str, int]] = {}
    kept: list[Tensor] = []  # so that no address is used twice
    pairs: dict[str, list[str]] = {}
    handles = []

    def note_output(name: str, output: Tensor) -> None:
        kept.append(output)
        outputs[id(output)] = name, output._version

    def note_input(name: str, taken: Tensor) -> None:
        layer, version = outputs.get(id(taken), ("", -1))
        if version == taken._version:  # else an activation has changed it in place
            pairs.setdefault(layer, []).append(name)

    for name, layer in find_layers(model).items():
        handles.append(layer.register_forward_hook(lambda _, __, out, name=name: note_output(name, out)))
    for name, norm in find_batch_norms(model).items():
        handles.append(norm.register_forward_pre_hook(lambda _, taken, name=name: note_input(name, taken[0])))
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    # A layer or batch-norm that runs more than once belongs to no pair.
    taken = [norm for found in pairs.values() for norm in found]
    return {name: found[0] for name, found in pairs.items() if len(found) == 1 and taken.count(found[0]) == 1}


def _scales_are_free(model: nn.Module, example: Tensor, pairs: Mapping[str, str]) -> bool:
    """Whether scaling the layers' channels by powers of two, undone in the batch-norms, leaves the outputs as they are."""
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
