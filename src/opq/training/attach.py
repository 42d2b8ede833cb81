"""Parametrizations onto the weights of a network, and off again.

While a network is prepared, each of its weights has a latent value, the parameter that trains, and the value that the rest of the
network sees, which is always in its codebook. `torch.nn.utils.parametrize` keeps the two apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from opq.errors import PlanError, WeightError
from opq.quantization.codebook import UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor
from opq.training.device import to_contiguous
from opq.training.parametrization import CodebookParametrization
from opq.training.tied_weights import tie, untie

_ORDER = "_opq_order"
"""Where a prepared module keeps the order of its own tensors."""


@dataclass(frozen=True)
class PreparedWeight:
    """A weight with a codebook.

    Args:
        names: Its names in the network's own state dict; more than one if modules share it.
        latent: The parameter that trains.
        codebook: Its parametrization.
    """

    names: tuple[str, ...]
    latent: Tensor
    codebook: CodebookParametrization

    def tensor(self) -> CompressedTensor:
        """The weight for a file, as it is now; WeightError if it holds NaN or infinite values."""
        self.check_finite()
        codes = self.codebook.codes(self.latent).cpu().numpy()
        return CompressedTensor(codes, UniformCodebook(float(self.codebook.step)), _dtype_name(self.latent))

    def value(self) -> Tensor:
        """The value that the rest of the network sees; WeightError if it is not finite."""
        self.check_finite()
        with torch.no_grad():
            value: Tensor = self.codebook(self.latent)
        return value

    def check_finite(self) -> None:
        """Raise WeightError if the latent value holds NaN or infinite values."""
        if not torch.isfinite(self.latent).all():
            raise WeightError(
                self.names[0], self.latent.shape, "training led to NaN or infinite values; lower the learning rate"
            )


def prepared_weights(model: nn.Module) -> list[PreparedWeight]:
    """The prepared weights of `model`, each once, in order of their first names."""
    found: dict[int, tuple[list[str], Tensor, CodebookParametrization]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, chain in getattr(module, "parametrizations", {}).items():
            if isinstance(chain, parametrize.ParametrizationList) and isinstance(chain[0], CodebookParametrization):
                name = f"{path}.{attribute}" if path else attribute
                found.setdefault(id(chain.original), ([], chain.original, chain[0]))[0].append(name)
    weights = [PreparedWeight(tuple(sorted(names)), latent, codebook) for names, latent, codebook in found.values()]
    return sorted(weights, key=lambda weight: weight.names[0].encode())


def current_codes(weights: Iterable[PreparedWeight]) -> list[NDArray[np.int32]]:
    """Codes of prepared weights as they are now."""
    return [weight.codebook.codes(weight.latent).cpu().numpy() for weight in weights]


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that a prepared `model` would have after `convert`: its own names, weights in their codebooks."""
    weights = {name: weight for weight in prepared_weights(model) for name in weight.names}
    values = {id(weight.latent): weight.value() for weight in weights.values()}
    state = {}
    for key, tensor in model.state_dict().items():
        name = _plain_name(key)
        if name not in weights:
            state[key] = tensor
        elif key.endswith(".original"):
            state[name] = values[id(weights[name].latent)]
    return state | {name: values[id(weight.latent)] for name, weight in weights.items()}


@contextmanager
def restore_on_failure(model: nn.Module) -> Iterator[None]:
    """Where the block fails or is interrupted, make `model` what it was before: dense, its values and modes its own.

    A network that is prepared already stays prepared, as far as it has come.
    """
    if prepared_weights(model):
        yield
        return
    modes = {module: module.training for module in model.modules()}
    state = {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    try:
        yield
    except BaseException:
        detach(model, prepared_weights(model))
        to_contiguous(model)
        model.load_state_dict(state, strict=False)
        for module, training in modes.items():
            module.training = training
        raise


def attach(model: nn.Module, makers: Mapping[str, Callable[[Tensor], CodebookParametrization]]) -> None:
    """Give each named weight, and whatever shares its memory under another name, the codebook that its maker makes of it."""
    made: dict[int, CodebookParametrization] = {}
    for name, maker in makers.items():  # all of them, before any is attached
        tensor = find_tensor(model, name)
        if id(tensor) not in made:
            made[id(tensor)] = maker(tensor.detach())
    for name in makers:
        made[id(find_tensor(model, name))].initialize(find_tensor(model, name).detach())
    for module in list(model.modules()):
        own: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
        found = {attribute: made[id(tensor)] for attribute, tensor in own.items() if id(tensor) in made}
        if found:
            setattr(module, _ORDER, tuple(own))
        for attribute, codebook in found.items():
            parametrize.register_parametrization(module, attribute, codebook)
        if found and isinstance(module, nn.RNNBase):
            module.register_forward_pre_hook(_refresh_flat_weights)
            module.register_forward_hook(_forget_flat_weights)
    tie(model, [weight.names for weight in prepared_weights(model)])


def detach(model: nn.Module, weights: Iterable[PreparedWeight]) -> None:
    """Make prepared weights plain parameters again, holding their latent values."""
    untie(model)
    for weight in weights:
        for name in weight.names:
            _detach(*_owner(model, name))


def find_tensor(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of this name; PlanError if there is none, or if it cannot be parametrized."""
    try:
        module, attribute = _owner(model, name)
    except AttributeError:
        module, attribute = nn.Module(), ""
    if isinstance(module, parametrize.ParametrizationList):
        raise PlanError(f"{name!r} is part of a weight that is parametrized already, as weight_norm does; make it plain first")
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        raise PlanError(f"{name!r} is rewritten by its embedding in each forward pass; set max_norm to None first")
    tensor = module._parameters.get(attribute, module._buffers.get(attribute))
    if tensor is None:
        raise PlanError(f"it has a layer {name!r}, which the network lacks")
    return tensor


def _detach(module: nn.Module, attribute: str) -> None:
    if not parametrize.is_parametrized(module, attribute):
        return  # a module that stands in two places
    parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
    own = module._parameters if attribute in module._parameters else module._buffers
    for name in getattr(module, _ORDER):  # as the state dict had them
        if name in own:
            own[name] = own.pop(name)  # type: ignore[assignment]
    if parametrize.is_parametrized(module):
        return
    delattr(module, _ORDER)
    if isinstance(module, nn.RNNBase):
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in (_refresh_flat_weights, _forget_flat_weights)]:
                del hooks[key]
        _refresh_flat_weights(module)


def _refresh_flat_weights(module: nn.Module, inputs: object = None) -> None:
    """Recurrent layers keep their weights in a list of their own, which must hold the present values."""
    names: list[str] = module._flat_weights_names  # type: ignore[assignment]
    module._flat_weights = [getattr(module, name) for name in names]  # type: ignore[assignment]


def _forget_flat_weights(module: nn.Module, inputs: object, outputs: object) -> None:
    """Values that were computed hang on a graph, which cannot be copied with the network."""
    module._flat_weights = [weight.detach() for weight in module._flat_weights]  # type: ignore[union-attr,assignment]


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _plain_name(key: str) -> str:
    """a.weight for a.parametrizations.weight.original, a.parametrizations.weight.0.mask and the like."""
    path, marker, rest = f".{key}".rpartition(".parametrizations.")
    return f"{path}.{rest.partition('.')[0]}".removeprefix(".") if marker else key


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
