"""Networks by name: torchvision's, timm's, folders of transformers, and those of the user's own code.

A .opq file holds tensors only. The code of a network comes from the user or an installed library.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opq import torch as save_load
from opq.checkpoints import as_state
from opq.errors import ModelError
from opq.zoo.preprocessing import MEAN, STD, Preprocessing, load_library, of_timm, of_torchvision, plain
from opq.zoo.transformers_folder import open_folder


@dataclass(frozen=True)
class NamedModel:
    """A network and the preprocessing of its images.

    Args:
        network: The network.
        preprocessing: Transforms for training and for evaluation.
    """

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
    """Make a network, load its weights, and find the preprocessing of its images.

    Args:
        name: As for `open_network`. A network of torchvision must be a classifier.
        weights: As for `open_network`.
        seed: As for `open_network`.
        input_size: Height and width of the images. None: the size that torchvision or timm publishes; images keep their size
            for other networks.
        mean: Mean of images in 0..1, one value per channel or one for all channels. None: the values that torchvision or timm
            publishes; ImageNet's for other networks.
        std: Standard deviation, likewise.

    Returns:
        The network and its preprocessing.

    Raises:
        ModelError, SourceError, MissingExtraError, OpqError: As `open_network`.
    """
    library, attribute = _split(name)
    if library == "torchvision":
        transforms = _published_transforms(name, attribute, None if _is_file(weights) else weights)
        return NamedModel(open_network(name, weights, seed=seed), of_torchvision(transforms, input_size, mean, std))
    network = open_network(name, weights, seed=seed)
    if library == "timm":
        config = load_library("timm", "a network of timm").data.resolve_model_data_config(network)
        return NamedModel(network, of_timm(config, input_size, mean, std))
    return NamedModel(network, plain(input_size, mean or MEAN, std or STD))


def open_network(name: str, weights: str | None = None, *, seed: int | None = None) -> nn.Module:
    """Make a network and load its weights.

    Args:
        name: torchvision:NAME, timm:NAME, transformers:FOLDER, package.module:factory or path/file.py:factory. A factory takes
            no arguments and returns a module.
        weights: A checkpoint as for `opq.compress`, or a .opq file. For torchvision and timm also the name of published
            weights, which the library downloads: DEFAULT, IMAGENET1K_V2 and so on for torchvision; "pretrained" or a tag for
            timm. None: the initial weights.
        seed: Seed of random initial weights. None leaves PyTorch's generator as it is.

    Returns:
        The network.

    Raises:
        ModelError: There is no such network, its weights cannot be downloaded, or they belong to another one.
        SourceError: The weights cannot be read.
        MissingExtraError: torchvision or timm is not installed.
        OpqError: torchvision or timm cannot be imported.
    """
    if seed is not None:
        torch.manual_seed(seed)
    library, attribute = _split(name)
    checkpoint = weights if _is_file(weights) else None
    published = weights if checkpoint is None else None
    if library == "torchvision":
        network = _of_torchvision(name, attribute, published)
    elif library == "timm":
        network = _of_timm(name, attribute, published)
    elif library == "transformers" and published is None:
        network = open_folder(name, attribute)
    elif published is not None:
        raise ModelError(name, f"weights must be an existing file, got {published!r}")
    else:
        network = _from_factory(name, library, attribute)
    if checkpoint is not None:
        load_weights(name, network, checkpoint)
    return network


def default_weights(name: str) -> str | None:
    """The name of the weights that a network is published with; None for a factory, whose network has its weights.

    Raises:
        ModelError: The name is not that of a network.
    """
    return {"torchvision": "DEFAULT", "timm": "pretrained"}.get(_split(name)[0])


def load_weights(name: str, network: nn.Module, checkpoint: str) -> None:
    """Load a checkpoint or .opq file into a network.

    Args:
        name: Name of the network, for messages.
        network: The network.
        checkpoint: Path of a checkpoint as for `opq.compress`, or of a .opq file.

    Raises:
        ModelError: The file belongs to another network.
        SourceError: The file cannot be read.
        FormatError: It is not a valid .opq file.
    """
    if Path(checkpoint).suffix == ".opq":
        tensors = save_load.load_file(checkpoint)
    else:
        source = as_state(checkpoint)
        tensors = {key: save_load.to_tensor(source[key]) for key in source}
    try:
        missing, unexpected = save_load.load_tensors(network, tensors)
    except RuntimeError as error:
        state = network.state_dict()
        other = [name for name in state if name in tensors and tensors[name].shape != state[name].shape]
        found = [_names("shapes differ in", other) or " ".join(str(error).split())]
    else:
        found = [_names("the file lacks", missing), _names("the network lacks", unexpected)]
    if any(found):
        raise ModelError(name, f"{checkpoint} belongs to another network: {', '.join(filter(None, found))}")


def _names(text: str, names: Collection[str]) -> str:
    """A text and the first of some names; empty if there are none."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{text} {min(names)!r}{more}" if names else ""


