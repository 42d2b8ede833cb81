"""Checkpoints in files of PyTorch, which are read without running any code in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opq.checkpoints.state import State, TensorState
from opq.errors import MissingExtraError, SourceError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net")
_PREFIXES = ("module.", "_orig_mod.")


def load_torch_file(path: Path) -> State:
    """The tensors of a .pt, .pth or .bin file, read with weights_only=True.

    The usual wrappers (a dict under "state_dict", "model", ...) and the prefixes "module." and "_orig_mod." are taken off. What
    lies beside a wrapped dict, such as an optimizer's state, is left out.

    Raises:
        SourceError: The file is no checkpoint of plain tensors.
        MissingExtraError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise MissingExtraError(f"reading {path.name}", "torch") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise SourceError(
            path,
            "not a checkpoint of plain tensors: it holds other objects, which could run code when loaded; save its state_dict",
        ) from None
    except Exception as error:  # torch raises whatever its readers do
        raise SourceError(path, f"not a PyTorch checkpoint: {str(error).splitlines()[0] if str(error) else error!r}") from None
    content = _unwrap(content)
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}
    if not tensors:
        raise SourceError(path, "no tensors in it: expected a state dict, or one under 'state_dict' or 'model'")
    if lost := [name for name in content if name not in tensors and _holds(content[name], torch.Tensor)]:
        raise SourceError(path, f"{lost[0]!r} in it holds tensors too, beside others; save one state dict of all")
    return TensorState(_without_prefixes(tensors))


def _unwrap(content: Any) -> Mapping[Any, Any]:
    """The innermost of the usual wrappers' contents."""
    while isinstance(content, Mapping):
        inner = [key for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            return content
        content = content[inner[0]]
    return {}


def _holds(value: Any, kind: type) -> bool:
    """Whether a value is of this kind, or holds one at any depth."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return isinstance(value, kind) or any(_holds(part, kind) for part in parts)


def _without_prefixes(tensors: dict[str, Any]) -> dict[str, Any]:
    while tensors and (prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None)):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors
