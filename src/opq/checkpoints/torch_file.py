"""Checkpoints in PyTorch files, which are read without running code in them."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opq.checkpoints.state import State, TensorState
from opq.errors import MissingExtraError, SourceError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net")
_PREFIXES = ("module.", "_orig_mod.")


def load_torch_file(path: Path) -> State:
    """Read the tensors of a .pt, .pth or .bin file with weights_only=True.

    If the state dict is under a usual key ("state_dict", "model", ...), the other keys, such as an optimizer's state, are
    ignored. The prefixes "module." and "_orig_mod." are removed.

    Args:
        path: The file.

    Raises:
        SourceError: The file is not a checkpoint of plain tensors.
        MissingExtraError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise MissingExtraError(f"reading {path.name}", "torch") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, which say nothing that the errors below do not
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise SourceError(
            path,
            "not a checkpoint of plain tensors: it holds other objects, which could run code when loaded; save its state_dict",
        ) from None
    except Exception as error:  # the exceptions of torch.load are not documented
        reason = " ".join(str(error).split(". ")[0].split()).strip("'\"")
        raise SourceError(
            path, f"not a PyTorch checkpoint, or a damaged one ({type(error).__name__}: {reason}); save the state_dict again"
        ) from None
    content = _unwrap(content)
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}
    if not tensors:
        raise SourceError(path, "it has no tensors; expected a state dict, or one under 'state_dict' or 'model'")
    if nested := [name for name in content if name not in tensors and _holds(content[name], torch.Tensor)]:
        raise SourceError(path, f"it has tensors at the top level and in {nested[0]!r}; save one state dict with all tensors")
    return TensorState(_without_prefixes(tensors))


def _unwrap(content: Any) -> Mapping[Any, Any]:
    """The innermost mapping under the usual keys."""
    while isinstance(content, Mapping):
        inner = [key for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            return content
        content = content[inner[0]]
    return {}


def _holds(value: Any, kind: type) -> bool:
    """Whether a value is an instance of `kind`, or contains one at any depth."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return isinstance(value, kind) or any(_holds(part, kind) for part in parts)


def _without_prefixes(tensors: dict[str, Any]) -> dict[str, Any]:
    while tensors and (prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None)):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors
