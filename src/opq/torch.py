"""Save and load .opq files as torch tensors and modules, in the manner of safetensors.torch; needs the extra opq[torch]."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from opq import dtypes, packed_floats
from opq.checkpoints.opq_state import open_file
from opq.codec.file_reader import OpqFile
from opq.codec.tensor_reader import TensorReader, check_framework
from opq.errors import MissingExtraError, SourceError

try:
    import torch
except ImportError:
    raise MissingExtraError("opq.torch", "torch") from None

if TYPE_CHECKING:
    from opq.compression.compressed_model import CompressedModel
    from opq.config import CompressionConfig, CompressionOptions
    from opq.rate_distortion.plan import Plan

__all__ = ["load", "load_file", "load_model", "safe_open", "save", "save_file", "save_model"]


def save_file(
    tensors: Mapping[str, torch.Tensor],
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    config: CompressionConfig | Plan | None = None,
    **options: Unpack[CompressionOptions],
) -> CompressedModel:
    """Compress tensors into a file.

    Args:
        tensors: {name: tensor}, on any device; weights of the same values are stored once.
        filename: Path of the .opq file. An existing file is replaced.
        metadata: {text: text} to keep in the file.
        config: A CompressionConfig or a Plan. None: the config is made from `options`.
        options: The fields of a config as keywords.

    Returns:
        The compressed network, with its plan and sizes.

    Raises:
        OutputError: The file cannot be written.
        OpqError: See `opq.compress`.
    """
    from opq.compression.compress import compress  # imported here, because planning imports SciPy and loading a file must not

    compressed = compress(tensors, config, metadata=metadata, **options)
    compressed.save(filename)
    return compressed


def save(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    config: CompressionConfig | Plan | None = None,
    **options: Unpack[CompressionOptions],
) -> bytes:
    """The bytes that `save_file` would write."""
    from opq.compression.compress import compress

    return compress(tensors, config, metadata=metadata, **options).data


def save_model(
    model: torch.nn.Module,
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    config: CompressionConfig | Plan | None = None,
    **options: Unpack[CompressionOptions],
) -> CompressedModel:
    """Compress the state dict of `model` into a file; see `save_file`. The eps of batch norms are the model's."""
    from opq.compression.compress import compress

    compressed = compress(model, config, metadata=metadata, **options)
    compressed.save(filename)
    return compressed


def load_file(
    filename: str | os.PathLike[str],
    device: str | int | torch.device = "cpu",
    *,
    base: Any = None,
    max_bytes: int | None = None,
) -> dict[str, torch.Tensor]:
    """All tensors of a file by name, each in its own dtype and shape.

    Args:
        filename: The .opq file.
        device: Device of the loaded tensors.
        base: Of a delta, what it was made from, as in `opq.compress`.
        max_bytes: Largest allowed number of dense bytes, as a limit for untrusted files. Default: 64 MiB plus 4096 times the
            size of the file.

    Raises:
        SourceError: The file cannot be read, or the base is another one than that of the delta.
        FormatError: It is not a complete, valid file.
    """
    with open_file(filename, base, max_bytes=max_bytes) as file:
        return {name: to_tensor(array).to(device) for name, array in file.arrays().items()}