def _split(name: str) -> tuple[str, str]:
    """The library, module or file of a network, and its name there."""
    library, _, attribute = name.rpartition(":")
    if name.lower().endswith(".onnx"):
        raise ModelError(name, "opq does not run ONNX models; use opq compress, or this command on the network in PyTorch")
    if not library or not attribute:
        raise ModelError(
            name, "MODEL must be torchvision:NAME, timm:NAME, transformers:FOLDER, package.module:factory or file.py:factory"
        )
    return library, attribute


def _is_file(weights: str | None) -> bool:
    return weights is not None and os.path.exists(weights)


def _published_transforms(name: str, model: str, weights: str | None) -> Any:
    """The `transforms` of a classifier of torchvision."""
    transforms = _published_weights(name, model, weights or "DEFAULT").transforms
    if (kind := getattr(transforms, "func", transforms).__name__) != "ImageClassification":
        raise ModelError(name, f"it must be an image classifier; its preprocessing in torchvision is {kind}")
    return transforms


def _published_weights(name: str, model: str, weights: str) -> Any:
    """The entry of published weights in torchvision."""
    models = load_library("torchvision", "a network of torchvision").models
    try:
        published = models.get_model_weights(model)
    except ValueError as error:
        raise ModelError(name, str(error)) from None
    if weights not in published.__members__:
        raise ModelError(name, f"weights must be one of {', '.join(published.__members__) or 'none'}, got {weights!r}")
    return published[weights]


def _of_torchvision(name: str, model: str, weights: str | None) -> nn.Module:
    chosen = _published_weights(name, model, weights or "DEFAULT")
    models = load_library("torchvision", "a network of torchvision").models
    return _downloaded(name, partial(models.get_model, model, weights=None if weights is None else chosen))


def _of_timm(name: str, model: str, weights: str | None) -> nn.Module:
    timm = load_library("timm", "a network of timm")
    full = model if weights in (None, "pretrained") else f"{model}.{weights}"
    return _downloaded(name, partial(timm.create_model, full, pretrained=weights is not None))


def _downloaded(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    """The network that a library makes; it may download weights, which may raise anything."""
    try:
        return make()
    except RuntimeError as error:  # there is no such network, or it has no such weights
        raise ModelError(name, " ".join(str(error).split())) from None
    except Exception as error:
        raise ModelError(
            name,
            f"its weights cannot be downloaded ({type(error).__name__}: {' '.join(str(error).split())}); check the connection, "
            "or give a checkpoint as the weights",
        ) from None


def _from_factory(name: str, module: str, attribute: str) -> nn.Module:
    """The network that a factory returns. The factory and its module may import modules in the same folder."""
    path = Path(module) if module.endswith(".py") else None
    folder = str(path.parent.resolve()) if path else os.getcwd()
    sys.path.insert(0, folder)
    try:
        loaded = _load_file(name, path) if path else importlib.import_module(module)
        if not hasattr(loaded, attribute):
            raise ModelError(name, f"there is no {attribute!r} in {module}")
        factory = getattr(loaded, attribute)
        network = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    except (ImportError, ModelError) as error:
        raise error if isinstance(error, ModelError) else ModelError(name, str(error)) from None
    except Exception as error:  # the user's code may raise anything
        raise ModelError(name, f"its code fails{_last_place(error)}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    if not isinstance(network, nn.Module):
        raise ModelError(name, f"the factory must return a torch module, got {type(network).__name__}")
    return network


def _last_place(error: Exception) -> str:
    """Where the user's code failed: file and line."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith("<")]
    return f" at line {theirs[-1].lineno} of {theirs[-1].filename}" if theirs else ""


def _load_file(name: str, path: Path) -> Any:
    if not path.is_file():
        raise ModelError(name, f"there is no file {path}")
    own_name = f"_opq_network_{path.stem}"
    description = importlib.util.spec_from_file_location(own_name, path)
    if description is None or description.loader is None:
        raise ModelError(name, f"{path} is not a Python file")
    module = importlib.util.module_from_spec(description)
    sys.modules[own_name] = module  # dataclasses look up their module there
    description.loader.exec_module(module)
    return module
