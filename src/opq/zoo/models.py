"""Networks by name: torchvision's, timm's, and those of the user's own code.

A .opq file holds tensors only. The code of a network comes from the user or an installed library.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from opq import torch as save_load
from opq.checkpoints import as_state
from opq.errors import ModelError
from opq.zoo.preprocessing import MEAN, STD, Preprocessing, load_library, of_timm, of_torchvision, plain


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
    """Make a network and load its weights.

    Args:
        name: torchvision:NAME, timm:NAME, package.module:factory or path/file.py:factory. A factory takes no arguments and
            returns a module.
        weights: A checkpoint as for `opq.compress`, or a .opq file. For torchvision and timm also the name of published
            weights, which the library downloads: DEFAULT, IMAGENET1K_V2 and so on for torchvision; "pretrained" or a tag for
            timm. None: the initial weights.
        seed: Seed of random initial weights. None leaves PyTorch's generator as it is.
        input_size: Height and width of the images. None: the size that torchvision or timm publishes; images keep their size
            for other networks.
        mean: Mean of images in 0..1, one value per channel or one for all channels. None: the values that torchvision or timm
            publishes; ImageNet's for other networks.
        std: Standard deviation, likewise.

    Returns:
        The network and its preprocessing.

    Raises:
        ModelError: There is no such network, or the weights belong to another one.
        SourceError: The weights cannot be read.
        MissingExtraError: torchvision or timm is not installed.
        OpqError: torchvision or timm cannot be imported.
    """
    if seed is not None:
        torch.manual_seed(seed)
    library, separator, attribute = name.rpartition(":")
    if not separator or not library or not attribute:
        raise ModelError(name, "MODEL must be torchvision:NAME, timm:NAME, package.module:factory or file.py:factory")
    checkpoint = weights if weights is not None and os.path.exists(weights) else None
    published = weights if checkpoint is None else None
    settings = _ImageSettings(input_size, mean, std)
    if library == "torchvision":
        model = _torchvision(name, attribute, published, settings)
    elif library == "timm":
        model = _timm(name, attribute, published, settings)
    elif published is not None:
        raise ModelError(name, f"weights must be an existing file, got {published!r}")
    else:
        model = NamedModel(_from_factory(name, library, attribute), plain(input_size, mean or MEAN, std or STD))
    if checkpoint is not None:
        load_weights(name, model.network, checkpoint)
    return model


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
        state = as_state(checkpoint)
        tensors = {key: save_load.to_tensor(state[key]) for key in state}
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(
            name, f"{checkpoint} belongs to another network: {_differences(network, tensors) or ' '.join(str(error).split())}"
        ) from None


def _differences(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> str:
    """What differs between the tensors of a network and of a file, with one example of each."""
    state = network.state_dict()
    lacks = [name for name in state if name not in tensors]
    extra = [name for name in tensors if name not in state]
    other = [name for name in state if name in tensors and tensors[name].shape != state[name].shape]
    found = []
    for names, text in ((lacks, "the file lacks"), (extra, "the network lacks"), (other, "shapes differ in")):
        if names:
            found.append(f"{text} {names[0]!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else ""))
    return ", ".join(found)


class _ImageSettings(NamedTuple):
    """Settings that replace those of the network; None keeps them."""

    size: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def _torchvision(name: str, model: str, weights: str | None, settings: _ImageSettings) -> NamedModel:
    torchvision = load_library("torchvision", "a network of torchvision")
    try:
        transforms = torchvision.models.get_model_weights(model)[weights or "DEFAULT"].transforms
        if (kind := getattr(transforms, "func", transforms).__name__) != "ImageClassification":
            raise ModelError(name, f"it must be an image classifier; its preprocessing in torchvision is {kind}")
        network = torchvision.models.get_model(model, weights=weights)
    except (ValueError, KeyError) as error:
        raise ModelError(name, str(error)) from None
    return NamedModel(network, of_torchvision(transforms, *settings))


def _timm(name: str, model: str, weights: str | None, settings: _ImageSettings) -> NamedModel:
    timm = load_library("timm", "a network of timm")
    full = model if weights in (None, "pretrained") else f"{model}.{weights}"
    try:
        network = timm.create_model(full, pretrained=weights is not None)
    except RuntimeError as error:
        raise ModelError(name, str(error)) from None
    return NamedModel(network, of_timm(timm.data.resolve_model_data_config(network), *settings))


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
