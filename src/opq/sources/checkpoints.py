"""Checkpoints on disk: a .safetensors file, a folder of its shards, or a .pt/.pth file."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from opq import dtypes
from opq.errors import MissingExtraError, SourceError
from opq.sources.state import State, TensorState

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64",
}  # fmt: skip
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net")
_PREFIXES = ("module.", "_orig_mod.")


def open_checkpoint(path: str | os.PathLike[str]) -> State:
    """The tensors of a checkpoint by name, each read when it is asked for where the format allows.

    path  a .safetensors file; a folder with model.safetensors.index.json and its shards, or with model.safetensors; or a
          .pt, .pth or .bin file of PyTorch (read with weights_only=True, so no code in it runs). Of the latter the usual
          wrappers (a dict under "state_dict", "model", ...) and the prefixes "module." and "_orig_mod." are taken off.
    Raises SourceError when the path is missing or not such a checkpoint, MissingExtraError for a .pt without PyTorch.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise SourceError(path, "no such file or folder")
    if path.suffix == ".safetensors":
        return _Safetensors({path: None})
    if path.suffix in (".pt", ".pth", ".bin"):
        return _load_torch(path)
    raise SourceError(path, "expected a .safetensors, .pt or .pth file, or a folder of .safetensors shards")


class _Safetensors(State):
    """The tensors of one or more .safetensors files; `shards` names those to take from each, None for all."""

    def __init__(self, shards: Mapping[Path, list[str] | None]) -> None:
        self._where: dict[str, Any] = {}
        metadata: dict[str, str] = {}
        for path, wanted in shards.items():
            try:
                shard: Any = safe_open(str(path), framework="numpy")
            except FileNotFoundError:
                raise SourceError(path, "no such file") from None
            except (SafetensorError, OSError) as error:
                raise SourceError(path, f"not a safetensors file: {error}") from None
            here = set(shard.keys())
            if missing := sorted(set(wanted or ()) - here):
                raise SourceError(path, f"its index names {missing[0]!r}, which is not in it")
            self._where.update(dict.fromkeys(here if wanted is None else wanted, (shard, path)))
            metadata.update(shard.metadata() or {})
        self.metadata = metadata

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Name of the dtype, and shape, of a tensor, from the file's header."""
        shard, path = self._where[name]
        piece = shard.get_slice(name)
        kind = piece.get_dtype()
        if kind not in _DTYPES:
            raise SourceError(path, f"tensor {name!r}: dtype {kind} is not supported")
        return _DTYPES[kind], tuple(piece.get_shape())

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        shard, path = self._where[name]
        kind, _ = self.describe(name)
        try:
            array = np.asarray(shard.get_tensor(name))
        except (SafetensorError, TypeError, ValueError) as error:
            raise SourceError(path, f"tensor {name!r}: {error}") from None
        return array.view(dtypes.NUMPY[kind]) if array.dtype != dtypes.NUMPY[kind] else array

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def _open_folder(folder: Path) -> State:
    index = folder / _INDEX
    if not index.exists():
        if (folder / _SINGLE).exists():
            return _Safetensors({folder / _SINGLE: None})
        raise SourceError(folder, f"expected {_INDEX} or {_SINGLE} in it")
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[Path, list[str] | None] = {}
        for name, file in names.items():
            # Only a plain file name: an index must not lead out of its folder.
            if Path(file).name != file:
                raise SourceError(index, f"shard {file!r} is not in this folder")
            chosen = shards.setdefault(folder / file, [])
            if chosen is not None:
                chosen.append(name)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise SourceError(index, f"not an index of shards: {error!r}") from None
    return _Safetensors(shards)


def _load_torch(path: Path) -> State:
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
    tensors = _unwrap(content, torch.Tensor)
    if not tensors:
        raise SourceError(path, "no tensors in it: expected a state dict, or one under 'state_dict' or 'model'")
    return TensorState(tensors)


def _unwrap(content: Any, kind: type) -> dict[str, Any]:
    while isinstance(content, Mapping):
        inner = [key for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = content[inner[0]]
    if not isinstance(content, Mapping):
        return {}
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, kind)}
    while tensors and (prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None)):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors
