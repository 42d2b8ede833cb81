"""Networks by name: torchvision's, timm's, and a user's own. The code of a network comes from the user, never from a file."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opq import torch as face
from opq.checkpoints import as_state
from opq.errors import ModelError
from opq.zoo.preprocessing import MEAN, STD, Preprocessing, load_library, of_timm, of_torchvision, plain


@dataclass(frozen=True)
class NamedModel:
    """A network, and the preprocessing of its images."""

    network: nn.Module
    preprocessing: Preprocessing = field(default_factory=plain)


def open_model(
    name: str,
    weights: str | None = None,
    *,
    seed: int | None = None,
    input_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> NamedModel:
    """The network of this name, with these weights.

    Args:
        name: torchvision:NAME, timm:NAME, package.module:factory or path/file.py:factory; a factory takes no arguments and
            gives a module.
        weights: A checkpoint as `opq.compress` takes it, or a .opq file; or for torchvision and timm the name of published
            weights, which these libraries fetch, such as DEFAULT or IMAGENET1K_V2 for torchvision, and for timm a tag or
            "pretrained"; None for those that the factory makes.
        seed: Of what the factory draws; None leaves the generator as it is.
        input_size: Height and width of its images. None for what torchvision or timm says; a network of the user's own then
            gets images as large as they are.
        mean: Of its images in 0..1, one for each channel or one for all. None for what torchvision or timm says, else
            ImageNet's.
        std: As for the mean.

    Returns:
        The network and its preprocessing.

    Raises:
        ModelError: There is no such network, or its weights do not fit.
        SourceError: The weights cannot be read.
        MissingExtraError: torchvision or timm is not installed.
        OpqError: torchvision or timm does not load.
    """
    if seed is not None:
        torch.manual_seed(seed)
    library, separator, attribute = name.rpartition(":")
    if not separator or not library or not attribute:
        raise ModelError(name, "expected torchvision:NAME, timm:NAME, package.module:factory or file.py:factory")
    checkpoint = weights if weights is not None and os.path.exists(weights) else None
    published = weights if checkpoint is None else None
    if library == "torchvision":
        model = _torchvision(name, attribute, published, (input_size, mean, std))
    elif library == "timm":
        model = _timm(name, attribute, published, (input_size, mean, std))
    elif published is not None:
        raise ModelError(name, f"there is no file {published!r} with its weights")
    else:
        model = NamedModel(_made(name, library, attribute), plain(input_size, mean or MEAN, std or STD))
    if checkpoint is not None:
        load_weights(name, model.network, checkpoint)
    return model


def load_weights(name: str, network: nn.Module, checkpoint: str) -> None:
    """Load a checkpoint or .opq file into a network; ModelError where they do not belong together."""
    if Path(checkpoint).suffix == ".opq":
        tensors = face.load_file(checkpoint)
    else:
        state = as_state(checkpoint)
        tensors = {key: face.to_tensor(state[key]) for key in state}
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(name, f"{checkpoint} is not of it: {' '.join(str(error).split())[:300]}") from None


_Told = tuple[int | None, tuple[float, ...] | None, tuple[float, ...] | None]
"""Size, mean and standard deviation, in place of the network's own."""


def _torchvision(name: str, model: str, weights: str | None, declared: _Told) -> NamedModel:
    torchvision = load_library("torchvision", "torchvision's networks")
    try:
        transforms = torchvision.models.get_model_weights(model)[weights or "DEFAULT"].transforms
        if (kind := getattr(transforms, "func", transforms).__name__) != "ImageClassification":
            raise ModelError(name, f"it is no classifier of images; torchvision's preprocessing for it is {kind}")
        network = torchvision.models.get_model(model, weights=weights)
    except (ValueError, KeyError) as error:
        raise ModelError(name, str(error)) from None
    return NamedModel(network, of_torchvision(transforms, *declared))


def _timm(name: str, model: str, weights: str | None, declared: _Told) -> NamedModel:
    timm = load_library("timm", "timm's networks")
    full = model if weights in (None, "pretrained") else f"{model}.{weights}"
    try:
        network = timm.create_model(full, pretrained=weights is not None)
    except RuntimeError as error:
        raise ModelError(name, str(error)) from None
    return NamedModel(network, of_timm(timm.data.resolve_model_data_config(network), *declared))


def _made(name: str, module: str, attribute: str) -> nn.Module:
    """What a factory gives; as it is loaded, and as it runs, it may import what lies beside it."""
    path = Path(module) if module.endswith(".py") else None
    folder = str(path.parent.resolve()) if path else os.getcwd()
    sys.path.insert(0, folder)
    try:
        loaded = _load_file(name, path) if path else importlib.import_module(module)
        if not hasattr(loaded, attribute):
            raise ModelError(name, f"there is no {attribute!r} in {module}")
        factory = getattr(loaded, attribute)
        network = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    except ImportError as error:
        raise ModelError(name, str(error)) from None
    finally:
        sys.path.remove(folder)
    if not isinstance(network, nn.Module):
        raise ModelError(name, f"expected it to give a torch module, got {type(network).__name__}")
    return network


def _load_file(name: str, path: Path) -> Any:
    if not path.is_file():
        raise ModelError(name, f"there is no file {path}")
    own_name = f"_opq_network_{path.stem}"
    description = importlib.util.spec_from_file_location(own_name, path)
    if description is None or description.loader is None:
        raise ModelError(name, f"{path} is no Python file")
    module = importlib.util.module_from_spec(description)
    sys.modules[own_name] = module  # where dataclasses look for it
    description.loader.exec_module(module)
    return module
