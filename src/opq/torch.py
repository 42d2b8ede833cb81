"""Save and load .opq files as torch tensors and modules, in the manner of safetensors.torch; needs the extra opq[torch]."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from opq.codec.file_reader import OpqFile, TensorReader
from opq.errors import MissingExtraError

try:
    import torch
except ImportError:
    raise MissingExtraError("opq.torch", "torch") from None

if TYPE_CHECKING:
    from opq.compression.compress import CompressedModel
    from opq.config import CompressionOptions
    from opq.rate_distortion.plan import Plan

__all__ = ["load", "load_file", "load_model", "safe_open", "save", "save_file", "save_model"]


def save_file(
    tensors: Mapping[str, torch.Tensor],
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    plan: Plan | None = None,
    **options: Unpack[CompressionOptions],
) -> CompressedModel:
    """Compress `tensors` into a file, replacing one that is there.

    tensors   {name: tensor}, on any device; weights of the same values are stored once
    metadata  {text: text} to keep in the file
    plan      follow this plan; or else give
    options   a target and what is fixed, as for `opq.plan`
    Returns the compressed network, with its plan and sizes. Raises what `opq.compress` raises, and OutputError.
    """
    from opq.compression.compress import compress
    from opq.compression.journal import work_path  # here, because planning loads SciPy and loading a file does not

    compressed = compress(tensors, metadata=metadata, plan=plan, work_file=work_path(filename), **options)
    compressed.save(filename)
    return compressed


def save(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    plan: Plan | None = None,
    **options: Unpack[CompressionOptions],
) -> bytes:
    """The bytes that `save_file` would write."""
    from opq.compression.compress import compress

    return compress(tensors, metadata=metadata, plan=plan, **options).data


def save_model(
    model: torch.nn.Module,
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    plan: Plan | None = None,
    **options: Unpack[CompressionOptions],
) -> CompressedModel:
    """Compress the state dict of `model` into a file; see `save_file`. The eps of batch-norms are the model's."""
    from opq.compression.compress import compress

    compressed = compress(model, metadata=metadata, plan=plan, **options)
    compressed.save(filename)
    return compressed


def load_file(
    filename: str | os.PathLike[str], device: str | int | torch.device = "cpu", *, max_bytes: int | None = None
) -> dict[str, torch.Tensor]:
    """All tensors of a file by name, each in its own dtype and shape, on `device`.

    max_bytes  most dense bytes it may hold; by default 64 MiB and 4096 times its size, against files made to fill memory
    Raises SourceError when it cannot be read, FormatError when it is not a whole, valid file.
    """
    with OpqFile(filename, max_bytes=max_bytes) as file:
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
    max_bytes: int | None = None,
) -> tuple[list[str], list[str]]:
    """Load the tensors of a file into `model`.

    Returns the names that the file lacks and those that the model lacks. With `strict`, torch raises RuntimeError when there
    are any. Raises as `load_file` does otherwise.
    """
    missing, unexpected = model.load_state_dict(load_file(filename, device, max_bytes=max_bytes), strict=strict)
    return missing, unexpected


class safe_open(TensorReader[torch.Tensor]):  # noqa: N801 - safetensors' name for it
    """A file whose tensors are read one at a time.

    with safe_open("model.opq", device="cpu") as f:
        for name in f.keys():
            tensor = f.get_tensor(name)
    """

    def __init__(
        self, filename: str | os.PathLike[str], device: str | int | torch.device = "cpu", *, max_bytes: int | None = None
    ) -> None:
        """Open a file, reading its header alone; raises as `load_file` does."""
        super().__init__(OpqFile(filename, max_bytes=max_bytes), lambda array: to_tensor(array).to(device))


def to_tensor(array: NDArray[np.generic]) -> torch.Tensor:
    # torch takes no ml_dtypes, so every dtype crosses over as bytes.
    dtype = getattr(torch, array.dtype.name)
    raw: Any = np.array(array, order="C").reshape(-1).view(np.uint8)
    return torch.from_numpy(raw).view(dtype).reshape(array.shape)
