"""Codebooks onto the weights of a network, and off again.

While a network is prepared, each of its weights has a latent value, the parameter that trains, and the value that the rest
of the network sees, which is always in its codebook. `torch.nn.utils.parametrize` keeps the two apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from opq import torch as face
from opq.codec.file_reader import OpqFile
from opq.compression.planning import plan as make_plan
from opq.config import CompressionOptions
from opq.errors import PlanError, SourceError, TargetError, WeightError
from opq.quantization.compressed_tensor import CompressedTensor
from opq.rate_distortion.plan import LayerPlan, Plan
from opq.training.device import to_contiguous
from opq.training.parametrization import Codebook, fixed_plan
from opq.training.tied_weights import tie, untie

_ORDER = "_opq_order"
"""Where a prepared module notes the order of its own tensors."""


@dataclass(frozen=True)
class PreparedWeight:
    """A weight with a codebook.

    names   its names in the network's own state dict; more than one where modules share it
    latent  what trains
    """

    names: tuple[str, ...]
    latent: Tensor
    codebook: Codebook


def prepare(
    model: nn.Module,
    plan: Plan | OpqFile | str | os.PathLike[str] | bytes | None = None,
    **options: Unpack[CompressionOptions],
) -> nn.Module:
    """Attach masks and steps to the weights of `model`, in place: from now on they are always in their codebooks.

    plan     a plan, whose masks are taken from the weights as they are now; or a .opq file, whose tensors are loaded into the
             network and whose masks and steps are kept; or None, to make a plan with
    options  a target and what is fixed, as for `opq.plan`, but that a byte target rounds plainly unless told otherwise
    Any optimizer of the network's parameters stays as it is, any training loop too; `convert` ends it. Returns `model`.
    Raises PlanError when the plan was not made for this network, or the network is prepared already; what `opq.plan` and
    reading a file raise.
    """
    if codebooks(model):
        raise PlanError("the network is prepared already; convert it first")
    if plan is None:
        plan = make_plan(model, **for_training(options))
    elif options:
        raise TargetError(f"a plan already says {', '.join(sorted(options))}: give either the plan or options")
    if isinstance(plan, Plan):
        _attach(model, {name: partial(Codebook.from_plan, name, plan=layer) for name, layer in plan.layers.items()})
    elif isinstance(plan, OpqFile):
        _start_from(model, plan)
    else:
        with OpqFile(plan) as file:
            _start_from(model, file)
    return model


def for_training(options: CompressionOptions) -> CompressionOptions:
    """The options with plain rounding where a byte target leaves it open: training rounds each weight by itself."""
    in_bytes = options.get("ratio") is not None or options.get("size") is not None
    return CompressionOptions(**{"rounding": "plain", **options}) if in_bytes else options


def convert(model: nn.Module) -> nn.Module:
    """Make the weights of a prepared `model` plain parameters again, holding the values they round to. Returns `model`.

    Raises WeightError, leaving the network prepared, when a weight holds NaN or infinite values.
    """
    weights = codebooks(model)
    values = {id(weight.latent): _finite_value(weight) for weight in weights}
    with torch.no_grad():
        for weight in weights:
            weight.latent.copy_(values[id(weight.latent)])
    _strip(model, weights)
    return model


@contextmanager
def restore_on_failure(model: nn.Module) -> Iterator[None]:
    """Where the block fails or is interrupted, make `model` what it was before: dense, its values and modes its own.

    A network that is prepared already stays prepared, as far as it has come.
    """
    if codebooks(model):
        yield
        return
    modes = {module: module.training for module in model.modules()}
    state = {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    try:
        yield
    except BaseException:
        _strip(model, codebooks(model))
        to_contiguous(model)
        model.load_state_dict(state, strict=False)
        for module, training in modes.items():
            module.training = training
        raise


def _strip(model: nn.Module, weights: Iterable[PreparedWeight]) -> None:
    """Make prepared weights plain parameters again, holding their latent values."""
    untie(model)
    for weight in weights:
        for name in weight.names:
            _detach(*_owner(model, name))


def is_prepared(model: nn.Module) -> bool:
    """Whether `model` has weights with codebooks."""
    return bool(codebooks(model))


def codebooks(model: nn.Module) -> list[PreparedWeight]:
    """The prepared weights of `model`, each once, in order of their first names."""
    found: dict[int, tuple[list[str], Tensor, Codebook]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, chain in getattr(module, "parametrizations", {}).items():
            if isinstance(chain, parametrize.ParametrizationList) and isinstance(chain[0], Codebook):
                name = f"{path}.{attribute}" if path else attribute
                found.setdefault(id(chain.original), ([], chain.original, chain[0]))[0].append(name)
    weights = [PreparedWeight(tuple(sorted(names)), latent, codebook) for names, latent, codebook in found.values()]
    return sorted(weights, key=lambda weight: weight.names[0].encode())


def current_codes(weights: Iterable[PreparedWeight]) -> list[NDArray[np.int32]]:
    """Codes of prepared weights as they are now."""
    return [weight.codebook.codes(weight.latent).cpu().numpy() for weight in weights]


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that a prepared `model` would have after `convert`: its own names, weights in their codebooks."""
    weights = {name: weight for weight in codebooks(model) for name in weight.names}
    values = {id(weight.latent): _finite_value(weight) for weight in weights.values()}
    state = {}
    for key, tensor in model.state_dict().items():
        name = _plain_name(key)
        if name not in weights:
            state[key] = tensor
        elif key.endswith(".original"):
            state[name] = values[id(weights[name].latent)]
    return state | {name: values[id(weight.latent)] for name, weight in weights.items()}


def fixed_layers(model: nn.Module) -> dict[str, LayerPlan]:
    """{name: the LayerPlan under which the values of a prepared `model` get their own codes}."""
    return {
        name: fixed_plan(tuple(weight.latent.shape), float(weight.codebook.step))
        for weight in codebooks(model)
        for name in weight.names
    }


def _start_from(model: nn.Module, file: OpqFile) -> None:
    """Load the tensors of a file into `model`, and take its masks and steps."""
    contents = {name: file[name] for name in file}
    own = model.state_dict()
    for name in [*own, *contents]:
        if name not in own or name not in contents:
            raise SourceError("the file", f"it is not of this network: {name!r} is in only one of them")
        if tuple(own[name].shape) != contents[name].shape:
            raise SourceError("the file", f"{name!r} is {contents[name].shape} in it, {tuple(own[name].shape)} in the network")
    weights = {name: content for name, content in contents.items() if isinstance(content, CompressedTensor)}
    for name, content in weights.items():
        _tensor(model, name)
        if content.step is None:
            raise WeightError(name, content.shape, "it has a table of levels, and training needs a step; compress it to a size")
    model.load_state_dict({name: face.to_tensor(file.array(name)) for name in file})
    _attach(model, {name: partial(Codebook.from_file, tensor=tensor) for name, tensor in weights.items()})


def _attach(model: nn.Module, makers: Mapping[str, Callable[[Tensor], Codebook]]) -> None:
    """Give each named weight, and whatever shares its memory under another name, the codebook that its maker makes of it."""
    made: dict[int, Codebook] = {}
    for name, maker in makers.items():  # all of them, before any is attached
        tensor = _tensor(model, name)
        if id(tensor) not in made:
            made[id(tensor)] = maker(tensor.detach())
    for name in makers:
        made[id(_tensor(model, name))].settle(_tensor(model, name).detach())
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
    tie(model, [weight.names for weight in codebooks(model)])


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


def _tensor(model: nn.Module, name: str) -> Tensor:
    try:
        module, attribute = _owner(model, name)
    except AttributeError:
        module, attribute = nn.Module(), ""
    if isinstance(module, parametrize.ParametrizationList):
        raise PlanError(f"{name!r} is part of a weight that is parametrized already, as weight_norm does; make it plain first")
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        raise PlanError(f"{name!r} is rewritten by its embedding as it runs; set max_norm to None first")
    tensor = module._parameters.get(attribute, module._buffers.get(attribute))
    if tensor is None:
        raise PlanError(f"it has a layer {name!r}, which the network lacks")
    return tensor


def _finite_value(weight: PreparedWeight) -> Tensor:
    if not torch.isfinite(weight.latent).all():
        raise WeightError(weight.names[0], weight.latent.shape, "training has led to NaN or infinite values; lower the rate")
    with torch.no_grad():
        value: Tensor = weight.codebook(weight.latent)
    return value


def _plain_name(key: str) -> str:
    """a.weight for a.parametrizations.weight.original, a.parametrizations.weight.0.mask and the like."""
    path, marker, rest = f".{key}".rpartition(".parametrizations.")
    return f"{path}.{rest.partition('.')[0]}".removeprefix(".") if marker else key
