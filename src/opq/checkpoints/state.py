"""State: the tensors of a checkpoint by name, as NumPy arrays."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from array_api_compat import is_torch_array
from numpy.typing import NDArray

from opq import dtypes, packed_floats
from opq.errors import SourceError
from opq.quantization.compressed_tensor import CompressedTensor

_FLOAT4, _FLOAT4_PAIRS = "float4_e2m1fn", "float4_e2m1fn_x2"  # NumPy's dtype, and torch's, which has two in a byte


class State(Mapping[str, NDArray[np.generic]]):
    """A mapping {name: NumPy array}. A tensor is read or converted when it is looked up.

    Attributes:
        metadata: The checkpoint's own metadata, {text: text}.
        epsilons: {name of a batch norm: its eps}, if the source is a module.
        in_evaluation: Whether the source is a module in evaluation mode.
        packed: {name: what packs it} of tensors that hold packed codes of a quantized weight, if the source says so.
    """

    metadata: Mapping[str, str] = {}
    epsilons: Mapping[str, float] = {}
    in_evaluation: bool = False
    packed: Mapping[str, str] = {}

    @abstractmethod
    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Name of the dtype and shape of a tensor, without reading or converting it."""

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """`self[name][start:stop]` without reading or converting the rest of the tensor, which has at least one dimension."""
        return self[name][start:stop]

    def compressed(self, name: str) -> CompressedTensor | None:
        """The tensor as codes if the source stores it as codes; otherwise None. `self[name]` is its values in both cases."""
        return None

    def memory(self, name: str) -> object:
        """A key of the tensor's memory, equal for all names of a shared tensor; None if that is not known."""
        return None

    def is_parameter(self, name: str) -> bool | None:
        """Whether the tensor is a parameter (True) or a buffer (False) of the module; None if there is no module to ask."""
        return None

    def nonzero_over(self, name: str) -> tuple[int, ...] | None:
        """The axes of slices that must not become all zero, because the network divides by their norms; None for none."""
        return None


