"""Open a source as a State: a checkpoint on disk, or a state dict or module in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opq.checkpoints.safetensors_file import SafetensorsState, open_folder
from opq.checkpoints.state import State, TensorState
from opq.checkpoints.torch_file import load_torch_file
from opq.errors import SourceError


def as_state(source: Any, metadata: Mapping[str, str] | None = None) -> State:
    """Open a source.

    Args:
        source: A State; a mapping of NumPy arrays, torch tensors or CompressedTensors; an object with a `state_dict()`, such as
            a torch module; or the path of a checkpoint (see `open_checkpoint`).
        metadata: {text: text} of the state if the source has no metadata.

    Raises:
        SourceError: The source is none of these, or cannot be read.
        MissingExtraError: It is a file of PyTorch, and PyTorch is not installed.
    """
    if isinstance(source, State):
        return source
    if isinstance(source, (str, os.PathLike)):
        state = open_checkpoint(source)
        state.metadata = state.metadata or metadata or {}
        return state
    epsilons = parameters = None
    if hasattr(source, "state_dict") and not isinstance(source, type):
        epsilons, parameters = epsilons_of(source), parameters_of(source)
        source = source.state_dict()
    if not isinstance(source, Mapping):
        got = f"the class {source.__name__}" if isinstance(source, type) else type(source).__name__
        raise SourceError("the source", f"expected a state dict, a model, or the path of a checkpoint, got {got}")
    stored = getattr(source, "metadata", None)  # an open .opq file has metadata
    return TensorState(source, stored if isinstance(stored, Mapping) and stored else metadata, epsilons, parameters)


def open_checkpoint(path: str | os.PathLike[str]) -> State:
    """Open a checkpoint on disk. Tensors of .safetensors files are read when they are used.

    Args:
        path: A .safetensors file; a folder with model.safetensors.index.json and its shards, or with model.safetensors; or a
            .pt, .pth or .bin file of PyTorch.

    Raises:
        SourceError: The path does not exist, or is not such a checkpoint.
        MissingExtraError: It is a file of PyTorch, and PyTorch is not installed.
    """
    path = Path(path)
    if path.is_dir():
        return open_folder(path)
    if not path.exists():
        raise SourceError(path, "no such file or folder")
    if path.suffix == ".safetensors":
        return SafetensorsState({path: None})
    if path.suffix in (".pt", ".pth", ".bin"):
        return load_torch_file(path)
    expected = "expected a .safetensors, .pt or .pth file, or a folder of .safetensors shards"
    raise SourceError(path, f"{expected}; convert a .opq file with opq expand" if path.suffix == ".opq" else expected)


def epsilons_of(model: Any) -> dict[str, float]:
    """{name: eps} of all modules with running statistics, such as torch's batch norms."""
    modules = model.named_modules(remove_duplicate=False) if hasattr(model, "named_modules") else ()
    return {name: float(module.eps) for name, module in modules if hasattr(module, "running_var") and hasattr(module, "eps")}


def parameters_of(model: Any) -> dict[str, bool]:
    """{name: True} of all parameters and {name: False} of all buffers of a module, under each of their names."""
    found = {}
    for kind, is_parameter in (("named_buffers", False), ("named_parameters", True)):
        named = getattr(model, kind, None)
        found.update({name: is_parameter for name, _ in (named(remove_duplicate=False) if named is not None else ())})
    return found