def load(data: bytes, device: str | int | torch.device = "cpu", *, max_bytes: int | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a file given as bytes; see `load_file`."""
    with OpqFile(data, max_bytes=max_bytes) as file:
        return {name: to_tensor(array).to(device) for name, array in file.arrays().items()}


def load_model(
    model: torch.nn.Module,
    filename: str | os.PathLike[str],
    strict: bool = True,
    device: str | int | torch.device = "cpu",
    *,
    base: Any = None,
    max_bytes: int | None = None,
) -> tuple[set[str], list[str]]:
    """Load the tensors of a file into `model`, as safetensors.torch.load_model does: tied tensors need one of their names.

    Args:
        model: The network.
        filename: The .opq file.
        strict: Whether torch raises RuntimeError if the file and the model do not have the same names.
        device: Device to which the tensors are loaded before they are copied into the model.
        base: As in `load_file`.
        max_bytes: As in `load_file`.

    Returns:
        The names that the file lacks, without those whose memory another name of the file fills; and those that the model
        lacks.

    Raises:
        SourceError, FormatError: As in `load_file`.
        RuntimeError: A shape differs; or a name is missing or unexpected, and `strict` is True.
    """
    missing, unexpected = load_tensors(model, load_file(filename, device, base=base, max_bytes=max_bytes))
    if strict:
        refuse_other_names(model, missing, unexpected)
    return missing, unexpected


def refuse_other_names(model: torch.nn.Module, missing: Collection[str], unexpected: Collection[str]) -> None:
    """Raise torch's RuntimeError if a file lacks names of a network, or has names that the network lacks."""
    lines = [f"Error(s) in loading state_dict for {type(model).__name__}:"]
    for kind, names in (("Missing", missing), ("Unexpected", unexpected)):
        if names:
            quoted = ", ".join(f'"{name}"' for name in sorted(names))
            lines.append(f"    {kind} key(s) in state_dict: {quoted}")
    if len(lines) > 1:
        raise RuntimeError("\n".join(lines))


def load_tensors(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> tuple[set[str], list[str]]:
    """Copy tensors into `model`, which may have several names for one of them.

    Args:
        model: The network.
        tensors: {name: tensor}.

    Returns:
        The names that `tensors` lacks, without those whose memory another name fills; and those that the model lacks.

    Raises:
        RuntimeError: A shape differs.
    """
    state = model.state_dict()
    filled = {_memory(state[name]) for name in tensors if name in state and _fills_its_memory(state[name])}
    lacking, unexpected = model.load_state_dict(tensors, strict=False)
    return {name for name in lacking if name not in state or _memory(state[name]) not in filled}, unexpected


def _memory(tensor: torch.Tensor) -> object:
    """What tensors have in common that share memory; of one without memory, the tensor itself."""
    if not isinstance(tensor, torch.Tensor) or tensor.is_meta or not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.untyped_storage().data_ptr()


def _fills_its_memory(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.nbytes == tensor.untyped_storage().nbytes()


class safe_open(TensorReader[torch.Tensor]):  # noqa: N801 - safetensors' name for it
    """A file whose tensors are read one at a time.

    with safe_open("model.opq", framework="pt", device="cpu") as f:
        for name in f.keys():
            tensor = f.get_tensor(name)
            first_rows = f.get_slice(name)[:10]

    Args:
        filename: The .opq file; only its header is read now.
        framework: "pt", "torch" or "pytorch".
        device: Device of the loaded tensors.
        max_bytes: As in `load_file`.

    Raises:
        SourceError, FormatError: As in `load_file`.
        ValueError: The framework is not one of these.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        framework: str = "pt",
        device: str | int | torch.device = "cpu",
        *,
        max_bytes: int | None = None,
    ) -> None:
        check_framework("opq.torch.safe_open", framework, ("pt", "torch", "pytorch"))
        super().__init__(OpqFile(filename, max_bytes=max_bytes), lambda array: to_tensor(array).to(device))


def decode_tensor(file: OpqFile, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor of a file. Weights are decoded in pieces, so that memory holds the tensor and one piece for each core.

    Args:
        file: The open file.
        name: Name of the tensor.
        dtype: Its dtype; None: its own in the file.

    Raises:
        KeyError: There is no tensor of this name.
        FormatError: It is damaged.
    """
    entry = file.entry(name)
    if not entry.is_weight or entry.dtype not in dtypes.COMPRESSIBLE:
        return to_tensor(file.array(name)).to(dtype)
    result = torch.empty(entry.shape, dtype=dtype or getattr(torch, entry.dtype))
    first = 0
    for piece in file.pieces(name):
        result[first : first + piece.shape[0]] = to_tensor(piece.values())
        first += piece.shape[0]
    return result


def to_tensor(array: NDArray[np.generic]) -> torch.Tensor:
    """A tensor of the same dtype, shape and bits. float4 has two elements in a byte in torch: float4_e2m1fn_x2.

    Raises:
        SourceError: torch has no such dtype, or no such shape.
    """
    kind, shape = dtypes.name_of(array.dtype), array.shape
    if kind == "float4_e2m1fn" and shape and shape[-1] % 2 == 0:
        kind, shape, array = "float4_e2m1fn_x2", (*shape[:-1], shape[-1] // 2), packed_floats.pack(array)
    if not hasattr(torch, kind):
        raise SourceError(f"a tensor of shape {shape}", f"torch {torch.__version__} has no {kind}; opq.numpy can load it")
    if array.base is not None or not array.flags.carray:  # torch needs memory that is not shared and may be written
        array = np.array(array, order="C")
    raw: Any = array.reshape(-1).view(np.uint8)  # torch does not accept ml_dtypes
    return torch.from_numpy(raw).view(getattr(torch, kind)).reshape(shape)
