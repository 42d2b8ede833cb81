"""Networks whose weights stay entropy coded in memory: each is decoded when a module uses it."""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from contextlib import closing
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from opq import dtypes
from opq.codec.file_bytes import FileBytes
from opq.codec.file_reader import OpqFile
from opq.torch import decode_tensor, refuse_other_names, to_tensor

SMALLEST = 4096
"""Elements from which a weight stays coded. Smaller ones are decoded once, when the file is loaded."""

_CODED = "_opq_coded"
"""Attribute of a module: {name of the parameter: CodedWeight}."""


def load_coded(
    model: nn.Module,
    path: str | os.PathLike[str],
    device: str | int | torch.device = "cpu",
    *,
    strict: bool = True,
    max_bytes: int | None = None,
) -> nn.Module:
    """Load a file into a network, and keep its weights coded.

    Args:
        model: The network, for inference; it may be on the meta device. Its parameters that the file has as weights are
            replaced by properties: `module.weight` decodes the weight, to the tensor that `opq.load` gives. Its state dict
            still has them.
        path: The file, which is read into memory.
        device: Device of all tensors.
        strict: Whether the file and the network must have the same names.
        max_bytes: As in `opq.torch.load_file`.

    Returns:
        The network.

    Raises:
        SourceError: The file cannot be read.
        FormatError: It is not a valid file.
        RuntimeError: A shape or a name differs, or a buffer of the network is on the meta device and not in the file.
    """
    with closing(FileBytes(path)) as opened:
        file = OpqFile(opened.read(0, opened.size), max_bytes=max_bytes)
    weights = CodedWeights(file, torch.device(device))
    places = _places(model)
    decoded: dict[str, Tensor] = {}
    for entry in file.entries:
        tied = places.get(entry.name, [])
        if tied and entry.is_weight and entry.dtype in dtypes.COMPRESSIBLE and entry.count >= SMALLEST:
            _replace(tied, CodedWeight(weights, entry.name, entry.shape))
        else:
            tensor = to_tensor(file.array(entry.name)).to(device)
            decoded |= dict.fromkeys((entry.name, *(name for name, _, _ in tied)), tensor)
    lacking, unexpected = model.load_state_dict(decoded, strict=False, assign=True)
    if strict:
        refuse_other_names(model, lacking, unexpected)
    _refuse_meta(model)
    model.register_forward_pre_hook(lambda *_: weights.begin_pass())
    model.register_forward_hook(lambda *_: weights.end_pass(), always_call=True)
    return model.to(device)


class CodedWeights:
    """The weights of a file, decoded when they are asked for.

    Memory holds the weight that was decoded last. Those that were decoded twice in one pass of the network, as in layers that
    it uses again, are held until the pass ends.

    Args:
        file: The open file.
        device: Device of the decoded tensors.
    """

    def __init__(self, file: OpqFile, device: torch.device) -> None:
        self._file, self._device = file, device
        self._lock = threading.RLock()
        self._latest: Tensor | None = None
        self._alive: weakref.WeakValueDictionary[str, Tensor] = weakref.WeakValueDictionary()
        self._held: dict[str, Tensor] = {}
        self._is_in_pass = False
        self._decoded: Counter[str] = Counter()
        self._repeated: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> CodedWeights:
        """The same object: copies of a network share the coded weights."""
        return self

    def begin_pass(self) -> None:
        """Count from here which weights are decoded again."""
        self._is_in_pass = True
        self._decoded.clear()

    def end_pass(self) -> None:
        """Forget all decoded weights."""
        self._is_in_pass, self._latest = False, None
        self._held.clear()

    def tensor(self, name: str) -> Tensor:
        """A weight, in its own dtype."""
        with self._lock:
            tensor = self._alive.get(name)
            if tensor is None:
                self._latest = None  # before the next one needs memory
                tensor = decode_tensor(self._file, name).to(self._device)
                self._alive[name] = tensor
                self._decoded[name] += self._is_in_pass
                if self._decoded[name] > 1:
                    self._repeated.add(name)
            if self._is_in_pass and name in self._repeated:
                self._held[name] = tensor
            else:
                self._latest = tensor
            return tensor

    def rows(self, name: str, indices: Tensor) -> Tensor:
        """Rows of a weight, without the others in memory.

        Args:
            name: Name of the weight.
            indices: int64 (n,), ascending.

        Raises:
            IndexError: An index is not that of a row.
        """
        shape = self._file.entry(name).shape
        if len(indices) and not 0 <= indices[0] <= indices[-1] < shape[0]:
            raise IndexError(f"{name}: indices must be at least 0 and below {shape[0]}, got {indices[0]} to {indices[-1]}")
        parts, first = [], 0
        for piece in self._file.pieces(name):
            last = first + piece.shape[0]
            begin, end = torch.searchsorted(indices, torch.tensor([first, last])).tolist()
            if begin < end:
                parts.append(to_tensor(piece.values()[(indices[begin:end] - first).numpy()]))
            first = last
        found = torch.cat(parts) if parts else torch.empty(0, *shape[1:], dtype=getattr(torch, self._file.entry(name).dtype))
        return found.to(self._device)


class CodedWeight:
    """One weight of CodedWeights.

    Args:
        weights: All of them.
        name: Its name in the file.
        shape: Its shape.
    """

    def __init__(self, weights: CodedWeights, name: str, shape: tuple[int, ...]) -> None:
        self.weights, self.name, self.shape = weights, name, shape

    def tensor(self) -> Tensor:
        """The decoded weight."""
        return self.weights.tensor(self.name)

    def rows(self, indices: Tensor) -> Tensor:
        """Its rows at `indices`, int64 of any shape: (*indices.shape, columns)."""
        unique, places = torch.unique(indices, return_inverse=True)
        return functional.embedding(places, self.weights.rows(self.name, unique.cpu()))


Place = tuple[str, nn.Module, str]
"""A parameter: its name in the state dict, its module, and its name there."""


def _places(model: nn.Module) -> dict[str, list[Place]]:
    """{name in the state dict: all places of the parameter}, several if it is tied."""
    tied: dict[int, list[Place]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                tied.setdefault(id(parameter), []).append((f"{prefix}.{name}".lstrip("."), module, name))
    return {name: places for places in tied.values() for name, _, _ in places}


def _is_coded(module: nn.Module, name: str) -> bool:
    return name in module.__dict__.get(_CODED, {})


def _replace(places: list[Place], weight: CodedWeight) -> None:
    """Replace a parameter by a property that decodes it, in all of its places."""
    for full_name, module, name in places:
        if _is_coded(module, name):
            continue  # the file has it under another name, or the module has several names
        if (shape := tuple(getattr(module, name).shape)) != weight.shape:
            raise RuntimeError(f"{full_name} must have shape {shape} as in the network, and the file's has {weight.shape}")
        if not module.__dict__.get(_CODED):
            module.__dict__[_CODED] = {}
            module.register_state_dict_post_hook(_add_to_state)  # type: ignore[no-untyped-call]
            if isinstance(module, nn.RNNBase):
                module.register_forward_pre_hook(_hold_flat_weights)
                module.register_forward_hook(_drop_flat_weights, always_call=True)
        del module._parameters[name]
        module.__dict__[_CODED][name] = weight
        module.__class__ = _with_property(type(module), name)  # type: ignore[arg-type]


@cache
def _with_property(base: type[nn.Module], name: str) -> type[nn.Module]:
    """A subclass whose attribute `name` is the decoded weight; of an embedding, one that decodes only the rows it looks up."""
    members: dict[str, Any] = {"__module__": base.__module__, name: property(partial(_decoded, name=name))}
    if base.forward is nn.Embedding.forward and name == "weight":
        members["forward"] = _look_up
    return type(base.__name__, (base,), members)


def _decoded(module: nn.Module, name: str) -> Tensor:
    weight: CodedWeight = module.__dict__[_CODED][name]
    return weight.tensor()


def _look_up(module: nn.Embedding, indices: Tensor) -> Tensor:
    if module.max_norm is not None:
        return nn.Embedding.forward(module, indices)
    weight: CodedWeight = module.__dict__[_CODED]["weight"]
    return weight.rows(indices)


def _add_to_state(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    state.update({prefix + name: weight.tensor() for name, weight in module.__dict__[_CODED].items()})


def _hold_flat_weights(module: Any, _arguments: Any) -> None:
    """Recurrent modules hand over all their weights at once, from a list of their own."""
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    module._flat_weight_refs = [weakref.ref(weight) for weight in module._flat_weights]


def _drop_flat_weights(module: Any, _arguments: Any, _outputs: Any) -> None:
    module._flat_weights = [None] * len(module._flat_weights_names)
    module._flat_weight_refs = [None] * len(module._flat_weights_names)


def _refuse_meta(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise RuntimeError(f"{name} is on the meta device and not in the file; build the network on another device")
