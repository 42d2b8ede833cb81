"""Attach parametrizations to the weights of a network, and detach them.

Each weight of a prepared network has a latent value, which is the parameter that trains, and a value in its codebook, which the
modules of the network use. `torch.nn.utils.parametrize` computes the second from the first.
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
from opq.quantization.compressed_tensor import CompressedTensor
from opq.training.device import to_contiguous
from opq.training.half_precision import half_dtypes, restore_dtypes
from opq.training.parametrization import CodebookParametrization
from opq.training.tied_weights import tie, untie

_ORDER = "_opq_order"
"""Attribute in which a prepared module keeps the order of its tensors in the state dict."""


@dataclass(frozen=True)
class PreparedWeight:
    """A weight of a prepared network.

    Args:
        names: Its names in the state dict of the plain network, sorted; more than one if modules share it.
        latent: The parameter that trains.
        codebook: The parametrization that quantizes it.
    """

    names: tuple[str, ...]
    latent: Tensor
    codebook: CodebookParametrization

    def tensor(self) -> CompressedTensor:
        """The weight as a file stores it, with its current values.

        Raises:
            WeightError: The latent value holds NaN or infinite values.
        """
        self.check_finite()
        codes = self.codebook.codes(self.latent).cpu().numpy()
        return CompressedTensor(codes, self.codebook.codebook(), _dtype_name(self.latent))

    def value(self) -> Tensor:
        """The codebook values, shaped as `latent`, without a gradient.

        Raises:
            WeightError: The latent value holds NaN or infinite values.
        """
        self.check_finite()
        with torch.no_grad():
            value: Tensor = self.codebook(self.latent)
        return value

    def check_finite(self) -> None:
        """Check the latent value.

        Raises:
            WeightError: It holds NaN or infinite values.
        """
        if not torch.isfinite(self.latent).all():
            raise WeightError(
                self.names[0], self.latent.shape, "its values became NaN or infinite in training; lower the learning rate"
            )


def prepared_weights(model: nn.Module) -> list[PreparedWeight]:
    """The prepared weights of `model`, each once, sorted by their first names as UTF-8."""
    found: dict[int, tuple[list[str], Tensor, CodebookParametrization]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, chain in getattr(module, "parametrizations", {}).items():
            if isinstance(chain, parametrize.ParametrizationList) and isinstance(chain[0], CodebookParametrization):
                name = f"{path}.{attribute}" if path else attribute
                found.setdefault(id(chain.original), ([], chain.original, chain[0]))[0].append(name)
    weights = [PreparedWeight(tuple(sorted(names)), latent, codebook) for names, latent, codebook in found.values()]
    return sorted(weights, key=lambda weight: weight.names[0].encode())


def current_codes(weights: Iterable[PreparedWeight]) -> list[NDArray[np.int32]]:
    """Current codes of prepared weights, int32, each shaped as its weight."""
    return [weight.codebook.codes(weight.latent).cpu().numpy() for weight in weights]


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that a prepared `model` would have after `convert`: original names, and codebook values of weights."""
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
    """Context that restores the dense `model` if its block fails or is interrupted: values, modules and training modes.

    A network that is already prepared on entry is left as the block left it.
    """
    if prepared_weights(model):
        yield
        return
    modes, dtypes = {module: module.training for module in model.modules()}, half_dtypes(model)
    state = {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    try:
        yield
    except BaseException:
        detach(model, prepared_weights(model))
        to_contiguous(model)
        restore_dtypes(model, dtypes)
        model.load_state_dict(state, strict=False)
        for module, training in modes.items():
            module.training = training
        raise


def attach(model: nn.Module, makers: Mapping[str, Callable[[Tensor], CodebookParametrization]]) -> None:
    """Attach a parametrization to each named weight, and to every name that shares its tensor.

    Args:
        model: The network; it is changed in place.
        makers: {name of a weight: function that makes the parametrization from its tensor}.

    Raises:
        PlanError: A name is not a tensor of the network, or its tensor cannot be parametrized.
        WeightError: A maker refuses its weight. Then the network is unchanged.
    """
    made: dict[int, CodebookParametrization] = {}
    for name, maker in makers.items():  # all are made before any is attached, so that an error changes nothing
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
    """Turn prepared weights of `model` into plain parameters again, which hold the latent values."""
    untie(model)
    for weight in weights:
        for name in weight.names:
            _detach(*_owner(model, name))


def find_tensor(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of this name.

    Raises:
        PlanError: There is none, or it cannot be parametrized.
    """
    try:
        module, attribute = _owner(model, name)
    except AttributeError:
        module, attribute = nn.Module(), ""
    if isinstance(module, parametrize.ParametrizationList):
        raise PlanError(f"{name!r} is parametrized already (by weight_norm, for example); remove its parametrization first")
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        raise PlanError(f"{name!r} is renormalized by its embedding in each forward pass; set max_norm to None first")
    tensor = module._parameters.get(attribute, module._buffers.get(attribute))
    if tensor is None:
        raise PlanError(f"it has a layer {name!r}, which the network lacks; make a plan for this network")
    return tensor


def _detach(module: nn.Module, attribute: str) -> None:
    if not parametrize.is_parametrized(module, attribute):
        return  # the module has two names
    parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
    own = module._parameters if attribute in module._parameters else module._buffers
    for name in getattr(module, _ORDER):  # restores the order of the state dict
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
    """Update the list in which a recurrent layer keeps its weights."""
    names: list[str] = module._flat_weights_names  # type: ignore[assignment]
    module._flat_weights = [getattr(module, name) for name in names]  # type: ignore[assignment]


def _forget_flat_weights(module: nn.Module, inputs: object, outputs: object) -> None:
    """Detach the list's values from the graph, because a network with graph tensors cannot be copied."""
    module._flat_weights = [weight.detach() for weight in module._flat_weights]  # type: ignore[union-attr,assignment]


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _plain_name(key: str) -> str:
    """The plain name of a key: a.weight for a.parametrizations.weight.original or a.parametrizations.weight.0.mask."""
    path, marker, rest = f".{key}".rpartition(".parametrizations.")
    return f"{path}.{rest.partition('.')[0]}".removeprefix(".") if marker else key


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
