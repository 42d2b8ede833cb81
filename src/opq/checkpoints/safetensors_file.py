"""Checkpoints on disk: a .safetensors file, a folder of its shards, or a .pt/.pth file."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from opq import dtypes
from opq.checkpoints.state import State, TensorState
from opq.errors import MissingExtraError, SourceError

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net")
_PREFIXES = ("module.", "_orig_mod.")


def open_checkpoint(path: str | os.PathLike[str]) -> State:
    """The tensors of a checkpoint by name, each read when it is asked for where the format allows.

    path  a .safetensors file; a folder with model.safetensors.index.json and its shards, or with model.safetensors; or a
          .pt, .pth or .bin file of PyTorch (read with weights_only=True, so no code in it runs). Of the latter the usual
          wrappers (a dict under "state_dict", "model", ...) and the prefixes "module." and "_orig_mod." are taken off, and
          what lies beside a wrapped dict, as an optimizer's state does, is left out.
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


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: in which file, from which byte on."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


class _Safetensors(State):
    """The tensors of one or more .safetensors files; `shards` names those to take from each, None for all.

    The files are read, not mapped: what was read and let go takes no memory of the process.
    """

    def __init__(self, shards: Mapping[Path, list[str] | None]) -> None:
        self._places: dict[str, _Place] = {}
        metadata: dict[str, str] = {}
        for path, wanted in shards.items():
            places, texts = _read_index(path)
            if missing := sorted(set(wanted or ()) - set(places)):
                raise SourceError(path, f"its index names {missing[0]!r}, which is not in it")
            self._places.update({name: places[name] for name in (places if wanted is None else wanted)})
            metadata.update(texts)
        self.metadata = metadata

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Name of the dtype, and shape, of a tensor, from the file's header."""
        place = self._places[name]
        if place.dtype not in _DTYPES:
            raise SourceError(place.path, f"tensor {name!r}: dtype {place.dtype} is not supported")
        return _DTYPES[place.dtype], place.shape

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        kind, shape = self.describe(name)
        return self._read(name, kind, 0, shape)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """As State has it."""
        kind, shape = self.describe(name)
        start, stop, _ = slice(start, stop).indices(shape[0])
        return self._read(name, kind, start * math.prod(shape[1:]), (max(stop - start, 0), *shape[1:]))

    def _read(self, name: str, kind: str, skip: int, shape: tuple[int, ...]) -> NDArray[np.generic]:
        """`shape` elements of a tensor, after as many as `skip`."""
        place, dtype, count = self._places[name], dtypes.NUMPY[kind], math.prod(shape)
        word = f"<u{dtype.itemsize}"
        try:
            words = np.fromfile(place.path, word, count, offset=place.offset + skip * dtype.itemsize)
        except OSError as error:
            raise SourceError(place.path, f"tensor {name!r}: {error.strerror or error}") from None
        if len(words) != count:
            raise SourceError(place.path, f"tensor {name!r}: the file has become shorter while it was read")
        return words.astype(word[1:], copy=False).view(dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _read_index(path: Path) -> tuple[dict[str, _Place], dict[str, str]]:
    """Where the tensors of a .safetensors file lie, and its metadata; the library checks the header, but tells no offsets."""
    try:
        with safe_open(str(path), framework="numpy"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise SourceError(path, "no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise SourceError(path, f"not a safetensors file: {error}") from None
    metadata = header.pop("__metadata__", None) or {}
    places = {
        name: _Place(path, 8 + length + tensor["data_offsets"][0], tensor["dtype"], tuple(tensor["shape"]))
        for name, tensor in header.items()
    }
    return places, metadata


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