class StateView(State):
    """A state with the tensors of another one; subclasses change some of them.

    Args:
        state: The other state.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self.metadata = state.metadata
        self.epsilons: Mapping[str, float] = state.epsilons
        self.in_evaluation = state.in_evaluation
        self.packed = state.packed

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """As State.describe."""
        return self._state.describe(name)

    def compressed(self, name: str) -> CompressedTensor | None:
        """As State.compressed."""
        return self._state.compressed(name)

    def memory(self, name: str) -> object:
        """As State.memory."""
        return self._state.memory(name)

    def is_parameter(self, name: str) -> bool | None:
        """As State.is_parameter."""
        return self._state.is_parameter(name)

    def nonzero_over(self, name: str) -> tuple[int, ...] | None:
        """As State.nonzero_over."""
        return self._state.nonzero_over(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


class TensorState(State):
    """Tensors in memory.

    Args:
        tensors: {name: NumPy array, torch tensor on any device, or CompressedTensor}.
        metadata: {text: text}.
        epsilons: {name of a batch norm: its eps}.
        parameters: {name: whether it is a parameter of the module, rather than a buffer}.
        in_evaluation: Whether they are those of a module in evaluation mode.

    Raises:
        SourceError: A name is not a string.
    """

    def __init__(
        self,
        tensors: Mapping[str, Any],
        metadata: Mapping[str, str] | None = None,
        epsilons: Mapping[str, float] | None = None,
        parameters: Mapping[str, bool] | None = None,
        in_evaluation: bool = False,
    ) -> None:
        for name in tensors:
            if not isinstance(name, str):
                raise SourceError("the state dict", f"names must be strings, got {name!r}")
        self._tensors = tensors
        self.metadata = metadata or {}
        self.epsilons = epsilons or {}
        self._parameters = parameters or {}
        self.in_evaluation = in_evaluation

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """As State.describe.

        Raises:
            SourceError: It is not an array or tensor, or it is a sparse, meta or uninitialized tensor.
        """
        tensor = self._tensors[name]
        if is_torch_array(tensor):
            _check_torch(tensor, name)
        if not hasattr(tensor, "dtype") or not hasattr(tensor, "shape"):
            raise SourceError(
                f"tensor {name!r}", f"expected a NumPy array or torch tensor, got {type(tensor).__name__}; give tensors only"
            )
        kind, shape = dtypes.name_of(tensor.dtype), tuple(tensor.shape)
        return (_FLOAT4, (*shape[:-1], 2 * shape[-1])) if kind == _FLOAT4_PAIRS and shape else (kind, shape)

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        tensor = self._tensors[name]
        return tensor.values() if isinstance(tensor, CompressedTensor) else self._convert(name, tensor)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """As State.rows."""
        tensor = self._tensors[name]
        if isinstance(tensor, CompressedTensor):
            return tensor.channels(start, stop).values()
        if self.describe(name)[0] == _FLOAT4 and len(tensor.shape) == 1:  # rows of pairs need not begin at a byte
            return self[name][start:stop]
        return self._convert(name, tensor[start:stop])

    def _convert(self, name: str, tensor: Any) -> NDArray[np.generic]:
        kind, _ = self.describe(name)
        if is_torch_array(tensor):
            return _from_torch(tensor, name, kind)
        if not isinstance(tensor, (np.ndarray, np.generic)) or kind not in dtypes.NUMPY:
            raise SourceError(f"tensor {name!r}", f"dtype {kind} is not supported; convert the tensor, or remove it")
        return np.asarray(tensor, dtype=tensor.dtype.newbyteorder("="), order="C").reshape(tensor.shape)

    def compressed(self, name: str) -> CompressedTensor | None:
        """As State.compressed."""
        tensor = self._tensors[name]
        return tensor if isinstance(tensor, CompressedTensor) else None

    def memory(self, name: str) -> object:
        """As State.memory."""
        tensor = self._tensors[name]
        if is_torch_array(tensor):
            return _torch_memory(tensor)
        if isinstance(tensor, np.ndarray) and tensor.size:
            return tensor.__array_interface__["data"][0], tensor.shape, tensor.strides, tensor.dtype
        return None

    def is_parameter(self, name: str) -> bool | None:
        """As State.is_parameter."""
        return self._parameters.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _check_torch(tensor: Any, name: str) -> None:
    import torch
    from torch.nn.parameter import is_lazy
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if is_lazy(tensor):
        raise SourceError(f"tensor {name!r}", "it has no shape yet; run the network on an input once")
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise SourceError(f"tensor {name!r}", f"expected a dense tensor with data, got {tensor.layout} on {tensor.device}")
    if hasattr(tensor, "full_tensor"):
        advice = (
            "gather it first, with full_tensor() or get_model_state_dict(..., options=StateDictOptions(full_state_dict=True))"
        )
        raise SourceError(f"tensor {name!r}", f"a DTensor, of which each process holds a part; {advice}")
    if is_traceable_wrapper_subclass(tensor):
        raise SourceError(f"tensor {name!r}", f"a {type(tensor).__name__} has no memory of its own; dequantize it first")


def _torch_memory(tensor: Any) -> object:
    import torch

    if tensor.layout is not torch.strided or tensor.is_meta or not tensor.numel():
        return None  # such tensors have no memory that could be shared
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _from_torch(tensor: Any, name: str, kind: str) -> NDArray[np.generic]:
    import torch

    if kind not in dtypes.NUMPY:
        raise SourceError(f"tensor {name!r}", f"dtype {tensor.dtype} is not supported; convert the tensor, or remove it")
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # NumPy has no bfloat16, so the tensor is converted as bytes.
    raw: NDArray[np.uint8] = plain.reshape(-1).view(torch.uint8).numpy()
    if kind == _FLOAT4:
        return packed_floats.unpack(raw, kind, (*tensor.shape[:-1], 2 * tensor.shape[-1]))
    return raw.view(dtypes.NUMPY[kind]).reshape(tuple(tensor.shape))
