"""Open a source as a State: a checkpoint on disk, or a state dict or module in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opq.checkpoints.file_kind import kind_of
from opq.checkpoints.folder import Shards, find_shards, merge_shards, read_index
from opq.checkpoints.gguf_file import GgufState
from opq.checkpoints.keras_file import read_keras_file
from opq.checkpoints.numpy_file import read_numpy_file
from opq.checkpoints.onnx_file import read_onnx_file
from opq.checkpoints.safetensors_file import SafetensorsState
from opq.checkpoints.state import State, TensorState
from opq.checkpoints.torch_file import read_torch_file
from opq.checkpoints.wrappers import find_state_dict, without_prefixes
from opq.errors import SourceError

_REFUSED = {
    "safetensors": "a safetensors file among shards of another format",
    "torchscript": "a TorchScript archive, which holds code; save torch.jit.load(...).state_dict() with torch.save",
    "gguf": "a GGUF file in place of a shard",
    "onnx": "an ONNX model in place of a shard",
    "index": "an index in place of a shard",
}


def as_state(source: Any, metadata: Mapping[str, str] | None = None, key: str | None = None) -> State:
    """Open a source.

    Args:
        source: A State; a mapping of NumPy arrays, torch tensors or CompressedTensors, or a dict that has one under a key; an
            object with a `state_dict()`, such as a torch module; or the path of a checkpoint (see `open_checkpoint`).
        metadata: {text: text} of the state if the source has no metadata.
        key: The key of the state dict in a source that has several.

    Raises:
        SourceError: The source is none of these, or cannot be read.
        MissingExtraError: It needs a library that is not installed.
    """
    if isinstance(source, State):
        if key is not None:
            raise SourceError("the source", f"it has no key {key!r}: a State has no keys")
        return source
    if isinstance(source, (str, os.PathLike)):
        state = open_checkpoint(source, key)
        state.metadata = state.metadata or metadata or {}
        return state
    epsilons = parameters = None
    in_evaluation = False
    if hasattr(source, "state_dict") and not isinstance(source, type):
        epsilons, parameters = epsilons_of(source), parameters_of(source)
        in_evaluation = not getattr(source, "training", True)
        source = source.state_dict()
    if not isinstance(source, Mapping):
        got = f"the class {source.__name__}" if isinstance(source, type) else type(source).__name__
        raise SourceError("the source", f"expected a state dict, a model, or the path of a checkpoint, got {got}")
    stored = getattr(source, "metadata", None)  # an open .opq file has metadata
    if key is not None or (isinstance(source, dict) and any(isinstance(value, Mapping) for value in source.values())):
        source = find_state_dict(source, "the state dict", key)
        if epsilons is None:  # the names of a module are those of its parameters
            source = _without_prefixes(source)
    metadata = stored if isinstance(stored, Mapping) and stored else metadata
    return TensorState(source, metadata, epsilons, parameters, in_evaluation)


def open_checkpoint(path: str | os.PathLike[str], key: str | None = None) -> State:
    """Open a checkpoint on disk. Tensors of .safetensors and GGUF files, and of files beside ONNX models, are
    read when they are used.

    The first bytes of a file determine its format, not its name; docs/formats.md lists the formats. The prefixes "module."
    and "_orig_mod." are removed if all names have them.

    Args:
        path: A file; a folder with a whole checkpoint, or with an index and its shards; or such an index.
        key: The key of the state dict, for files of PyTorch.

    Raises:
        SourceError: The path does not exist, or is not such a checkpoint.
        MissingExtraError: It needs a library that is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise SourceError(path, "no such file or folder")
    shards: Shards = find_shards(path) if path.is_dir() else {path: None}
    kinds = {file: kind_of(file) for file in shards if file.exists()}
    if kinds.get(path) == "index":
        shards = read_index(path)
        kinds = {file: kind_of(file) for file in shards if file.exists()}
    if missing := [file for file in shards if file not in kinds]:
        raise SourceError(missing[0], "no such file, but the index lists it")
    if set(kinds.values()) == {"safetensors"}:
        if key is not None:
            raise SourceError(path, f"it has no key {key!r}: a safetensors file has one state dict without a key")
        return SafetensorsState(shards)
    if kinds.get(path) == "gguf":
        if key is not None:
            raise SourceError(path, f"it has no key {key!r}: a GGUF file has no keys")
        return GgufState(path)
    if kinds.get(path) == "onnx":
        if key is not None:
            raise SourceError(path, f"it has no key {key!r}: an ONNX model has no keys")
        return read_onnx_file(path)
    tensors = merge_shards(shards, {file: _read(file, kind, key) for file, kind in kinds.items()})
    has_paths = kinds.get(path) in ("hdf5", "keras")  # as names
    return TensorState(tensors if has_paths else _without_prefixes(tensors))


def _without_prefixes(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {short: tensors[name] for short, name in without_prefixes(tensors).items()}


def _read(path: Path, kind: str, key: str | None) -> dict[str, Any]:
    """The tensors of a file that is read as a whole."""
    if kind in ("torch", "pickle"):
        return read_torch_file(path, key)
    if key is not None:
        raise SourceError(path, f"it has no key {key!r}: such a file has no keys")
    if kind == "npz":
        return dict(read_numpy_file(path))
    if kind in ("hdf5", "keras"):
        return dict(read_keras_file(path))
    raise SourceError(path, _REFUSED[kind])


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
