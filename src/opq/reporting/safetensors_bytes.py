"""The bytes of a .safetensors file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from opq import packed_floats
from opq.errors import OutputError

RESERVED = "__metadata__"
_FLOAT4 = "float4_e2m1fn"
_UNKNOWN = ("float6_e2m3fn", "float6_e3m2fn", "complex128")


def safetensors_bytes(tensors: Mapping[str, NDArray[np.generic]], metadata: Mapping[str, str], where: object) -> bytes:
    """Write tensors as safetensors does.

    Args:
        tensors: {name: array}.
        metadata: {text: text}; empty for none.
        where: The output, for messages.

    Raises:
        OutputError: A tensor has a name or a dtype that the safetensors library does not write.
    """
    if RESERVED in tensors:
        raise OutputError(where, f"a .safetensors file has no place for a tensor named {RESERVED!r}")
    if unknown := [name for name, array in tensors.items() if array.dtype.name in _UNKNOWN]:
        kind = tensors[unknown[0]].dtype.name
        raise OutputError(where, f"tensor {unknown[0]!r}: the safetensors library does not write {kind}; opq.numpy can load it")
    texts = dict(metadata) or None
    if all(array.dtype.name != _FLOAT4 for array in tensors.values()):
        return safetensors.numpy.save(dict(tensors), texts)
    return _with_float4(tensors, texts, where)


def _with_float4(tensors: Mapping[str, NDArray[np.generic]], metadata: dict[str, str] | None, where: object) -> bytes:
    """As `safetensors_bytes`; safetensors.numpy.save does not take float4."""
    if not hasattr(safetensors, "TensorSpec"):
        raise OutputError(where, f"{_FLOAT4} needs safetensors 0.8 or newer, got {safetensors.__version__}")
    stored, specs = [], {}
    for name, array in tensors.items():
        kind, shape = array.dtype.name, array.shape
        if kind == _FLOAT4:
            if not shape or shape[-1] % 2:
                raise OutputError(where, f"tensor {name!r} {shape}: the last dimension of a {_FLOAT4} tensor must be even")
            kind, shape = f"{_FLOAT4}_x2", (*shape[:-1], shape[-1] // 2)
            array = packed_floats.pack(array)
        stored.append(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")))
        specs[name] = safetensors.TensorSpec(
            dtype=kind, shape=list(shape), data_ptr=stored[-1].ctypes.data, data_len=stored[-1].nbytes
        )
    return bytes(safetensors.serialize(specs, metadata))
